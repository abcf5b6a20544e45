"""Partition plans: which units of the device each phase gets.

Units are numbered 0 .. total-1. Decode takes units from the low end, prefill from the high end, so every split of the
table cuts one line in two and a switch moves the border. Only `shared` overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colocate.errors import ConfigError
from colocate.types import Role

SHARED = "shared"
ALL_PREFILL = "all-prefill"
ALL_DECODE = "all-decode"


@dataclass(frozen=True, slots=True)
class Plan:
    """A share of units for each phase. A phase with 0 units does not run while the plan is in force."""

    name: str
    prefill_units: int
    decode_units: int

    def units_of(self, role: Role, total_units: int) -> tuple[int, ...]:
        """The unit numbers of one worker, ascending."""
        if role is Role.DECODE:
            return tuple(range(self.decode_units))
        return tuple(range(total_units - self.prefill_units, total_units))

    @property
    def is_split(self) -> bool:
        return self.prefill_units > 0 and self.decode_units > 0 and self.name != SHARED


@dataclass(frozen=True, slots=True)
class PlanTable:
    """Every legal plan of a device, in a fixed order: the index of a plan is what the board's plan word carries."""

    total_units: int
    plans: tuple[Plan, ...]
    default_split: str

    def index_of(self, name: str, where: str = "plan") -> int:
        """Raises ConfigError at `where`."""
        for index, plan in enumerate(self.plans):
            if plan.name == name:
                return index
        names = ", ".join(plan.name for plan in self.plans)
        raise ConfigError(where, f"this device has no plan named {name!r}", f"choose one of: {names}")

    def by_name(self, name: str, where: str = "plan") -> Plan:
        return self.plans[self.index_of(name, where)]


def split_name(prefill_units: int, decode_units: int) -> str:
    return f"p{prefill_units}d{decode_units}"


def spread_shares(total_units: int, granularity: int) -> tuple[int, ...]:
    """Decode shares to arm where nothing was said: eight at most, spread over the device and closer together at its
    small end, where a decode step's time still changes. 16, 24, 32, 40, 48, 64, 80 and 96 of 132 in steps of 8."""
    num_atoms = total_units // granularity
    if num_atoms < 2:
        return ()
    atoms = (round(sixteenths * num_atoms / 16) for sixteenths in (2, 3, 4, 5, 6, 8, 10, 12))
    return tuple(sorted({min(max(1, count), num_atoms - 1) * granularity for count in atoms}))


def shares_named(names: Sequence[str], total_units: int, granularity: int) -> tuple[int, ...]:
    """The decode shares of splits by name (p92d40). Raises ConfigError that names those the device has."""
    splits = {plan.name: plan for plan in build_plan_table(total_units, granularity).plans if plan.is_split}
    for name in names:
        if name not in splits:
            legal = f"choose among: {', '.join(splits)}" if splits else "it cannot be split at all"
            raise ConfigError("arm", f"this device has no split named {name!r}", legal)
    return tuple(sorted({splits[name].decode_units for name in names}))


def build_plan_table(total_units: int, granularity: int = 1, decode_shares: tuple[int, ...] = ()) -> PlanTable:
    """Every split whose decode share is a multiple of `granularity`, then all-prefill, all-decode and shared.

    `decode_shares` keeps the splits that are armed, where a switch needs things made beforehand (GPU: streams and one
    set of graphs per share); empty: all of them. With fewer than two atoms nothing can be split and `shared` is the
    only plan. The default split gives decode about a third of the atoms: a decode step is bound by memory bandwidth
    and saturates early, a prefill is not.
    """
    if total_units < 1 or granularity < 1:
        problem = f"cannot partition {total_units} units in steps of {granularity}"
        raise ConfigError("device", problem, "give units and a granularity of at least 1 in the device's profile")
    shared = Plan(SHARED, total_units, total_units)
    num_atoms = total_units // granularity
    if num_atoms < 2:
        return PlanTable(total_units, (shared,), SHARED)
    legal = range(granularity, (num_atoms - 1) * granularity + 1, granularity)
    unknown = sorted(set(decode_shares) - set(legal))
    if unknown:
        problem = f"{unknown[0]} units cannot be a decode share of {total_units} in steps of {granularity}"
        raise ConfigError("arm", problem, f"choose among {', '.join(map(str, legal))}")
    splits = tuple(
        Plan(split_name(total_units - decode_units, decode_units), total_units - decode_units, decode_units)
        for decode_units in sorted(set(decode_shares or legal))
    )
    third = max(1, round(num_atoms / 3)) * granularity
    default = min(splits, key=lambda plan: abs(plan.decode_units - third))
    ends = (Plan(ALL_PREFILL, total_units, 0), Plan(ALL_DECODE, 0, total_units))
    return PlanTable(total_units, (*splits, *ends, shared), default.name)
