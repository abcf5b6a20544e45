"""What both phases of the engine share: requests, blocks, the queue, the outbox, and how a request ends."""

from __future__ import annotations

from colocate.core.drain_rate import DrainRate
from colocate.core.latency import LatencyModel
from colocate.core.memory import Memory
from colocate.core.outbox import Outbox
from colocate.core.queues.choose import choose_queue
from colocate.core.request import NEVER, AfterLeave, Ending, Request, Stage
from colocate.core.settings import EngineSettings
from colocate.core.suspects import Suspects
from colocate.messages.client import OutputItem
from colocate.messages.sampling import TokenLogprob
from colocate.types import FinishReason, RequestId, Role, TokenId


class Books:
    """One owner (the engine), two users (the phases). `now_ns` is the time of the event being handled."""

    __slots__ = (
        "drain_rate",
        "memory",
        "model",
        "now_ns",
        "num_ignored",
        "num_preemptions",
        "outbox",
        "pool",
        "queue",
        "requests",
        "settings",
        "suspects",
    )

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.memory = Memory(settings.num_blocks, settings.block_size, settings.prefix_caching)
        self.pool = self.memory.pool
        self.queue = choose_queue(settings.discipline)
        self.model = LatencyModel(settings.latency) if settings.latency is not None else None
        self.requests: dict[RequestId, Request] = {}
        self.outbox = Outbox()
        self.drain_rate = DrainRate()
        in_prefill = Suspects()
        # Where both phases die of one request, a trial in one must be alone in the other, too.
        in_decode = in_prefill if settings.shares_fate else Suspects()
        self.suspects = {Role.PREFILL: in_prefill, Role.DECODE: in_decode}
        self.now_ns = 0
        self.num_preemptions = 0
        self.num_ignored = 0

    def commit(
        self,
        request: Request,
        token_id: TokenId,
        logprob: TokenLogprob | None,
        finish: FinishReason | None,
        *,
        with_times: bool = False,
    ) -> None:
        """One more output token, told to the frontend; with `finish`, the end as well."""
        request.output_token_ids.append(token_id)
        if finish is None and logprob is None and not with_times and not request.prompt_logprobs:
            self.outbox.outputs.append(OutputItem(request.request_id, [token_id]))  # nearly all of them
            return
        self.outbox.outputs.append(
            OutputItem(
                request.request_id,
                [token_id],
                finish,
                [logprob] if logprob is not None else [],
                self.take_prompt_logprobs(request),
                request.times(self.now_ns if finish is not None else 0) if with_times or finish is not None else None,
            )
        )
        if finish is not None:
            self.forget(request)

    def take_prompt_logprobs(self, request: Request) -> list[TokenLogprob]:
        """Prompt logprobs go out once, with the first token."""
        if not request.prompt_logprobs:
            return []
        entries, request.prompt_logprobs = request.prompt_logprobs, []
        return entries

    def end(self, request: Request, ending: Ending) -> None:
        """End without a token: an error, or a prompt that asked for none."""
        self.tell_end(request, ending)
        self.forget(request)

    def tell_end(self, request: Request, ending: Ending) -> None:
        """The client hears of the end now; the blocks may still have to drain."""
        self.outbox.outputs.append(
            OutputItem(
                request.request_id,
                [],
                ending.finish,
                [],
                self.take_prompt_logprobs(request),
                request.times(self.now_ns),
                ending.error,
            )
        )

    def forget(self, request: Request) -> None:
        """FINISHED: no worker touches its blocks any more; they return to the pool."""
        self.memory.remember(request, self.now_ns)
        request.move(Stage.FINISHED, self.now_ns)
        self.memory.release(request, self.now_ns)
        for suspects in self.suspects.values():
            suspects.forget(request.request_id)
        del self.requests[request.request_id]

    def requeue(self, request: Request) -> None:
        """Back to the waiting queue without blocks: what the prefix tree does not keep is recomputed, nothing is sent
        twice."""
        self.memory.remember(request, self.now_ns)
        request.move(Stage.WAITING, self.now_ns)
        self.memory.release(request, self.now_ns)
        request.num_computed = 0
        request.num_scheduled = 0
        request.num_chunks_in_flight = 0
        request.grow_at = NEVER
        if not request.output_token_ids:
            request.prompt_logprobs = []
        self.memory.expect(request)
        self.queue.push(request)

    def start_draining(self, request: Request, after: AfterLeave) -> None:
        request.after_leave = after
        if after is not AfterLeave.PARK:
            self.pool.num_draining += len(request.block_table)

    def change_after_leave(self, request: Request, after: AfterLeave) -> None:
        """The request is on its way out already; only its fate changes."""
        if request.after_leave is AfterLeave.PARK and after is not AfterLeave.PARK:
            self.pool.num_draining += len(request.block_table)
        request.after_leave = after

    def stop_draining(self, request: Request) -> AfterLeave:
        """The worker has let go: what is to become of the request."""
        after = request.after_leave
        assert after is not None
        request.after_leave = None
        if after is not AfterLeave.PARK:
            self.pool.num_draining -= len(request.block_table)
        return after
