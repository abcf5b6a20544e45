"""One canonical split of the device, the same in every process: shares are unions of its atoms.

Unit u of a plan lies in atom u // step; the units behind the last whole atom are the remainder. Decode takes units from
the low end and prefill from the high end (`core/plan.py`), so the remainder is prefill's in every split. Splitting a
second time with other arguments gives groups that overlap these, so nothing else in this package calls `split`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colocate.device.cuda.driver import PartitionDriver, SmGroup
from colocate.errors import ConfigError, InvariantError


@dataclass(frozen=True, slots=True)
class Atoms:
    """`groups[i]` is units [i * step, (i + 1) * step); `remainder`, if any, the units after them."""

    groups: tuple[SmGroup, ...]
    remainder: SmGroup | None
    step: int

    @property
    def num_units(self) -> int:
        return len(self.groups) * self.step + (self.remainder.num_sms if self.remainder is not None else 0)

    def of(self, units: Sequence[int]) -> list[SmGroup]:
        """The groups that are exactly these units (ascending). Raises InvariantError where a share cuts an atom."""
        whole = len(self.groups) * self.step
        last = self.num_units
        if not units or units[0] < 0 or units[-1] >= last or list(units) != list(range(units[0], units[-1] + 1)):
            raise InvariantError(f"units {list(units)} are not one run out of {last}")
        first, end = units[0], units[-1] + 1
        if (first % self.step and first != whole) or (end % self.step and end != last) or whole < end < last:
            raise InvariantError(f"units {first} to {end - 1} cut an atom of {self.step}")
        groups = list(self.groups[first // self.step : min(end, whole) // self.step])
        if end > whole and self.remainder is not None:
            groups.append(self.remainder)
        return groups


def split_into_atoms(driver: PartitionDriver, index: int, step: int, num_sms: int) -> Atoms:
    """Raises ConfigError where the driver accounts for more or fewer SMs than the device has, CudaError."""
    groups, remainder = driver.split(index, step)
    atoms = Atoms(tuple(groups), remainder, step)
    if atoms.num_units != num_sms:
        problem = f"the driver splits {num_sms} SMs into {len(groups)} groups of {step}, {atoms.num_units} in all"
        raise ConfigError("device", problem, "run colocate doctor; --device cpu does without")
    return atoms
