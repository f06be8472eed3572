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


_SERVERS = "Servers"
_TABLES = "Which tables"
_RUN = "How it runs"
_PROOF = "What is proven"
_FACE = "What you see"

Source = Annotated[
    str | None,
    option(
        "--source",
        metavar="URL",
        help="Where the rows are: a Postgres URL (the proxy's DATABASE_URL works), key=value or service=NAME.",
        rich_help_panel=_SERVERS,
    ),
]
Target = Annotated[
    str | None,
    option("--target", metavar="URL", help="Where they go, in the same forms.", rich_help_panel=_SERVERS),
]
ProxyConfig = Annotated[
    Path | None,
    option(
        "--proxy-config",
        metavar="FILE",
        help="The proxy's own proxy_config.yaml: names the source and explains what its settings imply.",
        rich_help_panel=_SERVERS,
    ),
]
Config = Annotated[
    Path | None,
    option(
        "--config",
        metavar="FILE",
        help="Settings instead of ./mishika-migrate.yaml.",
        rich_help_panel=_SERVERS,
    ),
]
Matrix = Annotated[
    Path | None,
    option("--matrix", metavar="FILE", help="Another matrix than the packaged one.", rich_help_panel=_TABLES),
]
SpendLogs = Annotated[
    bool | None,
    option(
        "--include-spendlogs/--no-include-spendlogs",
        help="Also the log of every request: history on the UI.",
        rich_help_panel=_TABLES,
    ),
]
ErrorLogs = Annotated[
    bool | None,
    option(
        "--include-errorlogs/--no-include-errorlogs",
        help="Also the log of failed requests: history on the UI.",
        rich_help_panel=_TABLES,
    ),
]
Usage = Annotated[
    bool | None,
    option(
        "--include-usage/--no-include-usage",
        help="Also the daily sums that the Usage page reads.",
        rich_help_panel=_TABLES,
    ),
]
AuditLogs = Annotated[
    bool | None,
    option(
        "--include-auditlogs/--no-include-auditlogs",
        help="Also who changed what.",
        rich_help_panel=_TABLES,
    ),
]
Include = Annotated[
    list[str] | None,
    option("--include", metavar="NAME", help="Also this table or group; repeat it.", rich_help_panel=_TABLES),
]
Exclude = Annotated[
    list[str] | None,
    option("--exclude", metavar="NAME", help="Not this table or group; repeat it.", rich_help_panel=_TABLES),
]
Only = Annotated[
    list[str] | None,
    option(
        "--only",
        metavar="NAME",
        help="This table or group and nothing else; repeat it. For history, after the keys have moved.",
        rich_help_panel=_TABLES,
    ),
]
OnExisting = Annotated[
    list[str] | None,
    option(
        "--on-existing",
        metavar="WHAT",
        help="What becomes of rows on the target: refuse (the copy does not begin), replace (they go), skip (they"
        " stay, new ones come) or update (as skip, and they become the source's). NAME=WHAT for one table or group;"
        " repeat it.",
        rich_help_panel=_TABLES,
    ),
]
Everything = Annotated[
    bool | None,
    option(
        "--everything/--no-everything",
        help="All tables but those that the matrix never copies.",
        rich_help_panel=_TABLES,
    ),
]
CreateSchema = Annotated[
    bool | None,
    option(
        "--create-schema/--no-create-schema",
        help="Create the source's schema on an empty target first (needs pg_dump).",
        rich_help_panel=_TABLES,
    ),
]
Jobs = Annotated[
    int | None,
    option("--jobs", "-j", metavar="N", help="Steps at once (4).", rich_help_panel=_RUN),
]
SpendLogsSince = Annotated[
    str | None,
    option(
        "--spendlogs-since", metavar="DATE", help="Of the request log only from this day on.", rich_help_panel=_TABLES
    ),
]
SpendLogsLast = Annotated[
    str | None,
    option(
        "--spendlogs-last", metavar="TIME", help="Of the request log only so much: 90d, 12h.", rich_help_panel=_TABLES
    ),
]
SpendLogsBefore = Annotated[
    str | None,
    option(
        "--spendlogs-before", metavar="DATE", help="Of the request log only what is older.", rich_help_panel=_TABLES
    ),
]
BatchSize = Annotated[
    str | None,
    option("--batch-size", metavar="SIZE", help="How much of history one step copies (64MB).", rich_help_panel=_RUN),
]
Order = Annotated[
    str | None,
    option(
        "--order",
        metavar="ORDER",
        help="Which part of history goes first: size (the largest tables) or newest (a table's end too).",
        rich_help_panel=_RUN,
    ),
]
DeferIndexes = Annotated[
    str | None,
    option(
        "--defer-indexes",
        metavar="WHEN",
        help="Build the indexes of history after its load: auto (an empty table, over 32 MB), always or never.",
        rich_help_panel=_RUN,
    ),
]
ToastCompression = Annotated[
    str | None,
    option(
        "--toast-compression",
        metavar="METHOD",
        help="How the target stores long values: auto (lz4 where it can), lz4, pglz or server (its own setting).",
        rich_help_panel=_RUN,
    ),
]
Executor = Annotated[
    str | None,
    option(
        "--executor",
        metavar="WHERE",
        help="Where steps run: threads, processes, or dask=ADDRESS for an existing Dask cluster (threads).",
        rich_help_panel=_RUN,
    ),
]
MaxRate = Annotated[
    str | None,
    option(
        "--max-rate",
        metavar="RATE",
        help="The most that all steps together copy, such as 50MB/s; `throttle` changes it.",
        rich_help_panel=_RUN,
    ),
]
PauseIfLag = Annotated[
    str | None,
    option(
        "--pause-if-lag",
        metavar="TIME",
        help="Wait while a standby of the source is further behind than this.",
        rich_help_panel=_RUN,
    ),
]
DeleteExtra = Annotated[
    bool | None,
    option(
        "--delete-extra/--no-delete-extra",
        help="Also remove rows of history that only the target has.",
        rich_help_panel=_RUN,
    ),
]
Every = Annotated[
    str | None,
    option("--every", metavar="TIME", help="Repeat after so long, until Ctrl-C: 60s.", rich_help_panel=_RUN),
]
OverwriteLiveTarget = Annotated[
    bool | None,
    option(
        "--overwrite-live-target/--no-overwrite-live-target",
        help="Go on although the target looks as if it were in use: what has happened there is lost.",
        rich_help_panel=_RUN,
    ),
]
Watch = Annotated[
    bool | None,
    option(
        "--watch/--no-watch",
        help="Look again and again, until Ctrl-C, at what moves.",
        rich_help_panel=_RUN,
    ),
]
Interval = Annotated[
    str | None,
    option("--interval", metavar="TIME", help="How often --watch looks (2s).", rich_help_panel=_RUN),
]
UntilQuiet = Annotated[
    str | None,
    option(
        "--until-quiet",
        metavar="TIME",
        help="End --watch with 0 as soon as nothing has moved for so long: 30s.",
        rich_help_panel=_RUN,
    ),
]
DryRun = Annotated[
    bool | None,
    option("--dry-run/--no-dry-run", help="Print the plan, write nothing.", rich_help_panel=_RUN),
]
Resume = Annotated[
    bool | None,
    option("--resume/--no-resume", help="Continue the target's unfinished run.", rich_help_panel=_RUN),
]
Retries = Annotated[
    int | None,
    option(
        "--retries",
        metavar="N",
        help="Attempts of one step (5); those that find a server away do not count.",
        rich_help_panel=_RUN,
    ),
]
RetrySeconds = Annotated[
    str | None,
    option(
        "--retry-seconds",
        metavar="TIME",
        help="How long after its first failure a step is tried again (2min).",
        rich_help_panel=_RUN,
    ),
]
LockTimeout = Annotated[
    str | None,
    option(
        "--lock-timeout",
        metavar="TIME",
        help="How long to wait for a table's lock (10s).",
        rich_help_panel=_RUN,
    ),
]
Verify = Annotated[
    bool | None,
    option(
        "--verify/--no-verify",
        help="Compare all rows and keys with the snapshot that was copied before it is released (on).",
        rich_help_panel=_RUN,
    ),
]
Level = Annotated[
    str | None,
    option(
        "--level",
        metavar="LEVEL",
        help="How deep to look: content, keys (which rows there are) or counts (content).",
        rich_help_panel=_PROOF,
    ),
]
Hash = Annotated[
    str | None,
    option(
        "--hash",
        metavar="HASH",
        help="fast, or exact: slower, and blind to nothing (fast).",
        rich_help_panel=_PROOF,
    ),
]
Sample = Annotated[
    str | None,
    option(
        "--sample",
        metavar="SHARE",
        help="Look at a share of the rows only, such as 1%; reported as sampled.",
        rich_help_panel=_PROOF,
    ),
]
MaxDifferences = Annotated[
    int | None,
    option("--max-differences", metavar="N", help="List so many differences a table (100).", rich_help_panel=_PROOF),
]
Snapshot = Annotated[
    str | None,
    option(
        "--snapshot",
        metavar="NAME",
        help="Read the source in this snapshot, exported by a session that is still open.",
        rich_help_panel=_PROOF,
    ),
]
Fenced = Annotated[
    bool | None,
    option(
        "--fenced/--no-fenced",
        help="Nobody writes to the source any more: differences in spend are errors too.",
        rich_help_panel=_PROOF,
    ),
]
Recheck = Annotated[
    int | None,
    option(
        "--recheck",
        metavar="N",
        help="Read what differs again, up to N times: what settles was in flight.",
        rich_help_panel=_PROOF,
    ),
]
RecheckWait = Annotated[
    str | None,
    option("--recheck-wait", metavar="TIME", help="How long before each time (5s).", rich_help_panel=_PROOF),
]
ViewTimeout = Annotated[
    str | None,
    option(
        "--view-timeout",
        metavar="TIME",
        help="How long a view may take to answer before it counts as unchecked (30s).",
        rich_help_panel=_PROOF,
    ),
]
AllowUnchecked = Annotated[
    list[str] | None,
    option(
        "--allow-unchecked",
        metavar="CHECK",
        help="End with 0 although this check could not be made, such as decryption; repeat it.",
        rich_help_panel=_PROOF,
    ),
]
Report = Annotated[
    list[Path] | None,
    option(
        "--report",
        metavar="FILE",
        help="Write the result there too, as .json, .md or .xml (JUnit); repeat it.",
        rich_help_panel=_FACE,
    ),
]
SampleKeys = Annotated[
    str | None,
    option(
        "--sample-keys",
        metavar="FILE",
        help="Keys of yours (sk-…), one a line, - for stdin: each gets a verdict. Never stored, never shown.",
        rich_help_panel=_PROOF,
    ),
]
SaltKeyEnv = Annotated[
    str | None,
    option(
        "--salt-key-env",
        metavar="NAME",
        help="The variable that holds the target's MISHIKALLM_SALT_KEY: stored credentials are tried with it.",
        rich_help_panel=_PROOF,
    ),
]
MasterKeyEnv = Annotated[
    str | None,
    option(
        "--master-key-env",
        metavar="NAME",
        help="The variable that holds the proxy's master key.",
        rich_help_panel=_PROOF,
    ),
]
Proxy = Annotated[
    str | None,
    option("--proxy", metavar="URL", help="A running proxy on the target.", rich_help_panel=_SERVERS),
]
Follow = Annotated[
    bool | None,
    option(
        "--follow/--no-follow",
        help="Afterwards the target follows the source, by Postgres' own replication, until the cutover.",
        rich_help_panel=_RUN,
    ),
]
SourceFromTarget = Annotated[
    str | None,
    option(
        "--source-from-target",
        metavar="URL",
        help="The source as the target's server reaches it, where that is another address.",
        rich_help_panel=_SERVERS,
    ),
]
TargetFromSource = Annotated[
    str | None,
    option(
        "--target-from-source",
        metavar="URL",
        help="The target as the source's server reaches it, for the way back.",
        rich_help_panel=_SERVERS,
    ),
]
SwitchMethod = Annotated[
    str | None,
    option(
        "--method",
        metavar="METHOD",
        help="How the last changes go: replication, sync, or auto: replication where the target follows (auto).",
        rich_help_panel=_RUN,
    ),
]
OnSwitch = Annotated[
    str | None,
    option(
        "--on-switch",
        metavar="COMMAND",
        help="What sends traffic to the new side, run by the shell behind the fence; wait waits for Enter.",
        rich_help_panel=_RUN,
    ),
]
Timeout = Annotated[
    str | None,
    option(
        "--timeout",
        metavar="TIME",
        help="From fence to switch; then the fence is lifted and nothing was switched (30s).",
        rich_help_panel=_RUN,
    ),
]
MaxLag = Annotated[
    str | None,
    option(
        "--max-lag",
        metavar="TIME",
        help="The gate is closed while a change takes longer to the other side (5s for a switch).",
        rich_help_panel=_RUN,
    ),
]
Margin = Annotated[
    int | None,
    option(
        "--margin", metavar="N", help="Sequences go on so far ahead of the old side's (1000).", rich_help_panel=_RUN
    ),
]
WayBack = Annotated[
    bool | None,
    option(
        "--way-back/--no-way-back",
        help="Let the old side follow the new one before traffic moves, so that rollback loses nothing.",
        rich_help_panel=_RUN,
    ),
]
Abort = Annotated[
    bool | None,
    option(
        "--abort/--no-abort",
        help="Give up what a killed cutover has left: lift its fence.",
        rich_help_panel=_RUN,
    ),
]
Lost = Annotated[
    str | None,
    option(
        "--lost",
        metavar="SIDE",
        help="source or target: that server is gone for good, and nothing is asked of it.",
        rich_help_panel=_RUN,
    ),
]
Yes = Annotated[
    bool | None,
    option("--yes/--no-yes", "-y", help="Answer yes; needed without a terminal.", rich_help_panel=_RUN),
]
Json = Annotated[
    bool | None,
    option("--json/--no-json", help="JSON lines on stdout, nothing else.", rich_help_panel=_FACE),
]
Quiet = Annotated[
    bool | None,
    option("--quiet/--no-quiet", "-q", help="No progress.", rich_help_panel=_FACE),
]
Verbose = Annotated[
    bool | None,
    option("--verbose/--no-verbose", "-v", help="Tracebacks of unexpected errors.", rich_help_panel=_FACE),
]
