"""The partition of a device that exists in a profile only: it remembers what it was told."""

from __future__ import annotations

from colocate.errors import ConfigError


class EmulatedPartition:
    """Implements `device.partition.Partition` for any number of units."""

    def __init__(self, total_units: int) -> None:
        self._total_units = total_units
        self._units: tuple[int, ...] = ()

    @property
    def total_units(self) -> int:
        return self._total_units

    def apply(self, units: tuple[int, ...]) -> None:
        if any(not 0 <= unit < self._total_units for unit in units):
            raise ConfigError("plan", f"units {units} are not all among the {self._total_units} emulated ones")
        self._units = units

    def settled(self) -> bool:
        return True

    def realised(self) -> tuple[int, ...]:
        return self._units
