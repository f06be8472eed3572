"""The options that several commands share, each with its environment variable.

Imports typer and settings' names only. An option that was not given is None, so that the file and
the defaults can speak (`settings.load`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

PREFIX = "MISHIKA_MIGRATE_"


def option(flag: str, *more: str, help: str, **extra: Any) -> Any:
    """A typer option whose twin in the environment follows from its name."""
    variable = PREFIX + flag.partition("/")[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(flag, *more, help=help, envvar=variable, show_default=False, **extra)


SERVERS = "Servers"
TABLES = "Which tables"
RUN = "How it runs"
FACE = "What you see"

Source = Annotated[
    str | None,
    option(
        "--source",
        metavar="URL",
        help="Where the rows are: a Postgres URL (the proxy's DATABASE_URL works), key=value or service=NAME.",
        rich_help_panel=SERVERS,
    ),
]
Target = Annotated[
    str | None,
    option("--target", metavar="URL", help="Where they go, in the same forms.", rich_help_panel=SERVERS),
]
ProxyConfig = Annotated[
    Path | None,
    option(
        "--proxy-config",
        metavar="FILE",
        help="The proxy's own proxy_config.yaml: names the source and explains what its settings imply.",
        rich_help_panel=SERVERS,
    ),
]
Config = Annotated[
    Path | None,
    option(
        "--config",
        metavar="FILE",
        help="Settings instead of ./mishika-migrate.yaml.",
        rich_help_panel=SERVERS,
    ),
]
Matrix = Annotated[
    Path | None,
    option("--matrix", metavar="FILE", help="Another matrix than the packaged one.", rich_help_panel=TABLES),
]
SpendLogs = Annotated[
    bool | None,
    option(
        "--include-spendlogs/--no-include-spendlogs",
        help="Also the log of every request: history on the UI.",
        rich_help_panel=TABLES,
    ),
]
ErrorLogs = Annotated[
    bool | None,
    option(
        "--include-errorlogs/--no-include-errorlogs",
        help="Also the log of failed requests: history on the UI.",
        rich_help_panel=TABLES,
    ),
]
Usage = Annotated[
    bool | None,
    option(
        "--include-usage/--no-include-usage",
        help="Also the daily sums that the Usage page reads.",
        rich_help_panel=TABLES,
    ),
]
AuditLogs = Annotated[
    bool | None,
    option(
        "--include-auditlogs/--no-include-auditlogs",
        help="Also who changed what.",
        rich_help_panel=TABLES,
    ),
]
Include = Annotated[
    list[str] | None,
    option("--include", metavar="NAME", help="Also this table or group; repeat it.", rich_help_panel=TABLES),
]
Exclude = Annotated[
    list[str] | None,
    option("--exclude", metavar="NAME", help="Not this table or group; repeat it.", rich_help_panel=TABLES),
]
Only = Annotated[
    list[str] | None,
    option(
        "--only",
        metavar="NAME",
        help="This table or group and nothing else; repeat it. For history, after the keys have moved.",
        rich_help_panel=TABLES,
    ),
]
Everything = Annotated[
    bool | None,
    option(
        "--everything/--no-everything",
        help="All tables but those that the matrix never copies.",
        rich_help_panel=TABLES,
    ),
]
Jobs = Annotated[
    int | None,
    option("--jobs", "-j", metavar="N", help="Steps at once (4).", rich_help_panel=RUN),
]
SpendLogsSince = Annotated[
    str | None,
    option(
        "--spendlogs-since", metavar="DATE", help="Of the request log only from this day on.", rich_help_panel=TABLES
    ),
]
SpendLogsLast = Annotated[
    str | None,
    option(
        "--spendlogs-last", metavar="TIME", help="Of the request log only so much: 90d, 12h.", rich_help_panel=TABLES
    ),
]
SpendLogsBefore = Annotated[
    str | None,
    option("--spendlogs-before", metavar="DATE", help="Of the request log only what is older.", rich_help_panel=TABLES),
]
DeleteExtra = Annotated[
    bool | None,
    option(
        "--delete-extra/--no-delete-extra",
        help="Also remove rows of history that only the target has.",
        rich_help_panel=RUN,
    ),
]
Every = Annotated[
    str | None,
    option("--every", metavar="TIME", help="Repeat after so long, until Ctrl-C: 60s.", rich_help_panel=RUN),
]
OverwriteLiveTarget = Annotated[
    bool | None,
    option(
        "--overwrite-live-target/--no-overwrite-live-target",
        help="Go on although the target looks as if it were in use: what has happened there is lost.",
        rich_help_panel=RUN,
    ),
]
Watch = Annotated[
    bool | None,
    option(
        "--watch/--no-watch",
        help="Look again and again, until Ctrl-C, at what moves.",
        rich_help_panel=RUN,
    ),
]
Interval = Annotated[
    str | None,
    option("--interval", metavar="TIME", help="How often --watch looks (2s).", rich_help_panel=RUN),
]
UntilQuiet = Annotated[
    str | None,
    option(
        "--until-quiet",
        metavar="TIME",
        help="End --watch with 0 as soon as nothing has moved for so long: 30s.",
        rich_help_panel=RUN,
    ),
]
DryRun = Annotated[
    bool | None,
    option("--dry-run/--no-dry-run", help="Print the plan, write nothing.", rich_help_panel=RUN),
]
LockTimeout = Annotated[
    str | None,
    option(
        "--lock-timeout",
        metavar="TIME",
        help="How long to wait for a table's lock (10s).",
        rich_help_panel=RUN,
    ),
]
Yes = Annotated[
    bool | None,
    option("--yes/--no-yes", "-y", help="Answer yes; needed without a terminal.", rich_help_panel=RUN),
]
Json = Annotated[
    bool | None,
    option("--json/--no-json", help="JSON lines on stdout, nothing else.", rich_help_panel=FACE),
]
Quiet = Annotated[
    bool | None,
    option("--quiet/--no-quiet", "-q", help="No progress.", rich_help_panel=FACE),
]
Verbose = Annotated[
    bool | None,
    option("--verbose/--no-verbose", "-v", help="Tracebacks of unexpected errors.", rich_help_panel=FACE),
]
