"""What was planned of a GPU's memory against what was measured once everything is ready.

Workers report the device's use and their own allocations when they are ready (`worker/cuda/memory_facts.py`), the
keeper the size of its segments. Contexts, partitions and the MPS server cannot be asked: they are what remains.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console as RichConsole
from rich.table import Table

from colocate.config.sizes import format_size
from colocate.runtime.gpu_budget import GpuBudget
from colocate.types import Role

Facts = dict[str, int | float | str]

TOTAL = "total of this run"
_REST = "contexts, partitions, MPS server"
_WIDTH = 88


@dataclass(frozen=True, slots=True)
class Entry:
    """`measured_bytes` is None where nobody could say."""

    name: str
    planned_bytes: int
    measured_bytes: int | None

    @property
    def is_exceeded(self) -> bool:
        return self.measured_bytes is not None and self.measured_bytes > self.planned_bytes


class MemoryLedger:
    """Owned by the supervisor's main thread; fed by every ChildReady of a start."""

    def __init__(self, budget: GpuBudget) -> None:
        self._budget = budget
        self._facts: dict[Role, Facts] = {}

    def note(self, role: Role, facts: Facts) -> None:
        """A restarted process replaces what its predecessor said."""
        self._facts[role] = facts

    def entries(self) -> tuple[Entry, ...]:
        """Segments, one entry per process for activations and graphs, the rest, and the total last."""
        plan = {line.name: line.num_bytes for line in self._budget.lines}
        segments = Entry("weights and KV pool", plan["weights"] + plan["KV pool"], self._segments())
        owners = [owner for owner in dict.fromkeys(line.owner for line in self._budget.lines) if owner is not None]
        own = [entry for owner in owners for entry in self._of(owner)]
        named = [segments, *own]
        planned = self._budget.planned_bytes
        used = self._used()
        rest = None
        if used is not None and all(entry.measured_bytes is not None for entry in named):
            rest = max(0, used - sum(entry.measured_bytes or 0 for entry in named))
        others = Entry(_REST, planned - sum(entry.planned_bytes for entry in named), rest)
        return (*named, others, Entry(TOTAL, planned, used))

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each entry that took more than was planned for it."""
        return tuple(
            f"GPU memory: {entry.name} took {format_size(entry.measured_bytes or 0)}, "
            f"{format_size(entry.planned_bytes)} were planned"
            for entry in self.entries()
            if entry.is_exceeded
        )

    def as_facts(self) -> dict[str, int]:
        """For `/server_info`: bytes by entry, `planned` and `measured`."""
        facts = {"device_bytes": self._budget.total_bytes, "usable_bytes": self._budget.usable_bytes}
        for entry in self.entries():
            facts[f"{entry.name}, planned"] = entry.planned_bytes
            if entry.measured_bytes is not None:
                facts[f"{entry.name}, measured"] = entry.measured_bytes
        return facts

    def render(self) -> str:
        """A table for the console, without colours."""
        table = Table(title="GPU memory", title_justify="left", box=None, pad_edge=False)
        for heading, justify in (("", "left"), ("planned", "right"), ("measured", "right")):
            table.add_column(heading, justify=justify)  # type: ignore[arg-type]
        for entry in self.entries():
            measured = "" if entry.measured_bytes is None else format_size(entry.measured_bytes)
            table.add_row(entry.name, format_size(entry.planned_bytes), measured + (" !" if entry.is_exceeded else ""))
        total = self.entries()[-1]
        budget = self._budget
        left = None if total.measured_bytes is None else format_size(budget.usable_bytes - total.measured_bytes)
        table.add_row(f"left of {format_size(budget.usable_bytes)}", format_size(budget.left_bytes), left or "")
        console = RichConsole(width=_WIDTH, no_color=True)
        with console.capture() as captured:
            console.print(table)
        return "\n".join("  " + line.rstrip() for line in captured.get().splitlines())

    def _of(self, owner: Role) -> list[Entry]:
        lines = [line for line in self._budget.lines if line.owner is owner]
        graphs = sum(line.num_bytes for line in lines if line.name.endswith(": graphs"))
        activations = sum(line.num_bytes for line in lines if line.name.endswith(": activations"))
        allocated, graph_bytes = self._number(owner, "allocated_bytes"), self._number(owner, "graph_bytes")
        own = None if allocated is None else max(0, allocated - (graph_bytes or 0))
        entries = [Entry(f"{owner.value}: activations", activations, own)]
        if graphs:
            entries.append(Entry(f"{owner.value}: graphs", graphs, graph_bytes))
        return entries

    def _segments(self) -> int | None:
        return self._number(Role.KEEPER, "device_segments_bytes")

    def _used(self) -> int | None:
        """Of the device, without what was used before this run; None where either is not known."""
        used = [number for role in self._facts if (number := self._number(role, "device_used_bytes")) is not None]
        before = self._budget.used_before_bytes
        return None if not used or before is None else max(0, max(used) - before)

    def _number(self, role: Role, name: str) -> int | None:
        value = self._facts.get(role, {}).get(name)
        return int(value) if isinstance(value, int | float) else None
