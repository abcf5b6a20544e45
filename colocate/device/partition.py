"""What a device must offer so that a worker can be confined to its share."""

from __future__ import annotations

from typing import Protocol


class Partition(Protocol):
    """Owned by one worker process; used from its main loop only.

    Implementations: `device/cpu/partition.py` (affinity), `device/emulated/partition.py`, `device/cuda/partition.py`
    (green contexts).
    """

    @property
    def total_units(self) -> int:
        """How many units the device has: cores, SMs."""
        ...

    def apply(self, units: tuple[int, ...]) -> None:
        """Confine all work of this process launched from now on to these units (numbers as in `core.plan`).

        Called at a boundary. Work launched before may still be under way on a GPU: see `settled`. An empty share is
        legal: nothing is launched until the next call. Raises ConfigError if the partition cannot be put in force.
        """
        ...

    def settled(self) -> bool:
        """Whether all work launched under earlier shares is done: only then are units given up free for others.
        Does not wait."""
        ...

    def realised(self) -> tuple[int, ...]:
        """The units truly in force, read back from the operating system or driver, not from what was asked."""
        ...
