"""One request inside the engine: its tokens, its place in the pool, and the stages it may move through.

Rules:
* A request holds blocks in every stage but WAITING and FINISHED.
* A worker may touch the blocks in PREFILLING, CANCELLING, DECODING and LEAVING; in READY nobody does.
* Blocks of CANCELLING and LEAVING are draining: they return to the pool when the worker acknowledges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from colocate.core.prefix import PrefixNode
from colocate.errors import InvariantError
from colocate.messages.client import RequestTimes
from colocate.messages.sampling import SampleState, SamplingParams, TokenLogprob
from colocate.messages.slo import NO_SLO, SloClass
from colocate.types import BlockId, FinishReason, Incarnation, RequestId, TokenId


class Stage(Enum):
    WAITING = "waiting"  # queued: new, preempted, or its KV was lost
    PREFILLING = "prefilling"  # admitted; its chunks run one after another
    CANCELLING = "cancelling"  # the prefill worker was told to drop it
    READY = "ready"  # prefilled, its next token is known, not in the standing batch
    DECODING = "decoding"  # a row of the standing batch
    LEAVING = "leaving"  # the decode worker was told to drop it
    FINISHED = "finished"


TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.WAITING: frozenset({Stage.PREFILLING, Stage.FINISHED}),
    Stage.PREFILLING: frozenset({Stage.READY, Stage.CANCELLING, Stage.WAITING, Stage.FINISHED}),
    Stage.CANCELLING: frozenset({Stage.WAITING, Stage.FINISHED}),
    Stage.READY: frozenset({Stage.DECODING, Stage.WAITING, Stage.FINISHED}),
    Stage.DECODING: frozenset({Stage.LEAVING, Stage.READY, Stage.WAITING, Stage.FINISHED}),
    Stage.LEAVING: frozenset({Stage.READY, Stage.WAITING, Stage.FINISHED}),
    Stage.FINISHED: frozenset(),
}


class AfterLeave(Enum):
    """What becomes of a LEAVING or CANCELLING request once the worker has let go."""

    FINISH = "finish"  # aborted: blocks are freed
    REQUEUE = "requeue"  # preempted: blocks are freed, everything is recomputed
    PARK = "park"  # keeps its blocks and waits for its turn (a suspect is being tried alone)


NEVER = 1 << 62


@dataclass(slots=True)
class Request:
    """Owned by the engine. `num_computed` tokens have KV in the pool, confirmed by a report."""

    request_id: RequestId
    prompt_token_ids: list[TokenId]
    params: SamplingParams
    arrival_ns: int
    output_token_ids: list[TokenId]
    priority: int = 0  # smaller goes first, as in vLLM
    slo: SloClass = NO_SLO  # with the request's own overrides applied
    cache_salt: str = ""
    stage: Stage = Stage.WAITING
    incarnation: Incarnation = 0
    block_table: list[BlockId] = field(default_factory=list)
    prefix_node: PrefixNode | None = None  # the deepest node of the prefix tree it has pinned
    num_cached: int = 0  # prefill tokens found in the prefix tree when it was admitted last
    num_uncached: int = 0  # prefill tokens that were not in the prefix tree when it was queued
    num_overtaken: int = 0  # younger requests of its priority that were admitted before it
    first_cached: int = -1  # num_cached of its first admission: what usage reports
    num_computed: int = 0
    num_scheduled: int = 0  # prefill tokens sent, confirmed or not
    num_chunks_in_flight: int = 0
    grow_at: int = NEVER  # the row asks for a block once num_computed reaches this
    after_leave: AfterLeave | None = None
    scheduled_ns: int = 0
    first_token_ns: int = 0
    tpot_ns: int = 0  # targets of its SLO, 0 where it has none: mean gap between tokens ...
    itl_ns: int = 0  # ... and 99th percentile of the gaps
    num_preemptions: int = 0
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)  # gathered chunk by chunk
    deaths: int = 0  # workers that died while this request was in flight there
    story: list[str] = field(default_factory=list)

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens a (re)prefill feeds: after a preemption the output so far counts as prompt."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def max_kv_tokens(self) -> int:
        """Most positions this request can ever write; its last token is never fed."""
        return len(self.prompt_token_ids) + max(self.params.max_tokens - 1, 0)

    @property
    def ttft_deadline_ns(self) -> int:
        """When its first token is due; NEVER where nothing is promised, or it has been sent."""
        target_s = None if self.first_token_ns else self.slo.ttft_target_s(len(self.prompt_token_ids))
        return NEVER if target_s is None else self.arrival_ns + int(target_s * 1e9)

    def token_deadline_ns(self) -> int:
        """When its next output token is due so that its mean time per token stays on target; NEVER without one."""
        if not self.tpot_ns or not self.first_token_ns:
            return NEVER
        return self.first_token_ns + len(self.output_token_ids) * self.tpot_ns

    @property
    def order(self) -> tuple[int, int, int]:
        """Standing: smaller is served first and preempted last."""
        return (self.priority, self.arrival_ns, self.request_id)

    def move(self, stage: Stage, now_ns: int) -> None:
        """Raises InvariantError, and changes nothing, where TRANSITIONS does not allow the move."""
        if stage not in TRANSITIONS[self.stage]:
            message = f"request {self.request_id} may not move from {self.stage.value} to {stage.value}"
            raise InvariantError(message, tuple(self.story))
        self.story.append(f"{now_ns} {self.stage.value} -> {stage.value}")
        self.stage = stage

    def sample_state(self) -> SampleState:
        """What a worker needs to draw output position `len(output_token_ids)`."""
        params = self.params
        reads_output = (
            params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        return SampleState(
            params=params,
            position=len(self.output_token_ids),
            prompt_token_ids=self.prompt_token_ids if params.repetition_penalty != 1.0 else [],
            output_token_ids=list(self.output_token_ids) if reads_output else [],
        )

    def prefill_tokens(self, start: int, end: int) -> list[TokenId]:
        """Tokens at positions `start .. end - 1` of prompt + output."""
        num_prompt_tokens = len(self.prompt_token_ids)
        if end <= num_prompt_tokens:
            return self.prompt_token_ids[start:end]
        head = self.prompt_token_ids[start:num_prompt_tokens]
        return head + self.output_token_ids[max(start - num_prompt_tokens, 0) : end - num_prompt_tokens]

    def token_at(self, position: int) -> TokenId:
        num_prompt_tokens = len(self.prompt_token_ids)
        if position < num_prompt_tokens:
            return self.prompt_token_ids[position]
        return self.output_token_ids[position - num_prompt_tokens]

    def times(self, finished_ns: int) -> RequestTimes:
        return RequestTimes(
            self.arrival_ns,
            self.scheduled_ns,
            self.first_token_ns,
            finished_ns,
            self.num_preemptions,
            max(self.first_cached, 0),
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended, for the frontend."""

    finish: FinishReason
    error: str | None = None
