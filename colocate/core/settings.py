"""What the core is told at birth: settings and facts, frozen. Written at the head of every event log."""

from __future__ import annotations

from msgspec import Struct

from colocate.config.profile import DeviceProfile
from colocate.config.serve import Mode
from colocate.core.plan import PlanTable, build_plan_table
from colocate.errors import ConfigError
from colocate.messages.slo import SloClass

ALL_GUARDS = ("hysteresis", "dwell", "decode-first", "fallback")


class EngineSettings(Struct, frozen=True):
    """`mode`, `plan` and `shadow` are the operator's words; `core.policy` resolves them."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_queue: int
    total_units: int
    unit_granularity: int = 1
    decode_shares: tuple[int, ...] = ()  # of the splits that are armed; empty: all
    mode: Mode = "colocated"
    one_fate: bool = False  # what strikes one worker can strike the other: one process, or one GPU and its faults
    plan: str = "elastic"
    # A second batch waits at the prefill worker while one runs, so that it never idles for a round trip; more would
    # only take decisions earlier than needed.
    prefill_depth: int = 2

    first_plan_seq: int = 1  # a successor counts on from what the board last said; 0 there means no plan was ever set

    shadow: str | None = None
    guards: tuple[str, ...] = ALL_GUARDS
    candidates: tuple[str, ...] = ()  # plans the policy may choose from; empty: every plan of the table
    best_static: str = ""  # the plan to fall back to; empty: the table's default split
    discipline: str = "fcfs"
    admission: str = "greedy"
    prefix_caching: bool = True
    slo_classes: tuple[SloClass, ...] = ()
    default_slo_class: str = ""  # empty: the first class, or none
    max_slice_ms: float = 20.0
    latency: DeviceProfile | None = None  # without its samples; None: nothing can be predicted

    @property
    def shares_fate(self) -> bool:
        """A death can hit both phases, so a suspect is tried with neither of them at work for others."""
        return self.mode == "chunked" or self.one_fate

    def plan_table(self) -> PlanTable:
        return build_plan_table(self.total_units, self.unit_granularity, self.decode_shares)

    def check(self) -> None:
        """Raises ConfigError where the settings contradict each other."""
        if self.mode == "chunked" and self.max_num_batched_tokens < self.max_num_seqs:
            chunk, rows = self.max_num_batched_tokens, self.max_num_seqs
            problem = f"{chunk} tokens a forward leave no room for prompts beside {rows} rows"
            raise ConfigError(
                "max_num_batched_tokens", problem, f"--chunk-size {rows} or more, or --max-num-seqs {chunk} or less"
            )
