"""Connection strings: what libpq gets, what people see, and that no password is ever seen."""

from __future__ import annotations

import getpass
import pickle
import traceback
import urllib.parse
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import conninfo, pq

from mishika_migrate import errors, model
from mishika_migrate.settings import addresses

NOTHING: Mapping[str, str] = {}
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.text(CHARACTERS, max_size=30)
NAMES = st.text(CHARACTERS, min_size=1, max_size=30).filter(lambda text: "://" not in text)


def read(text: str, environ: Mapping[str, str] = NOTHING) -> model.Endpoint:
    return addresses.endpoint(text, role="source", origin="--source", environ=environ)


def parsed(text: str) -> dict[str, str | None]:
    """What libpq itself understands."""
    return {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.parse(text.encode())
        if option.val is not None
    }


def refusal(text: str) -> errors.ConfigurationError:
    with pytest.raises(errors.ConfigurationError) as caught:
        read(text)
    assert str(caught.value).startswith("--source: ")
    assert caught.value.hint
    assert caught.value.status == 2
    return caught.value


# -- what libpq gets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://",
        "postgres://host",
        "postgresql://me@host:5433/db",
        "postgresql://me:pass%20word@host/db",
        "postgresql://me:a:b@host/db",
        "postgresql://:secret@host/db",
        "postgresql:///db",
        "postgresql:///db?host=/run/postgresql&port=5433",
        "postgresql://me@%2Frun%2Fpostgresql:5433/db",
        "postgresql://localhost/db?host=/cloudsql/project",
        "postgresql://[::1]:5433/db",
        "postgresql://[2001:db8::1]/db",
        "postgresql://me@one:5433,two:5434,three/db?target_session_attrs=read-write",
        "postgresql://one,two/db",
        "postgresql://host/db?user=me%40tenant&password=p%26w",
        "postgresql://host/d%2Fb%40?sslmode=require&channel_binding=require&options=-c%20search_path%3Dx",
        "postgresql://host/db?sslcert=a.crt&sslkey=a.key&sslrootcert=ca.crt&sslmode=verify-full",
        "postgresql://host/db?sslpassword=x&sslkey=y",
        "postgresql://host?connect_timeout=0",
        "postgresql://host?ssl=true",
        "postgresql://host/%C3%A9%E2%82%AC",
        "host=h port=5432 dbname=d user=u password=p",
        "host = h   dbname= 'a b'user=u",
        r"password='it\'s \\ here' host=h",
        r"password=a\ b\\c\'d host=h",
        "host=h password=''",
        "password=tail\\",
        "service=production",
        "service=production dbname=other\n",
        "host=/run/postgresql,one port=1,2",
        "hostaddr=127.0.0.1",
        "host=@abstract",
    ],
)
def test_libpq_reads_the_result_as_it_reads_the_text(text: str) -> None:
    assert parsed(read(text).conninfo) == parsed(text)


@given(user=NAMES, password=TEXTS, database=NAMES)
def test_any_name_and_password_survives_a_uri(user: str, password: str, database: str) -> None:
    quoted = [urllib.parse.quote(part, safe="") for part in (user, password, database)]
    made = read("postgresql://{}:{}@host:5433/{}".format(*quoted))
    expected = {"user": user, "dbname": database, "host": "host", "port": "5433"}
    assert conninfo.conninfo_to_dict(made.conninfo) == expected | ({"password": password} if password else {})


@given(user=NAMES, password=TEXTS, database=NAMES)
def test_any_name_and_password_survives_key_values(user: str, password: str, database: str) -> None:
    made = read(conninfo.make_conninfo("", user=user, password=password, dbname=database))
    assert conninfo.conninfo_to_dict(made.conninfo) == {
        "user": user, "password": password, "dbname": database
    }  # fmt: skip


@given(CHARACTERS.filter(lambda character: character not in "'\\"))
def test_unquoted_values_end_where_libpq_ends_them(character: str) -> None:
    text = f"password=a{character}b host=h"
    try:
        expected = parsed(text)
    except Exception:
        refusal(text)
    else:
        assert parsed(read(text).conninfo) == expected


def test_the_result_does_not_depend_on_the_order_of_the_words() -> None:
    assert read("dbname=d host=h user=u").conninfo == read("user=u host=h dbname=d").conninfo


def test_surrounding_white_space_of_a_uri_is_no_part_of_it() -> None:
    assert read(" postgresql://host/db\n").conninfo == "dbname=db host=host"


def test_schemes_are_read_in_any_case() -> None:
    assert read("PostgreSQL://host/db").label.endswith("@host:5432/db")


# -- Prisma's dialect -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("connection_limit=10&pool_timeout=60", {}),
        ("statement_cache_size=0&socket_timeout=5&single_use_connections=true", {}),
        ("max_connection_lifetime=1&max_idle_connection_lifetime=300", {}),
        ("pgbouncer=false", {}),
        ("application_name=proxy", {}),
        ("connect_timeout=30", {"connect_timeout": "30"}),
        ("connect_timeout=0", {"connect_timeout": "0"}),
        ("sslmode=prefer", {"sslmode": "prefer"}),
        ("options=-c%20a=b", {"options": "-c a=b"}),
        ("channel_binding=disable", {"channel_binding": "disable"}),
        ("sslaccept=accept_invalid_certs", {"sslmode": "require"}),
        ("sslmode=prefer&sslaccept=accept_invalid_certs", {"sslmode": "prefer"}),
        ("sslaccept=accept_invalid_certs&sslcert=ca.pem", {"sslmode": "require"}),
        ("sslaccept=strict", {"sslmode": "verify-full", "sslrootcert": "system"}),
        ("sslaccept=strict&sslcert=ca.pem", {"sslmode": "verify-full", "sslrootcert": "ca.pem"}),
        ("sslmode=require&sslaccept=strict&sslcert=c", {"sslmode": "verify-full", "sslrootcert": "c"}),
        ("sslmode=disable&sslaccept=strict&sslcert=ca.pem", {"sslmode": "disable"}),
        ("sslcert=ca.pem", {"sslmode": "verify-ca", "sslrootcert": "ca.pem"}),
        ("sslmode=prefer&sslcert=ca.pem", {"sslmode": "verify-ca", "sslrootcert": "ca.pem"}),
        ("sslmode=require&sslcert=ca.pem", {"sslmode": "require", "sslrootcert": "ca.pem"}),
        ("sslcert=client.crt&sslkey=client.key", {"sslcert": "client.crt", "sslkey": "client.key"}),
        ("ssl=true", {"sslmode": "require"}),
        ("host=/run/pg", {"host": "/run/pg"}),
        ("&connect_timeout=1&", {"connect_timeout": "1"}),
        ("sslmode=disable&sslmode=require", {"sslmode": "require"}),
    ],
)
def test_prisma_parameters_become_libpq_words(query: str, expected: dict[str, str]) -> None:
    made = read(f"postgresql://me@host/db?{query}")
    assert parsed(made.conninfo) == {"user": "me", "host": "host", "dbname": "db"} | expected
    assert made.schema == "public"


@pytest.mark.parametrize(
    ("query", "named", "hint"),
    [
        ("pgbouncer=true", "pgbouncer", "DIRECT_URL"),
        ("pgbouncer=maybe", "pgbouncer", "direct"),
        ("sslidentity=a.p12&sslpassword=x", "sslidentity", "openssl pkcs12"),
        ("sslaccept=sometimes", "sslaccept", "strict"),
        ("sslmode=no-verify", "sslmode", "require"),
        ("ssl=yes", "ssl", "sslmode"),
        ("connect_timeout=soon", "connect_timeout", "0"),
        ("replication=database", "replication", "Remove"),
        ("conect_timeout=1", "conect_timeout", "connect_timeout"),
        ("Schema=x", "Schema", "schema"),
        ("wibble=1", "wibble", "Remove wibble"),
        ("schema=", "schema", "public"),
        ("schema=" + "é" * 32, "schema", "public"),
        ("port=0", "port", "IPv6"),
        ("dbname=postgresql://h/d", "dbname", "URI"),
        ("sslmode", "parameter", "%26"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(query: str, named: str, hint: str) -> None:
    error = refusal(f"postgresql://me@host/db?{query}")
    assert named in error.message
    assert hint in error.hint


def test_the_schema_is_ours_in_every_form() -> None:
    assert read("postgresql://host/db?schema=My%20Schema").schema == "My Schema"
    made = read("host=h schema='My Schema'")
    assert made.schema == "My Schema"
    assert made.conninfo == "host=h"


@pytest.mark.parametrize("word", ["pgbouncer", "sslaccept", "connection_limit"])
def test_prisma_words_in_key_values_are_sent_to_the_uri(word: str) -> None:
    assert "postgresql:// URI" in refusal(f"host=h {word}=1").hint


def test_every_keyword_of_the_installed_libpq_is_known() -> None:
    installed = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    assert installed <= set(addresses.KEYWORDS)


# -- labels ---------------------------------------------------------------------------------------

USER = getpass.getuser()


@pytest.mark.parametrize(
    ("text", "environ", "label"),
    [
        ("postgresql://me:secret@host:5433/db", {}, "me@host:5433/db"),
        ("postgresql://me@host", {}, "me@host:5432/me"),
        ("postgresql://", {}, f"{USER}@local:5432/{USER}"),
        ("host=''", {"PGHOST": "other"}, f"{USER}@local:5432/{USER}"),
        (
            "postgresql://",
            {"PGUSER": "pu", "PGHOST": "ph", "PGPORT": "1", "PGDATABASE": "pd", "PGPASSWORD": "secret"},
            "pu@ph:1/pd",
        ),
        ("user=me", {"PGHOSTADDR": "10.0.0.1"}, "me@10.0.0.1:5432/me"),
        ("postgresql://me@/db?host=/run/pg", {}, "me@/run/pg:5432/db"),
        ("postgresql://me@[::1]:1/db", {}, "me@[::1]:1/db"),
        ("postgresql://me@a:1,b:2/db", {}, "me@a:1,b:2/db"),
        ("postgresql://me@a,b:2/db", {}, "me@a:5432,b:2/db"),
        ("host=a,b port=9 user=me", {}, "me@a:9,b:9/me"),
        ("host=a user=me", {"PGPORT": "1,2"}, "me@a:1/me"),
        ("service=prod", {"PGUSER": "pu", "PGHOST": "ph"}, "service=prod"),
        ("service=prod dbname=d user=u", {}, "u@service=prod/d"),
        ("service=prod host=h", {}, "h:5432"),
        ("postgresql://", {"PGSERVICE": "prod"}, "service=prod"),
        ("user=u", {"PGHOST": "postgres://u:secret@h/d", "PGDATABASE": "postgres://u:secret@h"}, "u@......"),
        ("user=u", {"PGHOST": "u:secret@h"}, "u@.../u"),
        ("user=u dbname='a\x1b[31m\n'", {}, "u@local:5432/a\\x1b[31m\\n"),
    ],
)
def test_labels_say_who_and_where(text: str, environ: dict[str, str], label: str) -> None:
    made = read(text, environ)
    assert made.label == label
    assert "secret" not in str(made) + repr(made)


def test_a_user_id_without_a_name_has_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert read("host=h").label == "unknown@h:5432/unknown"


# -- refusals, and that they keep the secret ------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "empty", "postgresql://"),
        (" \n", "empty", "postgresql://"),
        ("mydb", "neither a URI nor", "host="),
        ("host", "neither a URI nor", "host="),
        ("mysql://u:SECRET@h/d", "does not start with postgresql://", "Only Postgres"),
        ("sqlite:///file.db", "does not start with postgresql://", "Only Postgres"),
        ("postgresql+psycopg://u:SECRET@h/d", "does not start with", "driver"),
        ("jdbc:postgresql://h/d?password=SECRET", "does not start with", "driver"),
        ("prisma+postgres://x/?api_key=SECRET", "does not start with", "direct URL"),
        ("u:SECRET@h/d", "does not start with", "postgresql://USER"),
        ("postgresql:h", "lacks the //", "postgresql://"),
        ('"postgresql://u:SECRET@h/d"', "starts with a quote", "quotes"),
        ("postgresql://u:SECRET X@h/d", "space", "%20"),
        ("postgresql://u:SECRET\x1b@h/d", "control character", "%20"),
        ("postgresql://u:SECRET@X@h/d", "'@'", "%40"),
        ("postgresql://u:SECRET/X@h/d", "'/'", "%2F"),
        ("postgresql://u:1/SECRET@h/d", "'/'", "%2F"),
        ("postgresql://u:1?SECRET=1@h/d", "'?'", "%3F"),
        ("postgresql://u:SECRET#X@h/d", "'#'", "%23"),
        ("postgresql://u:SECRET%zz@h/d", "two hex digits", "%25"),
        ("postgresql://u:SECRET%@h/d", "two hex digits", "%25"),
        ("postgresql://u:SECRET%00@h/d", "%00", "%25"),
        ("postgresql://u:SECRET%ff@h/d", "not UTF-8", "%25"),
        ("postgresql://u:SECRET", "port", "IPv6"),
        ("postgresql://h:99999/d", "port", "IPv6"),
        ("postgresql://::1/d", "port", "[::1]"),
        ("postgresql://[::1/d", "bracket", "[::1]"),
        ("postgresql://[::1]x/d", "bracket", "[::1]"),
        ("postgresql://h/a/b", "database name", "%2F"),
        ("postgresql://h/d#SECRET", "'#'", "%23"),
        ("postgresql://h/d?password=SECRET&X=1", "no parameter", "%26"),
        ("postgresql://h/d?SE%20CRET=1", "no parameter", "%26"),
        ("postgresql://u:SECRET@a,b/d?port=1,2,3", "3 ports do not fit 2 hosts", "one for each"),
        ("host=postgresql://u:SECRET@h/d", "whole connection string", "%40"),
        ("host=u:SECRET@h", "'@'", "%40"),
        ("dbname=postgresql://u:SECRET@h/d", "whole URI", "URI"),
        ("password=X SECRET=1 host=h", "no parameter", "single quotes"),
        ("password=X SECRET host=h", "neither", "single quotes"),
        ("password='SECRET host=h", "no end", "single quotes"),
        ("=SECRET", "no parameter", "single quotes"),
        ("pasword=SECRET", "unknown connection parameter pasword", "password"),
        ("host=h port=SECRET", "port", "IPv6"),
        ("host=\0SECRET", "not UTF-8", "postgresql://"),
        ("host=\udcffSECRET", "not UTF-8", "postgresql://"),
    ],
)
def test_bad_text_is_refused_without_its_password(text: str, message: str, hint: str) -> None:
    error = refusal(text)
    assert message in error.message
    assert hint in error.hint
    everything = "".join(traceback.format_exception(error)) + error.hint + repr(pickle.dumps(error))
    assert "SECRET" not in everything
    assert "X" not in error.message


@settings(max_examples=500)
@given(st.text())
def test_arbitrary_text_raises_nothing_else(text: str) -> None:
    try:
        made = read(text)
    except errors.ConfigurationError:
        return
    assert parsed(made.conninfo) is not None


PIECES = st.lists(st.sampled_from("@:/?#%&='\\ ,[]\n\0é%41") | st.just("="), min_size=0, max_size=4)


FORMS = [
    "postgresql://u:{}@host:1/db",
    "postgres://u:{}@host/db?schema=x&sslmode=require",
    "postgresql://u:{}@[::1]:1,b/db",
    "postgresql://host/db?password={}",
    "postgresql://host/db?password={}&connect_timeout=1",
    "host=h password={}",
    "password={} host=h",
    "password='{}' host=h",
    "mysql://u:{}@host/db",
    "u:{}@host",
]


@settings(max_examples=500)
@given(PIECES, PIECES, st.sampled_from(FORMS))
def test_no_piece_of_a_raw_password_is_ever_shown(left: list[str], right: list[str], form: str) -> None:
    text = form.format("".join([*left, "Alpha7", *right, "Beta9"]))
    try:
        made = read(text)
    except errors.ConfigurationError as error:
        shown = "".join(traceback.format_exception(error)) + error.message + error.hint
    else:
        shown = made.label + repr(made)
    assert "Alpha7" not in shown
    assert "Beta9" not in shown


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("postgresql://u:p@h/d", True),
        ("host=h sslpassword=x", True),
        ("postgresql://u@h/d", False),
        ("host=h password=''", False),
        ("service=x", False),
    ],
)
def test_secrets_in_the_text_are_noticed(text: str, secret: bool) -> None:
    assert addresses.has_secret(read(text)) is secret
