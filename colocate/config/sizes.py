"""Sizes in bytes as people write them: `2GiB`, `512MiB`, `1.5G`, `4096`."""

from __future__ import annotations

import re

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*$", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """Bytes of a size. `k`, `M`, `G`, `T` alone or with `B` are powers of 1000, with `i` powers of 1024.

    Raises ValueError with a sentence for the operator.
    """
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 512MiB, 2GiB or a number of bytes")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    return round(float(number) * float(base ** _POWER[prefix.lower()]))


def format_size(num_bytes: int) -> str:
    """Binary units with at most three digits before the point: `1 GiB`, `1.5 MiB`, `12 B`."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
