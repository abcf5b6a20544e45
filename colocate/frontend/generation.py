"""One HTTP request while it runs: its choices turn the engine's tokens into text; one consumer takes what is new.

Text is produced when tokens arrive, not when the client reads: a stop string ends a request at once, and a client that
lags gets all that piled up in one chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import structs

from colocate.errors import RequestError
from colocate.frontend.detokenizer import Detokenizer
from colocate.frontend.measures import RequestMeasures
from colocate.frontend.slo import judge
from colocate.frontend.stop_strings import StopMatcher
from colocate.messages.client import OutputItem, RequestTimes, Submit
from colocate.messages.sampling import TokenLogprob
from colocate.messages.slo import NO_SLO, SloClass
from colocate.telemetry.promises import Verdict, all_missed
from colocate.types import FinishReason, RequestId, TokenId


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """`logprob` is None for the first token of a prompt, which nothing precedes."""

    token_id: TokenId
    logprob: float | None
    top: list[tuple[TokenId, float]]


@dataclass(slots=True)
class Update:
    """What is new of one choice since the consumer last looked."""

    index: int
    text: str = ""
    token_ids: list[TokenId] = field(default_factory=list)
    scored: list[ScoredToken] = field(default_factory=list)
    finish: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or token id, where one ended it
    num_tokens: int = 0  # of the whole choice so far


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How the tokens of one HTTP request become text."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    keep_token_ids: bool = False


class Choice:
    """One engine request. Mutated by the engine client's read loop only; the consumer calls `take`."""

    __slots__ = (
        "_detokenizer",
        "_first_ns",
        "_last_ns",
        "_matcher",
        "_num_late_gaps",
        "_options",
        "_pending",
        "finish",
        "generation",
        "num_output_tokens",
        "output_token_ids",
        "queued",
        "slo",
        "submit",
        "times",
        "verdict",
    )

    def __init__(
        self,
        generation: Generation,
        index: int,
        submit: Submit,
        detokenizer: Detokenizer,
        options: TextOptions,
        slo: SloClass = NO_SLO,
    ) -> None:
        """`slo` is what this request is promised, its own targets included."""
        self.generation = generation
        self.submit = submit
        self.output_token_ids: list[TokenId] = []  # all received, for a resubmission
        self.num_output_tokens = 0
        self.finish: FinishReason | None = None
        self.times: RequestTimes | None = None
        self.slo = slo
        self.verdict: Verdict | None = None  # once it is over; None for good where the client gave up
        self.queued = False  # in the generation's list of choices with news
        self._detokenizer = detokenizer
        self._options = options
        self._matcher = StopMatcher(options.stops, options.include_stop) if options.stops else None
        self._pending = Update(index)
        self._first_ns = 0
        self._last_ns = 0
        self._num_late_gaps = 0

    @property
    def request_id(self) -> RequestId:
        return self.submit.request_id

    def echo(self, text: str) -> None:
        """Before anything is submitted: the prompt's text comes first."""
        self._pending.text = text

    def take(self) -> Update:
        update = self._pending
        self._pending = Update(update.index, num_tokens=update.num_tokens)
        return update

    def deliver(self, item: OutputItem, now_ns: int) -> bool:
        """Tokens arrived. True where a stop string ended the choice and the engine does not know yet."""
        token_ids = item.token_ids
        if self.finish is not None:
            return False
        if item.times is not None:
            self._take_times(item.times)
        if not self._first_ns and (item.prompt_logprobs or self.submit.params.prompt_logprobs is not None):
            self._score_prompt(item.prompt_logprobs)
        if token_ids:
            self._measure(now_ns, len(token_ids))
            self.output_token_ids += token_ids
        hit = self._add_tokens(item)
        if hit:
            self._end(FinishReason.STOP, now_ns)
        elif item.finish is not None:
            self._end(item.finish, now_ns)
        return hit

    def _take_times(self, times: RequestTimes) -> None:
        """They come with the first tokens, without the end, and again with the end."""
        known = self.times
        if known is not None:  # the engine of a later epoch knows only when itself began, and what it found itself
            times = structs.replace(
                times,
                scheduled_ns=known.scheduled_ns,
                first_token_ns=known.first_token_ns,
                num_cached_tokens=known.num_cached_tokens,
            )
        self.times = times

    def _add_tokens(self, item: OutputItem) -> bool:
        """Detokenizes; returns whether a stop string was completed. Tokens after it are dropped."""
        pending, matcher, token_ids = self._pending, self._matcher, item.token_ids
        hide_last = item.finish is FinishReason.STOP and not self._options.include_stop
        hit = False
        num_taken = 0
        for token_id in token_ids:
            num_taken += 1
            text = "" if hide_last and num_taken == len(token_ids) else self._detokenizer.step(token_id)
            if matcher is not None and self.num_output_tokens + num_taken >= self.submit.params.min_tokens:
                text, hit = matcher.feed(text)
            pending.text += text
            if hit:
                break
        self.num_output_tokens += num_taken
        pending.num_tokens = self.num_output_tokens
        if self._options.keep_token_ids:
            pending.token_ids += token_ids[:num_taken]
        for token_id, scored in zip(token_ids[:num_taken], item.logprobs, strict=False):
            pending.scored.append(ScoredToken(token_id, scored.logprob, scored.top))
        if not hit and item.finish is not None:
            hit_at_end = self._flush()
            if not hit_at_end and item.finish is FinishReason.STOP and token_ids:
                eos = token_ids[-1] in self.submit.params.eos_token_ids
                pending.stop_reason = None if eos else token_ids[-1]
        return hit

    def _flush(self) -> bool:
        text = self._detokenizer.flush()
        if self._matcher is None:
            self._pending.text += text
            return False
        text, hit = self._matcher.feed(text)
        self._pending.text += text if hit else text + self._matcher.flush()
        return hit

    def _score_prompt(self, scores: list[TokenLogprob]) -> None:
        prompt = self.submit.prompt_token_ids
        scored = self._pending.scored
        scored.append(ScoredToken(prompt[0], None, []))
        for token_id, score in zip(prompt[1:], scores, strict=False):
            scored.append(ScoredToken(token_id, score.logprob, score.top))

    def _measure(self, now_ns: int, num_tokens: int) -> None:
        measures = self.generation.measures
        if self._first_ns:
            gap_ns = now_ns - self._last_ns
            measures.gaps(gap_ns, num_tokens)
            if self.slo.itl_s is not None and gap_ns / 1e9 > self.slo.itl_s:
                self._num_late_gaps += 1  # one, of however many came: the others have no gap between them
        else:
            self._first_ns = now_ns
            measures.first_token(self.submit.arrival_ns, now_ns, len(self.submit.prompt_token_ids))
            if num_tokens > 1:
                measures.gaps(0, num_tokens - 1)
        self._last_ns = now_ns
        measures.num_output_tokens += num_tokens

    def _end(self, reason: FinishReason, now_ns: int) -> None:
        self.finish = self._pending.finish = reason
        if reason is FinishReason.LENGTH and not self._first_ns:  # a prompt scored, nothing generated
            self.generation.measures.num_prompt_tokens += len(self.submit.prompt_token_ids)
        self.generation.measures.request_finished(
            reason,
            arrival_ns=self.submit.arrival_ns,
            submitted_ns=self.generation.submitted_ns,
            first_ns=self._first_ns,
            last_ns=self._last_ns or now_ns,
            num_prompt_tokens=len(self.submit.prompt_token_ids),
            num_output_tokens=len(self.output_token_ids),
            times=self.times,
        )
        self._judge(now_ns)

    def _judge(self, now_ns: int) -> None:
        if self.finish not in (FinishReason.STOP, FinishReason.LENGTH):
            if not self.generation.client_gone:
                self.miss()
            return
        self.verdict = judge(
            self.slo,
            arrival_ns=self.submit.arrival_ns,
            first_ns=self._first_ns or now_ns,
            last_ns=self._last_ns or now_ns,
            num_prompt_tokens=len(self.submit.prompt_token_ids),
            num_output_tokens=len(self.output_token_ids),
            num_late_gaps=self._num_late_gaps,
        )
        self.generation.measures.slo.add(self.slo.name, self.verdict)

    def miss(self) -> None:
        """Refused or failed by the server: every promise counts as broken."""
        if self.verdict is None:
            self.verdict = all_missed(self.slo)
            self.generation.measures.slo.add(self.slo.name, self.verdict)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens whose KV was there already."""
        return 0 if self.times is None else self.times.num_cached_tokens

    def cut(self, reason: FinishReason, now_ns: int) -> None:
        """The request ends without the engine: the client is gone, or the engine is."""
        if self.finish is None:
            self._end(reason, now_ns)

    @property
    def first_token_ns(self) -> int:
        return self._first_ns

    @property
    def last_token_ns(self) -> int:
        return self._last_ns


class Generation:
    """The choices of one HTTP request and the one consumer that waits for them. Lives on the event loop."""

    def __init__(self, measures: RequestMeasures, buffer_bytes: int, *, wake_per_token: bool) -> None:
        self.measures = measures
        self.choices: list[Choice] = []
        self.failure: RequestError | None = None
        self.client_gone = False
        self.submitted_ns = 0  # handed to the engine; 0 before
        self._buffer_bytes = buffer_bytes
        self._buffered_bytes = 0
        self._news: list[Choice] = []
        self._waiter: asyncio.Future[None] | None = None
        self._wake_per_token = wake_per_token
        self._num_running = 0
        self._on_overflow: Callable[[], None] | None = None
        self._token_bytes = 64  # of memory, about, for a token, its text and its scores

    def add(self, choice: Choice) -> None:
        num_scored = choice.submit.params.logprobs
        self._token_bytes = 64 if num_scored is None else 192 + 96 * num_scored
        self.choices.append(choice)
        self._num_running += 1

    @property
    def done(self) -> bool:
        """Nothing more will come: every choice ended, or the request failed, or nobody listens."""
        return self._num_running == 0 or self.failure is not None or self.client_gone

    def on_overflow(self, callback: Callable[[], None]) -> None:
        """Called once when the client lags by more than the buffer; it must be cut off."""
        self._on_overflow = callback

    def deliver(self, choice: Choice, item: OutputItem, now_ns: int) -> bool:
        """True where a stop string ended the choice: the engine must be told."""
        hit = choice.deliver(item, now_ns)
        if choice.finish is not None:
            self._num_running -= 1
            if choice.finish is FinishReason.ERROR:
                self.fail(RequestError(item.error or "the request failed", status=500, type="server_error"))
            elif choice.finish is FinishReason.ABORT:
                self.fail(RequestError("the request was aborted", status=503, type="service_unavailable_error"))
        if not choice.queued:
            choice.queued = True
            self._news.append(choice)
        if self._wake_per_token:
            self._check_buffer(len(item.token_ids))
            self.wake()
        elif self._num_running == 0:
            self.wake()
        return hit

    def _check_buffer(self, num_tokens: int) -> None:
        self._buffered_bytes += self._token_bytes * num_tokens
        if self._buffered_bytes > self._buffer_bytes and self._on_overflow is not None:
            callback, self._on_overflow = self._on_overflow, None
            callback()

    def fail(self, error: RequestError) -> None:
        if self.failure is None:
            self.failure = error
            self.wake()

    def disconnect(self) -> None:
        self.client_gone = True
        self.wake()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Until there is news (streams), the end, or `wake`."""
        if self.done or (self._wake_per_token and self._news):
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self) -> list[Update]:
        """What is new, one update per choice; the consumer now owns it."""
        news, self._news = self._news, []
        self._buffered_bytes = 0
        updates = []
        for choice in news:
            choice.queued = False
            updates.append(choice.take())
        return updates
