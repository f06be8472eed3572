"""Asks a running proxy: whether it is ready, whether keys work that should, and whether others are refused.

Imports samples and the words; httpx (extra `probe`) when it is used. Keys travel in one header and
nowhere else: not in an address, a message or an error; a redirection is never followed with one.
What the proxy answers is classified here and never quoted, because its messages repeat keys.
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import mishika_migrate
from mishika_migrate import errors, model, words
from mishika_migrate.operations.probing import samples
from mishika_migrate.operations.probing.samples import Sample as Sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

READY, KEYS, REFUSALS, DATABASE = "probe-ready", "probe-keys", "probe-refusals", "probe-database"
_TITLES = {
    READY: "The proxy is ready",
    KEYS: "Keys that should work are accepted",
    REFUSALS: "Keys that should be refused are refused",
    DATABASE: "The proxy reaches its database",
}

_MOST_BYTES = 8_000_000
_MOST_NAMES = 10
_MOST_SILENCES = 3
_MODELS, _INFO = "/v1/models", "/key/info"

Kind = Literal[
    "accepted", "elsewhere", "over-budget", "unknown", "blocked", "expired", "refused", "no-row", "no-database",
    "limited", "moved", "failed", "odd", "silent",
]  # fmt: skip
"""What an answer means. `elsewhere`: the key is good, only not for this route. `no-row`: the key's row is not there."""

_SAYS: Final[Mapping[Kind, str]] = {
    "accepted": "accepted",
    "elsewhere": "accepted, but not for this route",
    "over-budget": "over its budget",
    "unknown": "refused: the proxy does not know it",
    "blocked": "refused: it or its team is blocked",
    "expired": "refused: it has expired",
    "refused": "refused",
    "no-row": "not in the proxy's database",
    "no-database": "refused: the proxy has no database",
    "limited": "turned away for asking too often",
    "moved": "sent to another address",
    "failed": "answered with an error of the proxy",
    "odd": "answered with something that is not the proxy's",
    "silent": "not answered",
}
_GOOD: Final = frozenset[Kind]({"accepted", "elsewhere", "over-budget"})
_REFUSED: Final = frozenset[Kind]({"unknown", "blocked", "expired", "refused", "over-budget", "no-database"})
_UNTOLD: Final = frozenset[Kind]({"silent", "limited"})

# proxy/_types.py ProxyErrorTypes.
_TYPES: Final[Mapping[str, Kind]] = {
    "token_not_found_in_db": "unknown",
    "expired_key": "expired",
    "budget_exceeded": "over-budget",
    "no_db_connection": "no-database",
}
# Words of the messages for which 1.68 has no type (user_api_key_auth.py, auth_checks.py, route_checks.py).
_MARKS: Final[Sequence[tuple[str, Kind]]] = (
    ("is blocked", "blocked"),
    ("not allowed to call this route", "elsewhere"),
    ("not allowed to access this route", "elsewhere"),
    ("not allowed to access this key's info", "elsewhere"),
    ("reach database server", "no-database"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """One answer; `status` is 0 for none, and `why` then says why.

    `row` says that it takes a look into the database to answer so. `body` is what readiness says,
    None for all that is not JSON and for answers to keys.
    """

    kind: Kind
    status: int = 0
    why: str = ""
    row: bool = False
    body: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{_SAYS[self.kind]} ({self.why or self.status})"


def inspect(
    url: str, *, keys: Sequence[Sample], master_key: str | None, timeout: float = 10.0
) -> tuple[model.Check, ...]:
    """Four checks of the proxy at `url`, in `timeout` seconds a question; nothing is changed there.

    `errors.ConfigurationError` for an address or a master key that cannot be used.
    """
    if master_key is not None and not re.fullmatch("[!-~]+", master_key):
        raise errors.ConfigurationError(
            "the master key is empty or holds a character that no header can carry", hint="Check the variable's value."
        )
    with _asking(_address(url), timeout) as proxy:
        ready = proxy.ask("/health/readiness")
        if ready.kind == "silent":
            why = f"the proxy did not answer ({ready.why})"
            rest = (model.Check(code=code, title=_TITLES[code], why_not=why) for code in (REFUSALS, KEYS, DATABASE))
            return (_ready(ready, proxy.base), *rest)
        # No key that anyone has: nobody else knows it, and it is forgotten with this call.
        made_up = proxy.ask(_MODELS, f"sk-{secrets.token_urlsafe(24)}")
        wanted = [key for key in keys if key.expect != "refused"]
        models = proxy.each(_MODELS, keys)
        infos = proxy.each(_INFO, [key for key in wanted if (said := models.get(key)) and said.kind in _GOOD])
        master = proxy.ask(_MODELS, master_key) if master_key is not None else None
    return (
        _ready(ready, proxy.base),
        _refusals(made_up, [key for key in keys if key.expect == "refused"], models),
        _keys(made_up, wanted, models, infos, master),
        _database(ready, [made_up, *models.values(), *infos.values(), *([master] if master else [])]),
    )


# -- what is made of the answers ------------------------------------------------------------------


def _check(
    code: str, looked: int, problems: Iterable[str], notes: Iterable[str] = (), why_not: str = ""
) -> model.Check:
    return model.Check(
        code=code,
        title=_TITLES[code],
        looked=looked,
        problems=tuple(problems),
        notes=tuple(notes),
        why_not=why_not,
    )


def _ready(answer: _Answer, base: urllib.parse.SplitResult) -> model.Check:
    notes = []
    if version := _version(answer.body):
        notes.append(f"version {version}")
    if base.scheme == "http" and not _is_local(base.hostname or ""):
        notes.append(f"http://{base.hostname}: keys are sent over the network unencrypted")
    fine = answer.kind == "accepted" and isinstance(answer.body, dict)
    problems = [] if fine else [f"/health/readiness is {answer}"]
    return _check(READY, 1, problems, notes)


def _version(body: object) -> str:
    # The name changes with the brand: mishikallm_version, litellm_version.
    found = [value for name, value in body.items() if str(name).endswith("_version")] if isinstance(body, dict) else []
    return found[0] if found and re.fullmatch(r"[0-9][\w.+-]{0,30}", str(found[0])) else ""


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refusals(made_up: _Answer, refused: Sequence[Sample], models: Mapping[Sample, _Answer]) -> model.Check:
    problems, unasked = [], []
    if made_up.kind in _GOOD:
        problems.append(
            f"a made-up key is {made_up}: the proxy lets anyone in. Either it runs without a master key, or its"
            " database is down and allow_requests_on_db_unavailable lets every key pass; in both cases no answer"
            " to a real key proves anything"
        )
    elif made_up.kind in _UNTOLD:
        unasked.append(f"a made-up key is {made_up}")
    elif made_up.kind not in _REFUSED:
        problems.append(f"a made-up key is {made_up} instead of refused (401)")
    for answer, some in _groups(refused, models):
        if answer.kind in _UNTOLD:
            unasked.append(f"{answer}: {samples.names(some, most=_MOST_NAMES)}")
        elif answer.kind not in _REFUSED:
            problems.append(
                f"{answer}, although the target's database says blocked, expired or not there:"
                f" {samples.names(some, most=_MOST_NAMES)}"
            )
    unasked += _left(refused, models)
    notes = [] if refused else ["no sample key is known to be blocked or expired: only a made-up key was tried"]
    return _check(REFUSALS, 1 + len(refused), problems, notes, "; ".join(unasked))


def _keys(
    made_up: _Answer,
    wanted: Sequence[Sample],
    models: Mapping[Sample, _Answer],
    infos: Mapping[Sample, _Answer],
    master: _Answer | None,
) -> model.Check:
    said = _Said(unasked=_left(wanted, models))
    for answer, some in _groups(wanted, models):
        said.call(answer, some)
    for answer, some in _groups(wanted, infos):
        said.look_up(answer, some)
    if master is not None and master.kind not in _GOOD:
        said.problems.append(f"the master key is {master}")
    looked = len([key for key in wanted if key in models]) + (master is not None)
    if not looked and not said.unasked:
        said.unasked.append("no key that should work was given: --sample-keys FILE")
    if made_up.kind in _GOOD:
        said.unasked.append("a made-up key is accepted as well, so these answers prove nothing")
    return _check(KEYS, looked, said.problems, said.notes, "; ".join(said.unasked))


@dataclass(slots=True)
class _Said:
    """What there is to say about keys that should work, alike ones in one sentence."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)

    def call(self, answer: _Answer, some: Sequence[Sample]) -> None:
        if answer.kind == "accepted":
            return
        if answer.kind in _GOOD:
            self._add(self.notes, answer, some)
        elif answer.kind == "limited":
            self._add(self.unasked, answer, some)
        else:
            # Without the database's word a key may be blocked or expired on purpose.
            doubtful = answer.kind in ("blocked", "expired")
            doubted = [key for key in some if doubtful and key.expect == "unknown"]
            self._add(self.notes, f"{answer}; --target URL tells whether it should be", doubted)
            self._add(self.problems, answer, [key for key in some if key not in doubted])

    def look_up(self, answer: _Answer, some: Sequence[Sample]) -> None:
        """The key's own row. An operator may keep this route to himself, so only its lack is a problem."""
        if answer.kind not in _GOOD:
            lost = answer.kind in ("no-row", "unknown")
            self._add(self.problems if lost else self.notes, f"{_MODELS} accepts, {_INFO} is {answer}", some)

    def _add(self, to: list[str], what: object, some: Sequence[Sample]) -> None:
        if some:
            to.append(f"{what}: {samples.names(some, most=_MOST_NAMES)}")


def _database(ready: _Answer, answers: Sequence[_Answer]) -> model.Check:
    """Readiness is remembered for two minutes (_health_endpoints.py), so what needs the database counts as well."""
    problems = []
    said = ready.body if isinstance(ready.body, dict) else {}
    # With its database lost, 1.68 goes on to answer db: connected, and status: unknown beside it.
    words_said = [str(said.get(name, "")).lower() for name in ("db", "status")]
    if words_said[0] not in ("", "connected") or words_said[1] in ("unknown", "disconnected"):
        problems.append("/health/readiness says that the database is not connected")
    if lost := [answer for answer in answers if answer.kind == "no-database"]:
        problems.append(f"{words.count(len(lost), 'key')} {lost[0]}")
    if failed := [answer for answer in answers if answer.kind == "failed"]:
        were = "was" if len(failed) == 1 else "were"
        problems.append(f"{words.count(len(failed), 'question')} with a key {were} {failed[0]}")
    looked = sum(answer.row for answer in answers) + (words_said[0] == "connected")
    silent = "" if looked or problems else "no answer tells whether the proxy has looked into its database"
    return _check(DATABASE, max(looked, len(problems)), problems, why_not=silent)


def _groups(keys: Sequence[Sample], answers: Mapping[Sample, _Answer]) -> Iterable[tuple[_Answer, list[Sample]]]:
    """Keys with the same answer."""
    groups: dict[str, tuple[_Answer, list[Sample]]] = {}
    for key in keys:
        if (answer := answers.get(key)) is not None:
            groups.setdefault(str(answer), (answer, []))[1].append(key)
    return groups.values()


def _left(keys: Sequence[Sample], answers: Mapping[Sample, _Answer]) -> list[str]:
    left = [key for key in keys if key not in answers]
    were = "was" if len(left) == 1 else "were"
    tried = f"after {_MOST_SILENCES} silences in a row {words.count(len(left), 'key')} {were} not tried"
    return [tried] if left else []


# -- asking ---------------------------------------------------------------------------------------


def _address(url: str) -> urllib.parse.SplitResult:
    """The parts of an address that can be used; an error never quotes it, for it may hold a password."""
    hint = "Give the proxy's address as clients use it, such as https://proxy.example:4000."
    try:
        parts = urllib.parse.urlsplit(url.strip().rstrip("/"))
        there = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        there = False
    if not there or parts.scheme not in ("http", "https") or not url.strip().isprintable():
        raise errors.ConfigurationError("the proxy's address is no http:// or https:// URL", hint=hint)
    if parts.username is not None or parts.password is not None:
        raise errors.ConfigurationError("the proxy's address holds a user or a password", hint=hint)
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise errors.ConfigurationError("the proxy's address holds a '?' or a '#'", hint=hint)
    return parts


def shown(url: str) -> str:
    """The address for people, without what it must not hold."""
    parts = _address(url)
    return urllib.parse.urlunsplit(parts)


class _Proxy:
    """The proxy's end of one probe."""

    def __init__(self, base: urllib.parse.SplitResult, client: httpx.Client, timeout: float) -> None:
        self.base = base
        self._client = client
        self._timeout = timeout

    def each(self, path: str, keys: Sequence[Sample]) -> dict[Sample, _Answer]:
        """One after the other; given up after some silences in a row, which would take their timeout each."""
        answers: dict[Sample, _Answer] = {}
        silences = 0
        for key in keys:
            answers[key] = self.ask(path, key.key)
            silences = silences + 1 if answers[key].kind == "silent" else 0
            if silences == _MOST_SILENCES:
                break
        return answers

    def ask(self, path: str, key: str | None = None) -> _Answer:
        import httpx

        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        try:
            with self._client.stream("GET", path, headers=headers) as response:
                content = self._content(response)
                return _answer(path, response.status_code, content, response.headers.get("location", ""))
        except httpx.TimeoutException:
            return _Answer(kind="silent", why=f"nothing within {self._timeout:g} s")
        except httpx.ConnectError as error:
            return _Answer(kind="silent", why=_unconnected(error))
        except httpx.ProxyError:
            return _Answer(kind="silent", why="the HTTP proxy of the environment refuses")
        except (httpx.HTTPError, httpx.InvalidURL):
            # Its own words may quote the answer, and the answer the key.
            return _Answer(kind="silent", why="the connection broke, or speaks no HTTP")

    def _content(self, response: httpx.Response) -> bytes | None:
        """All of it; None for more than any answer has, or slower. A timeout of httpx is one of each read."""
        until = time.monotonic() + self._timeout
        content = b""
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > _MOST_BYTES or time.monotonic() > until:
                return None
        return content


@contextmanager
def _asking(base: urllib.parse.SplitResult, timeout: float) -> Iterator[_Proxy]:
    try:
        import httpx
    except ImportError:
        raise errors.ConfigurationError(
            "probe needs the package httpx, which is not installed",
            hint="Run pip install 'mishika-migrate[probe]'.",
        ) from None
    try:
        client = httpx.Client(
            base_url=urllib.parse.urlunsplit(base),
            timeout=timeout,
            follow_redirects=False,
            headers={"User-Agent": f"mishika-migrate/{mishika_migrate.__version__}", "Accept": "application/json"},
        )
    except (ValueError, OSError, ImportError, httpx.InvalidURL):
        # Not chained: the variable may hold a password.
        raise errors.ConfigurationError(
            "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or SSL_CERT_FILE holds what cannot be used",
            hint="Correct these environment variables, or unset them.",
        ) from None
    with client:
        yield _Proxy(base, client, timeout)


def _unconnected(error: Exception) -> str:
    """Why there is no connection; nothing has been sent by then."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate" in text.lower():
        return "its certificate is not trusted; SSL_CERT_FILE names another authority"
    if "SSL" in text or "TLS" in text:
        return "no TLS connection"
    reasons = ("Connection refused", "Name or service not known", "No route to host", "Network is unreachable")
    return next((reason.lower() for reason in reasons if reason in text), "no connection")


def _answer(path: str, status: int, content: bytes | None, location: str) -> _Answer:
    if content is None:
        return _Answer(kind="odd", status=status, why=f"{status}, without an end")
    body = _json(content)
    if 300 <= status < 400:
        return _Answer(
            kind="moved", status=status, why=f"{status}{_where(location)}; give the final address as --proxy"
        )
    if 200 <= status < 300:
        fits = isinstance(body, dict) and ({_MODELS: "data", _INFO: "info"}.get(path) or "status") in body
        kept = None if path in (_MODELS, _INFO) else body
        return _Answer(kind="accepted" if fits else "odd", status=status, row=fits and path == _INFO, body=kept)
    kind = _meaning(status, body)
    return _Answer(kind=kind, status=status, row=kind in ("unknown", "no-row"))


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _where(location: str) -> str:
    """Scheme and host of a redirection; the rest may be anything."""
    try:
        parts = urllib.parse.urlsplit(location)
        place = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return ""
    return f" to {place}" if re.fullmatch(r"https?://[\w.:\[\]-]{1,253}", place) else ""


def _meaning(status: int, body: object) -> Kind:
    error = body.get("error") if isinstance(body, dict) else None
    said = error if isinstance(error, dict) else {}
    if kind := _TYPES.get(str(said.get("type"))):
        return kind
    message = str(said.get("message", ""))
    if status in (400, 401, 403):
        if kind := next((kind for mark, kind in _MARKS if mark in message), None):
            return kind
        return "refused" if status != 400 else "odd"
    if status == 404 and said.get("type") == "not_found_error":
        return "no-row"
    return "limited" if status == 429 else "failed" if status >= 500 else "odd"
