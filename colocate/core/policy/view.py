"""What a policy may look at, and what it must be."""

from __future__ import annotations

from typing import Protocol, TypeVar

from msgspec import Struct

from colocate.core.plan import Plan


class LoadView(Struct, frozen=True, gc=False):
    """The engine's load at one event. Built in O(1); seconds are differences to `now_ns`."""

    now_ns: int
    current: Plan  # asked for now
    current_since_ns: int  # when it was
    prefill_busy: bool  # a forward is with the prefill worker
    decode_busy: bool  # a row is in the standing batch
    num_rows: int = 0  # of the standing batch
    sum_context: int = 0  # tokens of KV its rows read in a step
    num_waiting: int = 0  # requests whose prefill has not started
    prefill_tokens: int = 0  # not yet computed: of those waiting (cached prefixes left out) and of those in prefill
    prefill_pairs: float = 0.0  # the same load's sum(n * (r + n / 2)), see config/profile.py
    ttft_slack_s: float | None = (
        None  # until the earliest first-token deadline of those that has not passed; None: no such
    )
    tpot_target_s: float | None = None  # strictest mean time per token in the standing batch; None: nobody has one
    itl_target_s: float | None = None  # strictest 99th percentile of gaps in the standing batch; None: nobody has one
    tpot_slack_s: float | None = None  # until the first row's next token is late, by its mean since the first token
    kv_free: float = 1.0  # share of the pool that is free or only cached
    admission_blocked: bool = False  # somebody waits, prefill could take it, and KV or rows are lacking
    prediction_error: float = 0.0  # recent mean of |measured - predicted| / predicted, the worse phase


State = TypeVar("State")


class Policy(Protocol[State]):
    """A pure function with a state value. One engine asks it after every event, in at most 20 microseconds."""

    name: str
    first: Plan

    def start(self) -> State:
        """The state before any view."""
        ...

    def decide(self, state: State, view: LoadView) -> tuple[Plan, State]:
        """The plan that should be in force now, and the state for the next call. Changes nothing, never raises. The
        same state and view give the same answer."""
        ...
