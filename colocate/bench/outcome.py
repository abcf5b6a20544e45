"""What has become of requests: a row of what a stream has seen, and counts over all rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from colocate.bench.records import Outcome, Phase, RequestRow
from colocate.bench.stream import StreamSink
from colocate.telemetry.quantiles import quantile
from colocate.workload.rows import WorkloadRow

_REJECTED = (429, 503)


@dataclass(slots=True)
class LoadCounts:
    """What a progress display and the manifest want to know; kept up to date."""

    offered: int = 0  # of the workload
    sent: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    late_s: list[float] = field(default_factory=list)  # sent - due, of each request that was sent
    num_prompts_told: int = 0  # answers whose usage says how long the prompt was
    num_prompts_off: int = 0  # of those, not as planned
    largest_prompt_error: int = 0  # tokens, with its sign
    num_short: int = 0  # finished with fewer or more tokens than asked for

    def lateness(self) -> dict[str, float | None]:
        late = sorted(self.late_s)
        if not late:
            return {"p50": None, "p99": None, "max": None}
        return {"p50": quantile(late, 0.5), "p99": quantile(late, 0.99), "max": late[-1]}

    def add(self, row: RequestRow, told_prompt_tokens: int | None) -> None:
        """A request has ended. `told_prompt_tokens`: by the server's usage; None where it has not come to that."""
        self.outcomes[row.outcome] = self.outcomes.get(row.outcome, 0) + 1
        if row.outcome == "finished" and row.output_tokens != row.max_tokens:
            self.num_short += 1
        if told_prompt_tokens is not None:
            self.num_prompts_told += 1
            if error := told_prompt_tokens - row.prompt_tokens:
                self.num_prompts_off += 1
                self.largest_prompt_error = max(self.largest_prompt_error, error, key=abs)


def make_row(
    index: int,
    row: WorkloadRow,
    phase: Phase,
    due_s: float,
    sent_s: float | None,
    sink: StreamSink,
    outcome: Outcome,
) -> RequestRow:
    """What a sink has seen as a row, without its end."""
    token_s, source = sink.tokens()
    return RequestRow(
        index=index,
        scheduled_s=microseconds(due_s),
        phase=phase,
        prompt_tokens=row.prompt_tokens,
        max_tokens=row.output_tokens,
        outcome=outcome,
        sent_s=None if sent_s is None else microseconds(sent_s),
        first_byte_s=None if sink.first_byte_s is None else microseconds(sink.first_byte_s),
        token_s=tuple(microseconds(at_s) for at_s in token_s),
        status=sink.status,
        finish_reason=sink.finish_reason,
        error=sink.error,
        error_kind=sink.error_kind,
        output_tokens=len(token_s),
        token_source=source,
        cached_tokens=sink.cached_tokens,
        retry_after_s=sink.retry_after_s,
        slo_class=row.slo_class,
        session=row.session,
        stages=sink.stages,
    )


def outcome_of(sink: StreamSink) -> Outcome:
    if sink.error is None:
        return "finished"
    if sink.status in _REJECTED:
        return "rejected"
    return "timed_out" if sink.error_kind == "timeout" else "failed"


def microseconds(seconds: float) -> float:
    """Rows hold no finer times."""
    return round(seconds, 6)
