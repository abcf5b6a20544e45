"""A worker's equipment on the emulated device. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from colocate.config.profile import load_profile
from colocate.device.emulated.faults import FaultInjector, parse_fault, poison_tokens
from colocate.device.emulated.partition import EmulatedPartition
from colocate.device.emulated.timing import PhaseTimer
from colocate.device.emulated.tokens import TokenDraw
from colocate.device.partition import Partition
from colocate.messages.spec import ProcessSpec
from colocate.transport.board import Board
from colocate.types import Role
from colocate.worker.at_once import AtOnce
from colocate.worker.boundary import peer_of
from colocate.worker.emulated_executor import EmulatedDecodeExecutor, EmulatedHybridExecutor, EmulatedPrefillExecutor
from colocate.worker.executor import DecodeExecutor, HybridExecutor


class EmulatedDevice:
    """Implements `WorkerDevice`. Contention follows the board: the other worker works while a boundary of it is due."""

    def __init__(self, spec: ProcessSpec, board: Board, send_junk: Callable[[tuple[bytes, ...]], None]) -> None:
        section = spec.config.device
        faults = [parse_fault(text) for text in section.faults]
        self._faults = FaultInjector(faults, spec.role, spec.incarnation, send_junk)
        self._poison = poison_tokens(fault for fault in faults if fault.role in (None, Role.DECODE))
        profile = load_profile(Path(section.profile)) if section.profile else None
        if profile is not None:
            # `--seed` shifts the profile's own, so that runs of one profile can differ and still be repeated.
            noise = structs.replace(profile.noise, seed=profile.noise.seed + spec.config.model.seed)
            profile = structs.replace(profile, noise=noise)
        eos_probability = profile.eos_probability if profile else 0.0
        self._draw = TokenDraw(spec.facts.vocab_size, eos_probability, poison_tokens(faults))
        peer = peer_of(spec.role)

        def peer_units() -> int:
            return board.held(peer) if peer is not None and board.progress_of(peer).deadline_ns else 0

        self._timer = PhaseTimer(spec.role.value, profile, peer_units)
        self._partition = EmulatedPartition(spec.facts.total_units)
        self._faults.at_start()

    @property
    def partition(self) -> Partition:
        return self._partition

    def prefill_executor(self) -> EmulatedPrefillExecutor:
        return EmulatedPrefillExecutor(self._draw, self._timer, self._faults, self._poison)

    def decode_executor(self) -> DecodeExecutor:
        decode = self._decode()
        return AtOnce(decode.step, decode.units_changed)

    def hybrid_executor(self) -> HybridExecutor:
        hybrid = EmulatedHybridExecutor(self.prefill_executor(), self._decode(), self._timer)
        return AtOnce(hybrid.step, hybrid.units_changed)

    def facts(self) -> dict[str, int | float | str]:
        return {}

    def _decode(self) -> EmulatedDecodeExecutor:
        return EmulatedDecodeExecutor(self._draw, self._timer, self._faults)
