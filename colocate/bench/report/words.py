"""Numbers as people read them: three significant digits, a unit, an interval."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float | None) -> str:
    """Three significant digits; whole numbers in full, with a separator of thousands. `-` for nothing."""
    if value is None:
        return "-"
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    decimals = 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{value:.{decimals}f}"
    return text if float(text) else f"{value:.1e}"


def interval(low: float | None, high: float | None) -> str:
    """`[low, high]`; an end that nothing bounds stands as three dots. Empty where both are unknown."""
    if low is None and high is None:
        return ""
    return f"[{'..' if low is None else number(low)}, {'..' if high is None else number(high)}]"


def with_interval(value: float | None, low: float | None, high: float | None, unit: str = "") -> str:
    """`92.1 % [90.3, 93.8]`."""
    parts = [number(value), unit, interval(low, high)]
    return " ".join(part for part in parts if part)


def signed(value: float | None) -> str:
    return "-" if value is None else ("+" if value > 0 else "") + number(value)


def count(number_of: int, word: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number_of:,} {word}" + ("" if number_of == 1 else "s")


def listed(words: Sequence[str], limit: int = 0) -> str:
    """`a, b and c`; of more than `limit` the rest as a number."""
    if limit and len(words) > limit:
        return ", ".join(words[:limit]) + f" and {len(words) - limit} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def percent(share: float | None) -> float | None:
    return None if share is None else share * 100


def ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
