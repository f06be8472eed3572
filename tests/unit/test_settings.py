"""Flags, environment, file and defaults, and what the proxy's own file adds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mishika_migrate import errors, model, settings

FILE = "mishika-migrate.yaml"


def write(directory: Path, text: str) -> None:
    (directory / FILE).write_text(text)
    (directory / FILE).chmod(0o600)


def load(directory: Path, environ: Mapping[str, str] = MappingProxyType({}), **given: Any) -> settings.Settings:
    return settings.load(given, environ=environ, directory=directory)


def refusal(
    directory: Path, environ: Mapping[str, str] = MappingProxyType({}), **given: Any
) -> errors.ConfigurationError:
    with pytest.raises(errors.ConfigurationError) as caught:
        load(directory, environ, **given)
    assert caught.value.hint
    return caught.value


def label(endpoint: model.Endpoint | None) -> str | None:
    return endpoint.label if endpoint else None


# -- precedence -----------------------------------------------------------------------------------


def test_nothing_said_gives_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path) == settings.Settings()
    assert load(tmp_path, source=None, jobs=None, include=None, everything=None) == settings.Settings()


def test_the_file_says_every_option(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
source: postgresql://u@old/db
target: postgresql://u@new/db?schema=proxy
matrix: tables.yaml
include-spendlogs: true
include_errorlogs: true
include-usage: true
include-auditlogs: false
include: [A, B, A]
exclude: [C]
create-schema: true
jobs: 8
dry-run: true
resume: true
"yes": true
json: true
quiet: true
verbose: true
retries: 3
retry-seconds: 2min
lock_timeout: 500ms
""",
    )
    made = load(tmp_path)
    assert label(made.source) == "u@old:5432/db"
    assert made.target and made.target.schema == "proxy"
    assert made.matrix == tmp_path / "tables.yaml"
    assert made.groups == {"spendlogs", "errorlogs", "usage"}
    assert made.include == ("A", "B")
    assert made.exclude == ("C",)
    assert all([made.create_schema, made.dry_run, made.resume, made.yes, made.json, made.quiet, made.verbose])
    assert (made.jobs, made.retries, made.retry_seconds, made.lock_timeout) == (8, 3, 120.0, 0.5)
    assert made.warnings == ()


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    text = "source: host=a\ninclude: [A]\njobs: 8\ninclude-usage: true\nmatrix: from-file.yaml\n"
    write(tmp_path, text)
    made = load(
        tmp_path,
        source="host=b user=u",
        include=["B"],
        jobs=2,
        include_usage=False,
        matrix=Path("from-flag.yaml"),
    )
    assert label(made.source) == "u@b:5432/u"
    assert (made.include, made.jobs, made.groups) == (("B",), 2, frozenset())
    assert made.matrix == Path("from-flag.yaml")


def test_an_empty_list_of_a_flag_is_not_given(tmp_path: Path) -> None:
    write(tmp_path, "include: [A]\n")
    assert load(tmp_path, include=[]).include == ("A",)


def test_a_named_file_replaces_the_one_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("jobs: 2\n")
    (tmp_path / FILE).write_text("jobs: 3\n")
    made = settings.load({}, environ={}, config=tmp_path / "other.yaml", directory=tmp_path)
    assert made.jobs == 2


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigurationError, match="no such file"):
        settings.load({}, environ={}, config=tmp_path / "missing.yaml", directory=tmp_path)


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / FILE).symlink_to(tmp_path / "gone.yaml")
    assert f"{FILE}: a link to a file that does not exist" in refusal(tmp_path).message


def test_a_folder_that_cannot_be_looked_into_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(errors.ConfigurationError):
        settings.load({}, environ={}, directory=tmp_path)


# -- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("jobs: 4\njobz: 4\n", f"{FILE}:2: unknown key jobz", "jobs"),
        ("include_spend-logs: true\n", f"{FILE}:1: unknown key include_spend-logs", "include-spendlogs"),
        ("jobs: 4\nhunter2SECRET: 4\n", f"{FILE}:2: an unknown key", "jobs"),
        ("include: [u:SECRET@h]\nexclude: [u:SECRET@h]\n", f"{FILE}:2: a table is in both", "one of the two"),
        ("dry-run: true\ndry_run: true\n", f"{FILE}:2: dry_run and dry-run are the same key", "Keep one"),
        ("\njobs: 0\n", f"{FILE}:2: jobs must be a whole number from 1 to 64", "1 to 64"),
        ("jobs: 65\n", f"{FILE}:1: jobs must be", "64"),
        ("jobs: true\n", f"{FILE}:1: jobs must be", "64"),
        ("jobs: 2.5\n", f"{FILE}:1: jobs must be", "64"),
        ("jobs:\n", f"{FILE}:1: jobs must be", "64"),
        ("retries: 101\n", f"{FILE}:1: retries must be", "100"),
        ("'yes': sure\n", f"{FILE}:1: yes must be true or false", "true or false"),
        ("jobs: 1\nyes: true\n", f"{FILE}:2: a bare yes is no key", '"yes": true'),
        ("include: A\n", f"{FILE}:1: include must be a list", "list"),
        ("include: [1]\n", f"{FILE}:1: include must be a list", "list"),
        ("exclude: ['']\n", f"{FILE}:1: exclude must be a list", "list"),
        ("lock-timeout: -1\n", f"{FILE}:1: lock-timeout must be", "500ms"),
        ("lock-timeout: .nan\n", f"{FILE}:1: lock-timeout must be", "500ms"),
        ("lock-timeout: .inf\n", f"{FILE}:1: lock-timeout must be", "500ms"),
        ("retry-seconds: 5 days\n", f"{FILE}:1: retry-seconds must be", "500ms"),
        ("retry-seconds: true\n", f"{FILE}:1: retry-seconds must be", "500ms"),
        ("retry-seconds: 25h\n", f"{FILE}:1: retry-seconds must be", "500ms"),
        ("matrix: 5\n", f"{FILE}:1: matrix must be the path", "path"),
        ("matrix: ''\n", f"{FILE}:1: matrix must be the path", "path"),
        ("source: 5\n", f"{FILE}:1: source must be a connection string", "connection string"),
        ("target: mysql://u:SECRET@h/d\n", f"{FILE}:1: the URI does not start", "Postgres"),
        ("jobs: 1\nexclude: [B, A]\ninclude: [A]\n", f"{FILE}:2: A is in both", "one of the two"),
        ("everything: true\ninclude: [A]\n", f"{FILE}:2: include and everything", "Leave include out"),
        ("- jobs\n", f"{FILE}:1: ", ""),
        ("1: 2\n", f"{FILE}:1: ", ""),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str, hint: str) -> None:
    write(tmp_path, text)
    error = refusal(tmp_path)
    assert error.message.startswith(str(tmp_path))
    assert message in error.message
    assert hint in error.hint
    assert "SECRET" not in error.message + error.hint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"jobs": 0}, "--jobs: jobs must be a whole number from 1 to 64"),
        ({"lock_timeout": "soon"}, "--lock-timeout: lock-timeout must be"),
        ({"dry_run": "yes"}, "--dry-run: dry-run must be true or false"),
        ({"include": ["A"], "exclude": ["A"]}, "--exclude: A is in both"),
        ({"include": ["A"], "everything": True}, "--include: include and everything"),
        ({"source": ""}, "--source: the connection string is empty"),
        ({"target": "host=h x=1"}, "--target: unknown connection parameter x"),
        ({"job": 1}, "--job: no such option"),
    ],
)
def test_a_bad_flag_is_named(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    assert refusal(tmp_path, **given).message.startswith(message)


def test_a_bad_environment_variable_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path, environ={"MISHIKA_MIGRATE_JOBS": "99"}, jobs=99)
    assert error.message.startswith("MISHIKA_MIGRATE_JOBS: ")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(10, 10.0), (0, 0.0), (1.5, 1.5), ("10s", 10.0), ("250 ms", 0.25), ("2min", 120.0), ("1h", 3600)],
)  # fmt: skip
def test_times_are_numbers_or_have_a_unit(tmp_path: Path, value: object, seconds: float) -> None:
    assert load(tmp_path, lock_timeout=value).lock_timeout == seconds


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.none())


@given(st.dictionaries(st.sampled_from(settings.NAMES), VALUES))
def test_arbitrary_values_raise_nothing_else(given: dict[str, object]) -> None:
    try:
        settings.load(given, environ={}, directory=Path("/nonexistent"))
    except errors.ConfigurationError as error:
        assert error.message


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_needed_endpoint_says_how_to_give_it(tmp_path: Path, role: str) -> None:
    made = load(tmp_path)
    with pytest.raises(errors.ConfigurationError, match=f"no {role} given") as caught:
        getattr(made, f"need_{role}")()
    for word in (f"--{role}", f"MISHIKA_MIGRATE_{role.upper()}", FILE):
        assert word in caught.value.hint
    said: dict[str, Any] = {role: "host=h user=u"}
    assert getattr(load(tmp_path, **said), f"need_{role}")().label == "u@h:5432/u"


# -- passwords that lie open ----------------------------------------------------------------------

SECRET = "postgresql://u:hunter22@h/d"


def test_a_password_in_a_flag_draws_a_warning(tmp_path: Path) -> None:
    (warning,) = load(tmp_path, source=SECRET, target="host=h").warnings
    assert "--source" in warning
    assert "MISHIKA_MIGRATE_SOURCE" in warning
    assert "hunter22" not in warning


def test_a_password_in_the_environment_draws_none(tmp_path: Path) -> None:
    made = load(tmp_path, environ={"MISHIKA_MIGRATE_SOURCE": SECRET}, source=SECRET)
    assert made.warnings == ()
    assert "hunter22" not in repr(made)


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o700, False), (0o640, True), (0o604, True)])
def test_a_password_in_a_file_for_all_draws_a_warning(tmp_path: Path, mode: int, warns: bool) -> None:
    (tmp_path / FILE).write_text(f"jobs: 2\ntarget: {SECRET}\n")
    (tmp_path / FILE).chmod(mode)
    warnings = load(tmp_path).warnings
    assert len(warnings) == warns
    for warning in warnings:
        assert f"{FILE}:2" in warning
        assert "chmod 600" in warning
        assert "hunter22" not in warning


def test_an_open_file_without_a_password_draws_none(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(f"source: host=h\ntarget: {SECRET}\n")
    (tmp_path / FILE).chmod(0o644)
    environ = {"MISHIKA_MIGRATE_TARGET": "host=h"}
    assert load(tmp_path, environ=environ, target="host=h").warnings == ()


# -- the proxy's own file -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"DATABASE_URL": "postgresql://u@h/d"}, "u@h:5432/d"),
        (
            {
                "DATABASE_USERNAME": "a", "DATABASE_PASSWORD": "b", "DATABASE_HOST": "c:1",
                "DATABASE_NAME": "e", "DATABASE_URL": "postgresql://u@h/d",
            },
            "a@c:1/e",
        ),
        ({"DATABASE_USERNAME": "a", "DATABASE_URL": "postgresql://u@h/d"}, "u@h:5432/d"),
    ],
)  # fmt: skip
def test_a_file_without_a_url_leaves_it_to_the_proxys_variables(
    tmp_path: Path, environ: dict[str, str], expected: str
) -> None:
    (tmp_path / "p.yaml").write_text("general_settings: {}\n")
    assert label(load(tmp_path, environ=environ, proxy_config=tmp_path / "p.yaml").source) == expected


def test_without_a_proxy_file_its_variables_mean_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, environ={"DATABASE_URL": SECRET}).source is None


def test_the_proxys_database_is_the_source_when_nothing_else_is(tmp_path: Path) -> None:
    url = "postgresql://u:hunter22@old/db?connection_limit=10"
    text = f"general_settings:\n  database_url: {url}\n  disable_spend_logs: true\n"
    (tmp_path / "proxy_config.yaml").write_text(text)
    write(tmp_path, "proxy-config: proxy_config.yaml\n")
    made = load(tmp_path)
    assert label(made.source) == "u@old:5432/db"
    assert made.proxy and made.proxy.disable_spend_logs
    assert label(load(tmp_path, source="host=h user=u").source) == "u@h:5432/u"
    write(tmp_path, "source: host=f user=u\nproxy-config: proxy_config.yaml\n")
    assert label(load(tmp_path).source) == "u@f:5432/u"


def test_a_proxy_elsewhere_does_not_stand_in_the_way_of_a_named_source(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("general_settings: {database_url: os.environ/URL}\n")
    assert load(tmp_path, proxy_config=str(tmp_path / "p.yaml"), source="host=h user=u").source
    assert "variable URL" in refusal(tmp_path, proxy_config=str(tmp_path / "p.yaml")).message


def test_a_bad_url_of_the_proxy_names_its_place_and_keeps_its_password(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("general_settings:\n  database_url: postgresql://u:hunter22@x@h/d\n")
    error = refusal(tmp_path, proxy_config=tmp_path / "p.yaml")
    assert "p.yaml:2: database_url: " in error.message
    assert "hunter22" not in error.message + error.hint


@pytest.mark.parametrize(
    ("text", "rate"),
    [("50MB/s", 50_000_000), ("50 mb", 50_000_000), ("1.5GB/s", 1_500_000_000), ("20kB/s", 20_000), ("1000", 1000)],
)
def test_a_rate_has_a_unit(tmp_path: Path, text: str, rate: int) -> None:
    assert load(tmp_path, max_rate=text).max_rate == rate
    write(tmp_path, f"max-rate: {text}\n")
    assert load(tmp_path).max_rate == rate


@pytest.mark.parametrize("text", ["fast", "0", "999", "2000GB/s", "50MB/min", "-1", "50 MB / s", "1e9"])
def test_what_is_no_rate_is_refused(tmp_path: Path, text: str) -> None:
    assert "such as 50MB/s" in refusal(tmp_path, max_rate=text).hint


def test_executor_and_lag_are_checked(tmp_path: Path) -> None:
    made = load(tmp_path, executor="dask=tcp://host:8786", pause_if_lag="500ms")
    assert (made.executor, made.pause_if_lag) == ("dask=tcp://host:8786", 0.5)
    assert (load(tmp_path).executor, load(tmp_path).pause_if_lag) == ("threads", None)
    for wrong in ("dask", "dask=", "spark", "dask=a b", "dask=foo"):
        assert "dask=ADDRESS" in refusal(tmp_path, executor=wrong).hint
    assert "500ms" in refusal(tmp_path, pause_if_lag="soon").hint


# -- rows on the target ---------------------------------------------------------------------------


def test_what_becomes_of_rows_on_the_target_is_said_for_all_tables_and_for_some(tmp_path: Path) -> None:
    found = load(tmp_path, on_existing=["skip", "SpendLogs=update", "a=b=replace", "skip"], order="newest")
    assert found.on_existing == (("", "skip"), ("SpendLogs", "update"), ("a=b", "replace"))
    assert found.order == "newest"
    write(tmp_path, "on-existing: [refuse, usage=skip]\norder: newest\n")
    assert load(tmp_path).on_existing == (("", "refuse"), ("usage", "skip"))
    write(tmp_path, "on_existing: update\n")
    assert load(tmp_path).on_existing == (("", "update"),)


@pytest.mark.parametrize("value", ["merge", "SpendLogs", "=skip", "SpendLogs=", "skip=SpendLogs", 7, True, "Skip", ""])
def test_other_words_for_rows_on_the_target_are_no_guess(value: object, tmp_path: Path) -> None:
    error = refusal(tmp_path, on_existing=[value])
    assert "--on-existing: on-existing must be refuse, replace, skip, update, or one of them" in error.message


@pytest.mark.parametrize("values", [["skip", "update"], ["SpendLogs=skip", "SpendLogs=replace"]])
def test_two_things_about_the_same_rows_are_an_error(values: list[str], tmp_path: Path) -> None:
    assert "on-existing says two things about" in refusal(tmp_path, on_existing=values).message
    assert "order must be one of size, newest" in refusal(tmp_path, order="oldest").message
    assert "lost must be one of source, target" in refusal(tmp_path, lost="both").message


@pytest.mark.parametrize("edge", ["0001-01-01T00:00+14:00", "9999-12-31T23:59-12:00"])
def test_moment_that_has_no_utc_is_refused(edge: str, tmp_path: Path) -> None:
    assert "a date or time" in refusal(tmp_path, spendlogs_since=edge).hint


def test_interval_without_anything_in_it_is_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path, spendlogs_since="2026-08-01", spendlogs_before="2026-07-01")
    assert "is not later than spendlogs-since" in told.message
