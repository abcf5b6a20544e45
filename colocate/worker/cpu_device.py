"""A worker's equipment on CPU cores: a real model over the keeper's memory.

Nothing here imports torch before the environment has been checked: OpenMP reads its wait policy once.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from colocate.core.plan import build_plan_table
from colocate.device.cpu.partition import CpuPartition
from colocate.device.partition import Partition
from colocate.errors import ConfigError
from colocate.messages.spec import ProcessSpec, RuntimeFacts
from colocate.model.config import load_model_config
from colocate.model.layout import KVLayout
from colocate.model.native import prepare_kernels
from colocate.transport.board import Board
from colocate.types import Role
from colocate.worker.at_once import AtOnce
from colocate.worker.attach import attach
from colocate.worker.executor import DecodeExecutor, HybridExecutor, PrefillExecutor
from colocate.worker.warm_up import (
    largest_decode,
    largest_hybrid,
    largest_prefill,
    warm_decode,
    warm_hybrid,
    warm_prefill,
)

if TYPE_CHECKING:
    from colocate.worker.mapped_model import MappedModel


class CpuDevice:
    """Implements `WorkerDevice`. `announce` tells the supervisor what the start is doing."""

    def __init__(self, spec: ProcessSpec, board: Board, announce: Callable[[str, str], object]) -> None:
        require_passive_openmp()
        self._spec = spec
        self._board = board
        self._announce = announce
        self._config = load_model_config(Path(spec.facts.model_dir))
        self._partition = CpuPartition(spec.facts.unit_ids)
        announce("kernels", prepare_kernels())
        announce("attach", "weights and KV")
        self._memory = attach(spec)

    @property
    def partition(self) -> Partition:
        return self._partition

    def prefill_executor(self) -> PrefillExecutor:
        from colocate.worker.model_executor import ModelPrefillExecutor

        facts, batch = largest_prefill(self._spec)
        self._confine_warm_up()
        warm_prefill(ModelPrefillExecutor(self._over_scratch(facts)), batch)
        return ModelPrefillExecutor(self._over_the_pool())

    def decode_executor(self) -> DecodeExecutor:
        from colocate.worker.model_executor import ModelDecodeExecutor

        facts, rows = largest_decode(self._spec)
        self._confine_warm_up()
        warm = ModelDecodeExecutor(self._over_scratch(facts))
        warm_decode(AtOnce(warm.step, warm.units_changed), rows)
        decode = ModelDecodeExecutor(self._over_the_pool())
        return AtOnce(decode.step, decode.units_changed)

    def hybrid_executor(self) -> HybridExecutor:
        from colocate.worker.hybrid_executor import ModelHybridExecutor

        facts, batch, rows = largest_hybrid(self._spec)
        self._confine_warm_up()
        warm = ModelHybridExecutor(self._over_scratch(facts))
        warm_hybrid(AtOnce(warm.step, warm.units_changed), batch, rows)
        hybrid = ModelHybridExecutor(self._over_the_pool())
        return AtOnce(hybrid.step, hybrid.units_changed)

    def facts(self) -> dict[str, int | float | str]:
        return {}

    def _over_the_pool(self) -> MappedModel:
        return self._mapped(self._spec.facts, self._memory.kv)

    def _over_scratch(self, facts: RuntimeFacts) -> MappedModel:
        """On KV blocks of this worker's own, freed with the executor that is warmed on them."""
        layout = KVLayout(self._config, facts.dtype, facts.num_blocks, facts.block_size)
        return self._mapped(facts, memoryview(mmap.mmap(-1, layout.nbytes)))

    def _mapped(self, facts: RuntimeFacts, kv: memoryview) -> MappedModel:
        from colocate.worker.mapped_model import MappedModel

        deterministic = self._spec.config.model.deterministic
        return MappedModel(self._config, facts, self._memory.weights, kv, deterministic)

    def _confine_warm_up(self) -> None:
        """Warm up on this role's share of the plan on the board, so that a restart does not disturb the other phase:
        on one core where that share is empty, on all where no plan was ever set."""
        from colocate.worker.model_executor import use_threads

        facts, role = self._spec.facts, self._spec.role
        seq, plan_index = self._board.plan()
        units = tuple(range(facts.total_units))
        if seq:
            table = build_plan_table(facts.total_units, facts.unit_granularity, facts.decode_shares)
            own_end = units[:1] if role is Role.DECODE else units[-1:]
            units = table.plans[plan_index].units_of(role, facts.total_units) or own_end
        self._partition.apply(units)
        use_threads(len(units))
        self._announce("warm-up", f"on {len(units)} core(s)")


def require_passive_openmp() -> None:
    """Spinning OpenMP threads would take the cores of the other phase after every product."""
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.lower() != "passive":
        raise ConfigError(
            "OMP_WAIT_POLICY",
            f"is {policy!r} in a worker's environment",
            "start workers through `colocate serve`, which sets it to passive",
        )
