"""Numbers and names in sentences. Imports nothing."""

from __future__ import annotations

import re


def count(number: float, noun: str, plural: str = "") -> str:
    """`1 table`, `2 tables`, `3 indexes`."""
    return f"{number:,.0f} {noun if round(number) == 1 else plural or f'{noun}s'}"


def size(amount: float) -> str:
    """Bytes for people: 1,000-based, as disks and networks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 999.5:
            return f"{amount:,.0f} {unit}" if unit == "B" or amount >= 99.95 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


_KEY = re.compile(r"(sk-[\w-]{0,4})[\w-]{9,}")
_SECRET = re.compile(r"(sk-[\w-]{0,4})[\w-]{9,}|([0-9a-fA-F]{8})[0-9a-fA-F]{24,}")


def masked(text: str) -> str:
    """On one line, and without what looks like a whole key or token."""
    return _line(_SECRET.sub(lambda found: f"{found[1] or found[2]}…", text))


def unkeyed(text: str) -> str:
    """On one line, and without what looks like a whole key; tokens and other long numbers stay."""
    return _line(_KEY.sub(lambda found: f"{found[1]}…", text))


def _line(text: str) -> str:
    return "".join(sign if sign.isprintable() else "·" for sign in text)
