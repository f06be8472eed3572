"""The options of `verify` and `probe`: how deep they look, by what they try keys, and where the result goes.

Imports options only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mishika_migrate.cli import options

_PROOF = "What is proven"

Level = Annotated[
    str | None,
    options.option(
        "--level",
        metavar="LEVEL",
        help="How deep to look: content, keys (which rows there are) or counts (content).",
        rich_help_panel=_PROOF,
    ),
]
Hash = Annotated[
    str | None,
    options.option(
        "--hash",
        metavar="HASH",
        help="fast, or exact: slower, and blind to nothing (fast).",
        rich_help_panel=_PROOF,
    ),
]
Sample = Annotated[
    str | None,
    options.option(
        "--sample",
        metavar="SHARE",
        help="Look at a share of the rows only, such as 1%; reported as sampled.",
        rich_help_panel=_PROOF,
    ),
]
MaxDifferences = Annotated[
    int | None,
    options.option(
        "--max-differences", metavar="N", help="List so many differences a table (100).", rich_help_panel=_PROOF
    ),
]
Snapshot = Annotated[
    str | None,
    options.option(
        "--snapshot",
        metavar="NAME",
        help="Read the source in this snapshot, exported by a session that is still open.",
        rich_help_panel=_PROOF,
    ),
]
Fenced = Annotated[
    bool | None,
    options.option(
        "--fenced/--no-fenced",
        help="Nobody writes to the source any more: differences in spend are errors too.",
        rich_help_panel=_PROOF,
    ),
]
Recheck = Annotated[
    int | None,
    options.option(
        "--recheck",
        metavar="N",
        help="Read what differs again, up to N times: what settles was in flight.",
        rich_help_panel=_PROOF,
    ),
]
RecheckWait = Annotated[
    str | None,
    options.option("--recheck-wait", metavar="TIME", help="How long before each time (5s).", rich_help_panel=_PROOF),
]
ViewTimeout = Annotated[
    str | None,
    options.option(
        "--view-timeout",
        metavar="TIME",
        help="How long a view may take to answer before it counts as unchecked (30s).",
        rich_help_panel=_PROOF,
    ),
]
AllowUnchecked = Annotated[
    list[str] | None,
    options.option(
        "--allow-unchecked",
        metavar="CHECK",
        help="End with 0 although this check could not be made, such as decryption; repeat it.",
        rich_help_panel=_PROOF,
    ),
]
Report = Annotated[
    list[Path] | None,
    options.option(
        "--report",
        metavar="FILE",
        help="Write the result there too, as .json, .md or .xml (JUnit); repeat it.",
        rich_help_panel=options.FACE,
    ),
]
SampleKeys = Annotated[
    str | None,
    options.option(
        "--sample-keys",
        metavar="FILE",
        help="Keys of yours (sk-…), one a line, - for stdin: each gets a verdict. Never stored, never shown.",
        rich_help_panel=_PROOF,
    ),
]
SaltKeyEnv = Annotated[
    str | None,
    options.option(
        "--salt-key-env",
        metavar="NAME",
        help="The variable that holds the target's MISHIKALLM_SALT_KEY: stored credentials are tried with it.",
        rich_help_panel=_PROOF,
    ),
]
MasterKeyEnv = Annotated[
    str | None,
    options.option(
        "--master-key-env",
        metavar="NAME",
        help="The variable that holds the proxy's master key.",
        rich_help_panel=_PROOF,
    ),
]
Proxy = Annotated[
    str | None,
    options.option("--proxy", metavar="URL", help="A running proxy on the target.", rich_help_panel=options.SERVERS),
]
