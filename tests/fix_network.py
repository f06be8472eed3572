"""A TCP proxy in front of a server's socket that cuts, stalls and counts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mishika_migrate.sandbox import servers


class Proxy:
    """Forwards 127.0.0.1:`port` to a Unix socket.

    `cut_after(n)` cuts the connection through which the last of `n` more bytes goes to the server,
    `cut_after(n, back=True)` that through which it comes from there; `stall_after` lets those bytes pass and then
    nothing, in either direction, until `flow`; `swallow("COMMIT")` hands the next
    such command to the server and cuts its connection when the answer comes; `refuse` turns new
    connections away; `stall` is `stall_after` none.

    What is stalled the kernel still takes and acknowledges, as much as `buffer` has room for: a client that
    only waits for an answer cannot know, one with more to say sees a window of zero bytes.
    """

    def __init__(self, to: Path, *, buffer: int | None = None) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        if buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)  # of all that it accepts
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._guard = threading.Lock()
        self._till_cut: dict[bool, int | None] = {True: None, False: None}
        self._till_stall: dict[bool, int | None] = {True: None, False: None}
        self._command: bytes | None = None
        self._mute: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self.refuse = False
        self.cuts = 0
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def url(self, url: str) -> str:
        """The server's URL, through this proxy."""
        return f"postgresql://postgres@127.0.0.1:{self.port}{urlsplit(url).path}?sslmode=disable"

    def cut_after(self, size: int, *, back: bool = False) -> None:
        self._till_cut[not back] = size

    def swallow(self, command: str) -> None:
        self._command = command.encode() + b"\0"

    @property
    def swallowed(self) -> bool:
        """Whether that has happened since `swallow`."""
        return self._command is None

    def cut(self) -> None:
        """Ends all connections now, without a word to either end."""
        with self._guard:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self.cuts += 1
        self._close(pair)

    def _close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        for end in pair:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # that end went first
            end.close()

    def stall(self) -> None:
        self._flowing.clear()

    def stall_after(self, size: int, *, back: bool = False) -> None:
        self._till_stall[not back] = size

    @property
    def stalled(self) -> bool:
        return not self._flowing.is_set()

    def flow(self) -> None:
        self._flowing.set()

    def close(self) -> None:
        if self._listener.fileno() < 0:
            return  # a test was faster
        # close() alone does not wake a thread in accept(): it would take in one more connection, which nobody ends.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        self.flow()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._to))
            except OSError:
                self._close((client, server))  # the server is down: so is this connection
                continue
            with self._guard:
                self._pairs.append((client, server))
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, come: socket.socket, go: socket.socket, forth: bool) -> None:
        try:
            while block := come.recv(65536):
                if _spent(self._till_stall, len(block), forth):
                    self.stall()
                self._flowing.wait()
                if come in self._mute:
                    self._end((come, go))
                    return
                if _spent(self._till_cut, len(block), forth):
                    self._end((come, go))
                    return
                if forth and self._command is not None and self._command in block:
                    self._mute.add(go)
                    self._command = None
                go.sendall(block)
            go.shutdown(socket.SHUT_WR)
        except OSError:
            # Cut, or one end has gone: the other must hear of it, even one that only writes.
            self._close((come, go))


def _spent(budgets: dict[bool, int | None], size: int, forth: bool) -> bool:
    left = budgets[forth]
    if left is None:
        return False
    budgets[forth] = left - size if left > size else None
    return left <= size


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    """`proxy(server)` makes one; all are closed after the test."""
    made: list[Proxy] = []

    def make(server: servers.Server, *, buffer: int | None = None) -> Proxy:
        made.append(Proxy(server.socket, buffer=buffer))
        return made[-1]

    yield make
    for each in made:
        each.close()
