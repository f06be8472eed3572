"""docs/demo.svg, from a real terminal: `python -m tests.cli.picture`. Needs tmux.

The program runs in a window of tmux, so the picture is what a person sees, colours and all; rich
only draws it.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

PICTURE = Path(__file__).parents[2] / "docs" / "demo.svg"

_COLUMNS, _ROWS = 100, 60
_SECONDS = 120.0
_DONE = "ended-with-"


def main() -> None:
    lines = seen("mishika-migrate demo", [sys.executable, "-m", "mishika_migrate", "demo"])
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("\n".join(lines)), soft_wrap=True)
    svg = console.export_svg(title="mishika-migrate", theme=MONOKAI, unique_id="demo")
    # The fonts would come from somebody else's server; the reader's own monospace will do.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S), encoding="utf-8")


def seen(shown: str, arguments: list[str]) -> list[str]:
    """The window's lines, with their colours, after the program ended; its prompt shows `shown`."""
    tmux = ["tmux", "-L", "mishika-picture", "-f", "/dev/null"]
    script = '"$@"; echo ended-with-$?; exec sleep 600'
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", str(_COLUMNS), "-y", str(_ROWS), "sh", "-c", script, "sh", *arguments],
        check=True,
    )
    try:
        deadline = time.monotonic() + _SECONDS
        while _DONE not in (screen := _printed([*tmux, "capture-pane", "-p", "-e"])):
            if time.monotonic() > deadline:
                sys.exit(f"not done after {_SECONDS:.0f} s:\n{screen}")
            time.sleep(0.2)
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
    lines, _, status = screen.partition(_DONE)
    if not status.startswith("0"):
        sys.exit(f"the program failed:\n{screen}")
    return [f"\x1b[1;32m$\x1b[0m {shown}", *lines.rstrip("\n").split("\n")]


def _printed(arguments: list[str]) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, encoding="utf-8").stdout


if __name__ == "__main__":
    main()
