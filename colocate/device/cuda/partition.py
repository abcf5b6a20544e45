"""A worker's shares of the GPU: one green context and one lane for each, all made before the worker is ready.

A switch makes no driver object but an event: the lane of the new share waits, on the device, for what was launched in
the old one, and the host goes on at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from colocate.device.cuda.atoms import Atoms, split_into_atoms
from colocate.device.cuda.backend import Backend
from colocate.device.cuda.driver import OUT_OF_MEMORY, CudaError, GreenContext
from colocate.device.cuda.lane import Lane, Mark
from colocate.errors import ConfigError, InvariantError
from colocate.types import Role

Share = tuple[int, ...]


class CudaPartition:
    """Implements `device.partition.Partition`. Units are SMs, numbered as in `atoms.py`."""

    def __init__(self, backend: Backend, index: int, role: Role, shares: Sequence[Share]) -> None:
        """Makes every share or, with a ConfigError that names the one that failed, none. Equal shares are made once;
        an empty share needs nothing."""
        facts = backend.driver.facts(index)
        self._backend = backend
        self._role = role
        self._total_units = facts.num_sms
        self._greens: dict[Share, GreenContext] = {}
        self._lanes: dict[Share, Lane] = {}
        self._units: Share = ()
        self._last_mark: Mark | None = None  # of the lane before; a lane that comes after an empty share follows it too
        self._unfinished: list[Mark] = []
        atoms = split_into_atoms(backend.driver, index, facts.atom_sms, facts.num_sms)
        try:
            for share in sorted({*map(tuple, shares)} - {()}, key=len):
                self._make(index, atoms, share)
        except BaseException:
            self.close()
            raise

    @property
    def total_units(self) -> int:
        return self._total_units

    @property
    def shares(self) -> tuple[Share, ...]:
        """Those that can be applied, by size; the empty one is always legal and not among them."""
        return tuple(self._lanes)

    @property
    def lane(self) -> Lane | None:
        """In force now; None under an empty share. Changes with `apply` only."""
        return self._lanes.get(self._units)

    def lane_of(self, share: Share) -> Lane:
        """Of a share that is not in force, for what is made before ready: warm-up, graphs."""
        return self._lanes[self._prepared(share)]

    def green_of(self, share: Share) -> GreenContext:
        return self._greens[self._prepared(share)]

    def apply(self, units: Share) -> None:
        """A share that was not made before is a bug: there is no time for it now."""
        if units == self._units:
            return
        after = self._lanes[self._prepared(units)] if units else None
        before = self.lane
        if before is not None:
            self._last_mark = before.mark()
            self._unfinished.append(self._last_mark)
        if after is not None and self._last_mark is not None:
            after.follow(self._last_mark)
        self._units = units

    def settled(self) -> bool:
        # A lane follows the one before, so the marks are done in order.
        while self._unfinished and self._unfinished[0].is_done():
            del self._unfinished[0]
        return not self._unfinished

    def realised(self) -> Share:
        """Every green context was read back when it was made: it has exactly the SMs of its share."""
        return self._units

    def close(self) -> None:
        """Wait for all work and give everything back. What a faulted device refuses goes with the process."""
        with contextlib.suppress(CudaError):
            if self._lanes:
                self._backend.driver.synchronize()
        self._lanes.clear()
        self._units, self._last_mark = (), None
        self._unfinished.clear()
        for share in reversed(list(self._greens)):
            with contextlib.suppress(CudaError):
                self._backend.driver.destroy_green(self._greens.pop(share))

    def _make(self, index: int, atoms: Atoms, share: Share) -> None:
        try:
            green = self._backend.driver.make_green(index, atoms.of(share))
        except CudaError as error:
            raise self._refusal(share, f"cannot be made: {error}", _remedy(error)) from error
        self._greens[share] = green
        if green.num_sms != len(share):
            problem = f"has {green.num_sms} SMs in the driver's reading"
            raise self._refusal(share, problem, "leave it out of --arm, and see colocate doctor for MPS percentages")
        self._lanes[share] = self._backend.lane(green)

    def _refusal(self, share: Share, problem: str, remedy: str) -> ConfigError:
        return ConfigError("arm", f"the {self._role.value} share of {len(share)} SMs {problem}", remedy)

    def _prepared(self, share: Share) -> Share:
        if share not in self._lanes:
            made = ", ".join(str(len(known)) for known in self._lanes)
            raise InvariantError(f"{self._role.value} has no share of {len(share)} SMs; made before ready: {made}")
        return share


def _remedy(error: CudaError) -> str:
    if error.code == OUT_OF_MEMORY:
        return "arm fewer splits (--arm), or lower --gpu-memory-utilization"
    if error.is_fatal:
        return "a kernel faulted; restart, and see colocate doctor"
    return "see colocate doctor, or leave it out of --arm"
