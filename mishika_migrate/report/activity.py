"""How fast both sides move, and who else is connected to them: `status --watch`.

Imports names, screen and the words.
"""

from __future__ import annotations

from collections.abc import Sequence

from mishika_migrate import model, words
from mishika_migrate.report import names, screen


class Page:
    """One line a look in files and pipes; on a terminal one a side, and a line a session when those have changed."""

    def __init__(self, to: screen.Screen) -> None:
        self._to = to
        self._shown: dict[str, list[str]] = {}

    def show(self, pulses: Sequence[model.Pulse]) -> None:
        if not self._to.on_terminal:
            screen.say(self._to, " | ".join(self._line(pulse) for pulse in pulses))
            return
        for pulse in pulses:
            screen.say(self._to, self._line(pulse), "green" if pulse.quiet else "yellow")
            self._sessions(pulse)

    def _line(self, pulse: model.Pulse) -> str:
        parts = [self._pace(pulse)]
        if pulse.visitors:
            number = screen.count(len(pulse.visitors), "other session")
            who = "" if self._to.on_terminal else f" ({', '.join(map(visitor, pulse.visitors))})"
            parts.append(f"{number}{who}")
        return f"{pulse.role} {pulse.server}: {'; '.join(parts)}"

    def _pace(self, pulse: model.Pulse) -> str:
        if pulse.quiet:
            # Cut, not rounded: it must not look longer than it is.
            return f"quiet for {screen.duration(int(pulse.quiet))}" if pulse.quiet >= 1 else "quiet for less than 1 s"
        if not pulse.rows and not pulse.spend:
            return (
                "a session has written and not committed" if any(each.writing for each in pulse.visitors) else "moves"
            )
        return ", ".join([*self._rows(pulse), *([f"spend {pulse.spend:+.6g}/s"] if pulse.spend else [])])

    def _rows(self, pulse: model.Pulse) -> list[str]:
        if not pulse.rows:
            return []
        short = names.Names(list(pulse.rows), unicode=self._to.unicode)
        fastest = sorted(pulse.rows.items(), key=lambda each: -each[1])
        each = ", ".join(f"{short.short(table)} {rate:.1f}" for table, rate in fastest)
        return [f"{sum(pulse.rows.values()):.1f} rows/s ({each})"]

    def _sessions(self, pulse: model.Pulse) -> None:
        now = [f"{each.pid} {each.user} {each.client}" for each in pulse.visitors]
        if now != self._shown.get(pulse.role, []):
            self._shown[pulse.role] = now
            for each in pulse.visitors:
                screen.say(self._to, f"    {visitor(each)}")


def visitor(who: model.Visitor) -> str:
    """`prisma as proxy from 10.0.0.7, idle, last query 3 s ago`; never a query."""
    name = words.masked(who.application) or "without a name"
    if who.hidden:
        return f"{name} as {who.user}, of which this role may see no more"
    asked = f", last query {screen.duration(max(who.asked, 0.0))} ago" if who.asked is not None else ""
    writing = ", has written and not committed" if who.writing else ""
    return f"{name} as {who.user} from {who.client}, {who.state or 'state unknown'}{asked}{writing}"
