"""What the core is told at birth: settings and facts, frozen. Written at the head of every event log."""

from __future__ import annotations

from msgspec import Struct

from colocate.core.plan import PlanTable, build_plan_table


class EngineSettings(Struct, frozen=True):
    """`mode` and `plan` are the operator's words; `core.policy.choose_policy` resolves them."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_queue: int
    total_units: int
    unit_granularity: int = 1
    mode: str = "colocated"
    plan: str = "elastic"
    # A second batch waits at the prefill worker while one runs, so that it never idles for a round trip; more would
    # only take decisions earlier than needed.
    prefill_depth: int = 2

    first_plan_seq: int = 1  # a successor counts on from what the board last said; 0 there means no plan was ever set

    def plan_table(self) -> PlanTable:
        return build_plan_table(self.total_units, self.unit_granularity)
