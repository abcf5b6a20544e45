"""Numbers as people read them: three significant digits and a unit; beside an interval, as many as that supports."""

from __future__ import annotations

import math
from collections.abc import Sequence

_MAX_DECIMALS = 3


def number(value: float | None) -> str:
    """Three significant digits; whole numbers in full, with a separator of thousands. `-` for nothing."""
    if value is None:
        return "-"
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    text = f"{value:,.{_own_decimals(value)}f}"
    if float(text.replace(",", "")) == value:  # exact, like a rate that was asked for
        return text.rstrip("0").rstrip(".")
    return text if float(text.replace(",", "")) else f"{value:.1e}"


def aligned(value: float | None, low: float | None, high: float | None) -> tuple[str, str, str]:
    """The three as text, to the second significant digit of half the interval, so that no digit stands there that the
    interval does not support; `..` for an end that nothing bounds. Without an interval each as `number` has it."""
    known = [each for each in (value, low, high) if each is not None]
    half = (max(known) - min(known)) / max(1, len(known) - 1) if known else 0.0
    decimals = 1 - math.floor(math.log10(half)) if half else _MAX_DECIMALS + 1
    if value is None or decimals > _MAX_DECIMALS:
        texts = [".." if each is None else number(each) for each in (value, low, high)]
    else:
        decimals = max(0, min(decimals, max(map(_own_decimals, known))))
        texts = [".." if each is None else _fixed(each, decimals) for each in (value, low, high)]
    return texts[0], texts[1], texts[2]


def _own_decimals(value: float) -> int:
    size = abs(value)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    return text if float(text.replace(",", "")) else text.lstrip("-")


def with_interval(
    value: float | None, low: float | None, high: float | None, unit: str = "", *, is_signed: bool = False
) -> str:
    """`92.1 % [90.3, 93.8]`; `is_signed` puts a plus before what is above zero."""
    if value is None:
        return "-"
    text, *ends = aligned(value, low, high)
    span = "" if low is None and high is None else f"[{ends[0]}, {ends[1]}]"
    plus = "+" if is_signed and value > 0 else ""
    return " ".join(part for part in (plus + text, unit, span) if part)


def signed(value: float | None) -> str:
    return "-" if value is None else ("+" if value > 0 else "") + number(value)


def count(number_of: int, word: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number_of:,} {word}" + ("" if number_of == 1 else "s")


def capital(text: str) -> str:
    """With a capital in front, as a sentence begins; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def listed(words: Sequence[str], limit: int = 0) -> str:
    """`a, b and c`; of more than `limit` the rest as a number."""
    if limit and len(words) > limit:
        return ", ".join(words[:limit]) + f" and {len(words) - limit} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def percent(share: float | None) -> float | None:
    return None if share is None else share * 100


def ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
