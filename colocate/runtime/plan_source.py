"""The plan file of a run: held against the device at start, and read again whenever it changes.

A change that cannot be served is logged, and what was in force stays.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from colocate.config.plan_file import PlanFile, load_plan_file
from colocate.core.plan import PlanTable
from colocate.errors import ConfigError

POLL_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """Names in the device's plan table. `best_static` is empty where the file names none."""

    candidates: tuple[str, ...] = ()
    best_static: str = ""


@dataclass(frozen=True, slots=True)
class PlanSource:
    """Where the plans come from, and the device and model they must be for."""

    path: Path
    table: PlanTable
    device: str
    model: str

    def read(self) -> tuple[PlanChoice, PlanFile]:
        """Read the file and find each of its plans on the device: the dry run. Raises ConfigError."""
        file = load_plan_file(self.path)
        remedy = "make one with `colocate plan` from a profile of this device and model"
        for key, wanted, here in (
            ("device", file.device, self.device),
            ("model", file.model, self.model),
            ("units", file.units, self.table.total_units),
        ):
            if wanted and wanted != here:
                raise ConfigError(f"{self.path}: {key}", f"is for {wanted}, this run has {here}", remedy)
        for index, plan in enumerate(file.plans):
            self._find(f"{self.path}: plans[{index}]", plan.name, plan.prefill_units, plan.decode_units)
        return PlanChoice(tuple(plan.name for plan in file.plans), file.best_static), file

    def _find(self, where: str, name: str, prefill_units: int, decode_units: int) -> None:
        shares = (prefill_units, decode_units)
        same = [plan.name for plan in self.table.plans if (plan.prefill_units, plan.decode_units) == shares]
        if name in same:
            return
        text = f"{prefill_units} units for prefill and {decode_units} for decode"
        if same:
            raise ConfigError(
                f"{where}.name", f"{text} are called {same[0]!r} here, not {name!r}", f"name it {same[0]}"
            )
        names = ", ".join(plan.name for plan in self.table.plans if plan.prefill_units and plan.decode_units)
        raise ConfigError(where, f"this device has no plan of {text}", f"choose among: {names}")


class PlanWatch:
    """Notices that the file changed. Owned by the engine's driver."""

    def __init__(self, source: PlanSource, choice: PlanChoice) -> None:
        self._source = source
        self._choice = choice  # in force
        self._stamp: tuple[int, int, int] | None = None  # of the file when it was read last
        self._next_poll_s = 0.0

    def poll(self, now_s: float, *, force: bool = False) -> PlanChoice | None:
        """The plans to use from now on; None where nothing changed or the file is broken. Looks at the file at most
        once in POLL_S, and reads it when it differs from what was read last; `force` does both at once and answers
        with equal plans as well."""
        if now_s < self._next_poll_s and not force:
            return None
        self._next_poll_s = now_s + POLL_S
        stamp = self._look()
        if stamp == self._stamp and not force:
            return None
        self._stamp = stamp
        try:
            choice, _ = self._source.read()
        except ConfigError as error:
            _log.error("the plan file is broken, the plans in force stay: %s", error)
            return None
        if choice == self._choice and not force:
            return None
        self._choice = choice
        _log.warning("plans from %s: %s; fall back to %s", self._source.path, *_words(choice))
        return choice

    def _look(self) -> tuple[int, int, int] | None:
        """What changes when the file does; None where it is gone."""
        try:
            found = self._source.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _words(choice: PlanChoice) -> tuple[str, str]:
    return ", ".join(choice.candidates), choice.best_static or "the device's default split"
