"""Ways to break the fake device on purpose, one promise each: every check of `colocate doctor` must be able to fail.

COLOCATE_FAKE_CUDA_BREAK names one or more, with commas; it may be set for one process of several.
"""

from __future__ import annotations

import os
from enum import StrEnum

from colocate.errors import ConfigError

VARIABLE = "COLOCATE_FAKE_CUDA_BREAK"


class Break(StrEnum):
    ATOM_ORDER = "atom-order"  # this process gets the groups of a split the other way round
    OVERLAP = (
        "overlap"  # kernels of every share but the last also reach the device's last SM, in place of one of theirs
    )
    LOST_SM = "lost-sm"  # every green context gets one SM less than it was asked for
    GRAPH_ESCAPES = "graph-escapes"  # a replayed graph runs on the whole device
    NO_IMPORT = "no-import"  # memory that another process made is refused
    PRIVATE_MEMORY = "private-memory"  # what this process writes nobody else sees, and it is lost with it


def chosen_breaks() -> frozenset[Break]:
    """Raises ConfigError for a name that is none."""
    names = [name for name in os.environ.get(VARIABLE, "").split(",") if name]
    try:
        return frozenset(Break(name) for name in names)
    except ValueError as error:
        raise ConfigError(VARIABLE, str(error), f"choose among {', '.join(Break)}") from None
