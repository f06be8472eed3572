"""Numbers in sentences. Imports nothing."""

from __future__ import annotations


def count(number: float, noun: str, plural: str = "") -> str:
    """`1 table`, `2 tables`, `3 indexes`."""
    return f"{number:,.0f} {noun if round(number) == 1 else plural or f'{noun}s'}"
