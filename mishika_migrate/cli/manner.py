"""The options of `copy` alone: what becomes of rows that are there, and how history is loaded.

Imports options only.
"""

from __future__ import annotations

from typing import Annotated

from mishika_migrate.cli import options

OnExisting = Annotated[
    list[str] | None,
    options.option(
        "--on-existing",
        metavar="WHAT",
        help="What becomes of rows on the target: refuse (the copy does not begin), replace (they go), skip (they"
        " stay, new ones come) or update (as skip, and they become the source's). NAME=WHAT for one table or group;"
        " repeat it.",
        rich_help_panel=options.TABLES,
    ),
]
CreateSchema = Annotated[
    bool | None,
    options.option(
        "--create-schema/--no-create-schema",
        help="Create the source's schema on an empty target first (needs pg_dump).",
        rich_help_panel=options.TABLES,
    ),
]
BatchSize = Annotated[
    str | None,
    options.option(
        "--batch-size", metavar="SIZE", help="How much of history one step copies (64MB).", rich_help_panel=options.RUN
    ),
]
Order = Annotated[
    str | None,
    options.option(
        "--order",
        metavar="ORDER",
        help="Which part of history goes first: size (the largest tables) or newest (a table's end too).",
        rich_help_panel=options.RUN,
    ),
]
DeferIndexes = Annotated[
    str | None,
    options.option(
        "--defer-indexes",
        metavar="WHEN",
        help="Build the indexes of history after its load: auto (an empty table, over 32 MB), always or never.",
        rich_help_panel=options.RUN,
    ),
]
ToastCompression = Annotated[
    str | None,
    options.option(
        "--toast-compression",
        metavar="METHOD",
        help="How the target stores long values: auto (lz4 where it can), lz4, pglz or server (its own setting).",
        rich_help_panel=options.RUN,
    ),
]
Executor = Annotated[
    str | None,
    options.option(
        "--executor",
        metavar="WHERE",
        help="Where steps run: threads, processes, or dask=ADDRESS for an existing Dask cluster (threads).",
        rich_help_panel=options.RUN,
    ),
]
MaxRate = Annotated[
    str | None,
    options.option(
        "--max-rate",
        metavar="RATE",
        help="The most that all steps together copy, such as 50MB/s; `throttle` changes it.",
        rich_help_panel=options.RUN,
    ),
]
PauseIfLag = Annotated[
    str | None,
    options.option(
        "--pause-if-lag",
        metavar="TIME",
        help="Wait while a standby of the source is further behind than this.",
        rich_help_panel=options.RUN,
    ),
]
Resume = Annotated[
    bool | None,
    options.option("--resume/--no-resume", help="Continue the target's unfinished run.", rich_help_panel=options.RUN),
]
Retries = Annotated[
    int | None,
    options.option(
        "--retries",
        metavar="N",
        help="Attempts of one step (5); those that find a server away do not count.",
        rich_help_panel=options.RUN,
    ),
]
RetrySeconds = Annotated[
    str | None,
    options.option(
        "--retry-seconds",
        metavar="TIME",
        help="How long after its first failure a step is tried again (2min).",
        rich_help_panel=options.RUN,
    ),
]
Verify = Annotated[
    bool | None,
    options.option(
        "--verify/--no-verify",
        help="Compare all rows and keys with the snapshot that was copied before it is released (on).",
        rich_help_panel=options.RUN,
    ),
]
Follow = Annotated[
    bool | None,
    options.option(
        "--follow/--no-follow",
        help="Afterwards the target follows the source, by Postgres' own replication, until the cutover.",
        rich_help_panel=options.RUN,
    ),
]
