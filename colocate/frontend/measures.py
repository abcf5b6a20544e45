"""What the frontend itself measures of requests. Engine-side values come from `EngineState`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from colocate.frontend.histogram import FIRST_TOKEN_S, NUM_TOKENS, REQUEST_S, TOKEN_GAP_S, Histogram
from colocate.frontend.slo import SloCounts
from colocate.messages.client import RequestTimes
from colocate.types import FinishReason

NS = 1e-9


@dataclass(slots=True)
class RequestMeasures:
    """Seconds and counts, one observation per engine request (choice) unless stated. Owned by the event loop."""

    ttft_s: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_S))  # arrival -> first token seen here
    itl_s: Histogram = field(default_factory=lambda: Histogram(TOKEN_GAP_S))  # every gap between two tokens
    tpot_s: Histogram = field(default_factory=lambda: Histogram(TOKEN_GAP_S))  # mean gap after the first token
    e2e_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_S))
    tokenize_s: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_S))  # arrival -> submitted
    queue_s: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_S))  # submitted -> scheduled
    prefill_s: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_S))  # scheduled -> first token
    decode_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_S))  # first token -> last
    stream_s: Histogram = field(
        default_factory=lambda: Histogram(FIRST_TOKEN_S)
    )  # last token -> sent; per HTTP request
    prompt_tokens: Histogram = field(default_factory=lambda: Histogram(NUM_TOKENS))
    output_tokens: Histogram = field(default_factory=lambda: Histogram(NUM_TOKENS))
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    rejected: Counter[int] = field(default_factory=Counter)  # by HTTP status
    slo: SloCounts = field(default_factory=SloCounts)

    def first_token(self, arrival_ns: int, now_ns: int, num_prompt_tokens: int) -> None:
        self.ttft_s.observe((now_ns - arrival_ns) * NS)
        self.num_prompt_tokens += num_prompt_tokens

    def gaps(self, gap_ns: int, num_tokens: int) -> None:
        """`num_tokens` came together, `gap_ns` after the one before: one gap and zeros."""
        self.itl_s.observe(gap_ns * NS)
        for _ in range(num_tokens - 1):
            self.itl_s.observe(0.0)

    def request_finished(
        self,
        reason: FinishReason,
        *,
        arrival_ns: int,
        submitted_ns: int,
        first_ns: int,
        last_ns: int,
        num_prompt_tokens: int,
        num_output_tokens: int,
        times: RequestTimes | None,
    ) -> None:
        self.finished[reason.value] += 1
        if reason not in (FinishReason.STOP, FinishReason.LENGTH):
            return
        self.e2e_s.observe((last_ns - arrival_ns) * NS)
        if num_output_tokens > 1:
            self.tpot_s.observe((last_ns - first_ns) * NS / (num_output_tokens - 1))
        self.prompt_tokens.observe(num_prompt_tokens)
        self.output_tokens.observe(num_output_tokens)
        if times is not None and times.scheduled_ns:
            self.tokenize_s.observe((submitted_ns - arrival_ns) * NS)
            self.queue_s.observe(max(0, times.scheduled_ns - submitted_ns) * NS)
            if times.first_token_ns:
                self.prefill_s.observe((times.first_token_ns - times.scheduled_ns) * NS)
                # a stop string ends a request here: the engine has not said when it finished
                finished_ns = times.finished_ns or last_ns
                self.decode_s.observe(max(0, finished_ns - times.first_token_ns) * NS)
