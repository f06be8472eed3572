"""The options of following and switching: how the servers reach each other, and when traffic may move.

Imports options only.
"""

from __future__ import annotations

from typing import Annotated

from mishika_migrate.cli import options

SourceFromTarget = Annotated[
    str | None,
    options.option(
        "--source-from-target",
        metavar="URL",
        help="The source as the target's server reaches it, where that is another address.",
        rich_help_panel=options.SERVERS,
    ),
]
TargetFromSource = Annotated[
    str | None,
    options.option(
        "--target-from-source",
        metavar="URL",
        help="The target as the source's server reaches it, for the way back.",
        rich_help_panel=options.SERVERS,
    ),
]
SwitchMethod = Annotated[
    str | None,
    options.option(
        "--method",
        metavar="METHOD",
        help="How the last changes go: replication, sync, or auto: replication where the target follows (auto).",
        rich_help_panel=options.RUN,
    ),
]
OnSwitch = Annotated[
    str | None,
    options.option(
        "--on-switch",
        metavar="COMMAND",
        help="What sends traffic to the new side, run by the shell behind the fence; wait waits for Enter.",
        rich_help_panel=options.RUN,
    ),
]
Timeout = Annotated[
    str | None,
    options.option(
        "--timeout",
        metavar="TIME",
        help="From fence to switch; then the fence is lifted and nothing was switched (30s).",
        rich_help_panel=options.RUN,
    ),
]
MaxLag = Annotated[
    str | None,
    options.option(
        "--max-lag",
        metavar="TIME",
        help="The gate is closed while a change takes longer to the other side (5s for a switch).",
        rich_help_panel=options.RUN,
    ),
]
Margin = Annotated[
    int | None,
    options.option(
        "--margin",
        metavar="N",
        help="Sequences go on so far ahead of the old side's (1000).",
        rich_help_panel=options.RUN,
    ),
]
WayBack = Annotated[
    bool | None,
    options.option(
        "--way-back/--no-way-back",
        help="Let the old side follow the new one before traffic moves, so that rollback loses nothing.",
        rich_help_panel=options.RUN,
    ),
]
Abort = Annotated[
    bool | None,
    options.option(
        "--abort/--no-abort",
        help="Give up what a killed cutover has left: lift its fence.",
        rich_help_panel=options.RUN,
    ),
]
Lost = Annotated[
    str | None,
    options.option(
        "--lost",
        metavar="SIDE",
        help="source or target: that server is gone for good, and nothing is asked of it.",
        rich_help_panel=options.RUN,
    ),
]
