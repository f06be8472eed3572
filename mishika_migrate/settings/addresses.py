"""Turns what people write to name a server into an `Endpoint`: URIs, key=value strings, Prisma's dialect.

Imports `errors` and `model` only; no driver, no network, no file. A connection string is a secret:
no message and no hint in here quotes a value, and a name is quoted only where it cannot be a piece
of a password. Nothing is raised inside an `except` block that holds the text, because a chained
exception would carry it into a traceback.
"""

from __future__ import annotations

import difflib
import getpass
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping

from mishika_migrate import errors, model

KEYWORDS = (
    "service", "user", "password", "passfile", "channel_binding", "connect_timeout", "dbname", "host",
    "hostaddr", "port", "client_encoding", "options", "application_name", "fallback_application_name",
    "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout", "sslmode",
    "sslnegotiation", "sslcompression", "sslcert", "sslkey", "sslcertmode", "sslpassword", "sslrootcert",
    "sslcrl", "sslcrldir", "sslsni", "requirepeer", "require_auth", "min_protocol_version",
    "max_protocol_version", "ssl_min_protocol_version", "ssl_max_protocol_version", "gssencmode",
    "krbsrvname", "gsslib", "gssdelegation", "replication", "target_session_attrs", "load_balance_hosts",
    "scram_client_key", "scram_server_key", "oauth_issuer", "oauth_client_id", "oauth_client_secret",
    "oauth_scope", "sslkeylogfile",
)  # fmt: skip
"""The words of libpq 18 (PQconndefaults), in its order, which is also the order of our `conninfo`."""

SECRETS = frozenset({"password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"})

# Prisma's own words for its connection pool (prisma-engines quaint postgres/url.rs). They size the
# proxy's pool and mean nothing to a session of ours; `socket_timeout` would even cut a long COPY.
_POOL_ONLY = frozenset({
    "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size", "single_use_connections",
    "max_connection_lifetime", "max_idle_connection_lifetime",
})  # fmt: skip

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_OFF = ("false", "off", "no", "0")

_URI_WORDS = (*KEYWORDS, *sorted(_POOL_ONLY), "schema", "pgbouncer", "sslaccept", "sslidentity", "ssl")

_FORMS = "Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or host=HOST dbname=DATABASE user=USER, or service=NAME."

_ENCODING = (
    "In a user name, password or database name of a URI write '@' as %40, ':' as %3A, '/' as %2F, "
    "'?' as %3F, '#' as %23, '%' as %25, '&' as %26 and a space as %20."
)

_QUOTING = "Put a value with spaces in single quotes, and write \\' for a quote and \\\\ for a backslash."

# isspace() in the C locale, which is what libpq skips; str.isspace() knows many more.
_SPACE = " \t\n\v\f\r"


def endpoint(text: str, *, role: model.Role, origin: str, environ: Mapping[str, str]) -> model.Endpoint:
    """The server that `text` names, as a canonical libpq string and a label without a password.

    What the text leaves out stays out: libpq fills it in from PG* and .pgpass when it connects, and
    `environ` serves the label alone. `origin` says where the text was written, and starts every error.
    """
    try:
        given = _given(text)
        schema = _schema(given.pop("schema", None))
        _check(given)
    except errors.ConfigurationError as error:
        raise errors.ConfigurationError(f"{origin}: {error.message}", hint=error.hint) from None
    words = (f"{word}={_quoted(given[word])}" for word in KEYWORDS if word in given)
    return model.Endpoint(role=role, conninfo=" ".join(words), schema=schema, label=_label(given, environ))


def has_secret(endpoint: model.Endpoint) -> bool:
    """Whether the text itself carried a password or another secret."""
    return any(word in SECRETS and value for word, value in _key_values(endpoint.conninfo))


def shown(name: str) -> str:
    """A name that an operator gave, for an error; not one that may be an address with a password in it."""
    # Also key=value: a variable with the wrong value is the likeliest way for either to get here.
    return "of that name, which looks like an address" if re.search("://|@|password=", name) else repr(name)


def _wrong(message: str, hint: str) -> errors.ConfigurationError:
    return errors.ConfigurationError(message, hint=hint)


def _given(text: str) -> dict[str, str]:
    if not text.strip():
        raise _wrong("the connection string is empty", _FORMS)
    if "\0" in text or text != text.encode(errors="replace").decode():
        raise _wrong("the connection string holds bytes that are not UTF-8 text", _FORMS)
    if text.strip()[0] in "\"'`":
        raise _wrong(
            "the connection string starts with a quote",
            "Remove the quotes around it; `docker --env-file` keeps them.",
        )
    if re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*:", text):
        return _translated(dict(_uri(text.strip())))
    given = dict(_known(_key_values(text), (*KEYWORDS, "schema")))
    given.pop("application_name", None)
    return given


# -- URIs -----------------------------------------------------------------------------------------


def _uri(text: str) -> Iterator[tuple[str, str]]:
    """Keywords and values of a URI by libpq's rules, the query's last, so that they win as in libpq."""
    rest = _after_scheme(text)
    if any(character.isspace() or not character.isprintable() for character in rest):
        raise _wrong("the URI holds a space or a control character", _ENCODING)
    authority, tail = _cut(rest, "/?")
    # libpq would take the first '@' and read on; what follows would end up in host, port or label.
    if authority.count("@") > 1 or "@" in tail or "#" in rest:
        raise _wrong(
            "the URI holds an '@', '/', '?' or '#' where it has no meaning, most likely in the password",
            _ENCODING,
        )
    who, _, where = authority.rpartition("@")
    yield from _login(who)
    yield from _places(where)
    path, _, query = tail.partition("?")
    if "/" in path[1:]:
        raise _wrong("the database name of the URI holds a '/'", _ENCODING)
    if path[1:]:
        yield "dbname", _decoded(path[1:])
    yield from _known(_parameters(query), _URI_WORDS)


def _after_scheme(text: str) -> str:
    scheme, _, rest = text.partition(":")
    if scheme.lower() not in ("postgresql", "postgres"):
        hint = f"Only Postgres servers can be source or target. {_FORMS}"
        if scheme.lower().startswith(("postgresql+", "postgres+", "jdbc")):
            hint = "Write postgresql:// in front, without the name of a driver."
        elif scheme.lower().startswith("prisma"):
            hint = "Prisma Accelerate is no Postgres session: give the direct URL of the database."
        raise _wrong("the URI does not start with postgresql:// or postgres://", hint)
    if not rest.startswith("//"):
        raise _wrong("the URI lacks the // after its scheme", _FORMS)
    return rest[2:]


def _cut(text: str, stops: str) -> tuple[str, str]:
    at = next((at for at, character in enumerate(text) if character in stops), len(text))
    return text[:at], text[at:]


def _login(text: str) -> Iterator[tuple[str, str]]:
    user, _, password = text.partition(":")
    if user:
        yield "user", _decoded(user)
    if password:
        yield "password", _decoded(password)


def _places(text: str) -> Iterator[tuple[str, str]]:
    """Host and port of one server, or of several with commas between; an empty list entry is a default."""
    hosts, ports = [], []
    for place in text.split(","):
        bracketed = re.fullmatch(r"\[([^\[\]]+)\](?::(.*))?", place)
        if bracketed:
            host, port = bracketed[1], bracketed[2] or ""
        else:
            host, _, port = place.partition(":")
        if set(host) & set("[]") and not bracketed:
            raise _wrong("the URI has a bracket that encloses no IPv6 address", "Write [::1]:5432.")
        hosts.append(_decoded(host))
        ports.append(_decoded(port))
    if ",".join(hosts):
        yield "host", ",".join(hosts)
    if ",".join(ports):
        yield "port", ",".join(ports)


def _parameters(query: str) -> Iterator[tuple[str, str]]:
    for parameter in filter(None, query.split("&")):
        name, equals, value = parameter.partition("=")
        if not equals:
            raise _wrong("a parameter of the URI has no '='", _ENCODING)
        yield _decoded(name), _decoded(value)


def _decoded(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", text):
        raise _wrong("the URI holds %00, or a '%' without two hex digits after it", _ENCODING)
    # surrogateescape in place of an exception: UnicodeDecodeError keeps the whole value.
    value = urllib.parse.unquote(text, errors="surrogateescape")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _wrong("the percent-encoding in the URI is not UTF-8", _ENCODING)
    return value


# -- key=value ------------------------------------------------------------------------------------


def _key_values(text: str) -> Iterator[tuple[str, str]]:
    """Keywords and values by the rules of libpq's conninfo_parse."""
    rest = text.lstrip(_SPACE)
    while rest:
        word, rest = _cut(rest, "=" + _SPACE)
        rest = rest.lstrip(_SPACE)
        if not rest.startswith("="):
            raise _wrong("the connection string is neither a URI nor a list of key=value", f"{_FORMS} {_QUOTING}")
        rest = rest[1:].lstrip(_SPACE)
        value, rest = _quoted_value(rest[1:]) if rest.startswith("'") else _bare_value(rest)
        yield word, value
        rest = rest.lstrip(_SPACE)


def _bare_value(text: str) -> tuple[str, str]:
    found = re.match(rf"(?:\\.|[^\\{_SPACE}])*\\?", text, re.DOTALL)
    length = found.end() if found else 0
    return _unescaped(text[:length]), text[length:]


def _quoted_value(text: str) -> tuple[str, str]:
    found = re.match(r"((?:\\.|[^\\'])*)'", text, re.DOTALL)
    if found is None:
        raise _wrong("a quoted value of the connection string has no end", _QUOTING)
    return _unescaped(found[1]), text[found.end() :]


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.?)", r"\1", text, flags=re.DOTALL)


def _quoted(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_./,:@%+-]+", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


# -- what the words mean --------------------------------------------------------------------------


def _known(pairs: Iterator[tuple[str, str]], words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The pairs as they are, as long as `words` has each name; a later one of the same name wins."""
    after_secret = False
    for name, value in pairs:
        if name not in words:
            raise _unknown(name, words, after_secret)
        after_secret = after_secret or name in SECRETS
        yield name, value


def _unknown(name: str, words: tuple[str, ...], after_secret: bool) -> errors.ConfigurationError:
    # After a secret the "name" may well be the rest of a password with a space or an '&' in it.
    if after_secret or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,40}", name):
        message = "the connection string holds a word that is no parameter"
        return _wrong(message, f"{_QUOTING} {_ENCODING}")
    near = difflib.get_close_matches(name.lower(), words, 1)
    hint = f"Did you mean {near[0]}?" if near else f"Remove {name}: neither libpq nor Prisma knows it."
    if name in _URI_WORDS:
        hint = f"{name} is Prisma's word: it belongs into a postgresql:// URI."
    return _wrong(f"unknown connection parameter {name}", hint)


def _translated(given: dict[str, str]) -> dict[str, str]:
    """What a URI says, in libpq's words; Prisma's own are translated, dropped or refused by name."""
    _refuse_pooler(given.pop("pgbouncer", "false"))
    if "sslidentity" in given:
        raise _wrong(
            "sslidentity names a PKCS#12 file, which libpq cannot read",
            "Extract certificate and key with `openssl pkcs12`, and give them as sslcert and sslkey.",
        )
    _translate_tls(given)
    # Sessions of this tool carry its own name, so that they can be told from the proxy's.
    for word in (*_POOL_ONLY, "application_name"):
        given.pop(word, None)
    return given


def _refuse_pooler(value: str) -> None:
    if value == "true":
        raise _wrong(
            "pgbouncer=true: a transaction pooler cannot hold a snapshot or an advisory lock",
            "Give the URL of the server itself; next to Prisma it is often called DIRECT_URL.",
        )
    if value != "false":
        raise _wrong("pgbouncer must be true or false", "Give the direct URL without it.")


def _translate_tls(given: dict[str, str]) -> None:
    ssl, accept = given.pop("ssl", None), given.pop("sslaccept", None)
    if ssl not in (None, "true"):
        raise _wrong("ssl must be true", "Say sslmode=disable, prefer, require or verify-full.")
    if accept not in (None, "strict", "accept_invalid_certs"):
        raise _wrong("sslaccept must be strict or accept_invalid_certs", "strict checks the certificate.")
    if ssl or accept == "accept_invalid_certs":
        given.setdefault("sslmode", "require")
    mode = given.get("sslmode", "prefer")
    if accept == "strict" and mode != "disable":
        given["sslmode"] = "verify-full"
    _translate_authority(given, unchecked=accept == "accept_invalid_certs" and not mode.startswith("verify"))
    if accept == "strict" and mode != "disable":
        # Without a file Prisma asks the system's authorities; libpq's default is ~/.postgresql/root.crt.
        given.setdefault("sslrootcert", "system")


def _translate_authority(given: dict[str, str], *, unchecked: bool) -> None:
    """`sslcert` is the authority's certificate in Prisma; in libpq the client's, and a key goes with it."""
    if "sslcert" not in given or "sslkey" in given or "sslrootcert" in given:
        return
    authority = given.pop("sslcert")
    mode = given.get("sslmode", "prefer")
    if unchecked or mode == "disable":
        return  # libpq verifies as soon as it has sslrootcert, whatever sslmode=require promises
    given["sslrootcert"] = authority
    if mode in ("allow", "prefer"):
        # These fall back to plain text when the certificate does not fit.
        given["sslmode"] = "verify-ca"


def _schema(name: str | None) -> str:
    if name is None:
        return "public"
    if not name or len(name.encode()) > 63:
        raise _wrong("schema must be a name of 1 to 63 bytes", "Leave it out for public.")
    return name


def _check(given: Mapping[str, str]) -> None:
    """Raises for values that libpq would misunderstand or quote in its own error."""
    for word, (fits, message, hint) in _CHECKS.items():
        if given.get(word) and not fits(given[word]):
            raise _wrong(message, hint)
    hosts = (given.get("host") or given.get("hostaddr") or "").split(",")
    ports = given.get("port", "").split(",")
    if len(ports) not in (1, len(hosts)):
        raise _wrong(f"{len(ports)} ports do not fit {len(hosts)} hosts", "Give one port, or one for each host.")


def _is_host(text: str) -> bool:
    # A leading '@' is an abstract Unix socket.
    return "://" not in text and all("@" not in host[1:] for host in text.split(","))


def _is_port(text: str) -> bool:
    return all(re.fullmatch(r"[0-9]{0,5}", port) and 1 <= int(port or 1) <= 65535 for port in text.split(","))


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,9}", text) is not None


_CHECKS: dict[str, tuple[Callable[[str], bool], str, str]] = {
    "host": (_is_host, "the host is a whole connection string or holds an '@'", _ENCODING),
    "port": (_is_port, "the port is not a number from 1 to 65535", f"IPv6 is [::1]:5432. {_ENCODING}"),
    "dbname": (lambda value: "://" not in value, "dbname holds a whole URI", "Give the URI alone."),
    "connect_timeout": (_is_whole, "connect_timeout is no whole number of seconds", "0 is no limit."),
    "sslmode": (_SSL_MODES.__contains__, "sslmode is none of libpq's", f"Say {', '.join(_SSL_MODES)}."),
    "replication": (_OFF.__contains__, "a replication session cannot copy tables", "Remove replication."),
}


# -- labels ---------------------------------------------------------------------------------------


def _label(given: Mapping[str, str], environ: Mapping[str, str]) -> str:
    service = given.get("service") or environ.get("PGSERVICE", "")

    def said(word: str) -> str:
        # A service's own values go before PG*, and only libpq reads its file.
        inherited = "" if service else environ.get(f"PG{word.upper()}".replace("DBNAME", "DATABASE"), "")
        return given.get(word, inherited)

    host = said("host") or said("hostaddr")
    user = said("user") or ("" if service else _system_user())
    where = f"service={service}" if service and not host else _where(host, said("port"))
    database = said("dbname") or ("" if service else user)
    return _shown(user + "@" if user else "") + _shown(where) + _shown("/" + database if database else "")


def _where(host: str, port: str) -> str:
    if not _is_host(host):
        return "..."
    hosts, ports = host.split(","), port.split(",")
    if len(ports) != len(hosts):
        ports = ports[:1] * len(hosts)
    places = (f"[{host}]" if ":" in host else host or "local" for host in hosts)
    return ",".join(f"{place}:{port or '5432'}" for place, port in zip(places, ports, strict=True))


def _shown(text: str) -> str:
    """`text` for a terminal; never a whole URI, which PGHOST or PGDATABASE may hold by mistake."""
    if "://" in text:
        return "..."
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user id without a name, as in many containers
        return "unknown"
