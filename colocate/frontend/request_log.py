"""One structured line per finished generation request, always: what was asked, how it ended, how long it took."""

from __future__ import annotations

import structlog

from colocate.errors import RequestError
from colocate.frontend.generation import Generation
from colocate.frontend.slo import GOOD, MISSED
from colocate.frontend.stages import Stages

_log = structlog.get_logger("colocate.request")


def _ms(later_ns: int, earlier_ns: int) -> float | None:
    return round((later_ns - earlier_ns) / 1e6, 3) if later_ns and earlier_ns else None


def _stage_ms(spent_s: float | None) -> float | None:
    return None if spent_s is None else round(spent_s * 1e3, 3)


def _verdict(kept: list[bool | None]) -> str | None:
    """Of all choices; None where nothing was promised, or the client gave up."""
    judged = [each for each in kept if each is not None]
    return (GOOD if all(judged) else MISSED) if judged else None


def log_refused(request_id: str, path: str, error: RequestError) -> None:
    """A generation request that never got tokens."""
    _log.info("request", request_id=request_id, path=path, status=error.status, error=error.message, param=error.param)


def log_finished(request_id: str, model: str, generation: Generation, status: int, stages: Stages, now_ns: int) -> None:
    choices = generation.choices
    first_ns = min((choice.first_token_ns for choice in choices if choice.first_token_ns), default=0)
    arrival_ns = choices[0].submit.arrival_ns
    num_output = sum(choice.num_output_tokens for choice in choices)
    times = [choice.times for choice in choices if choice.times is not None]
    gaps = [
        (choice.last_token_ns - choice.first_token_ns) / (choice.num_output_tokens - 1) / 1e6
        for choice in choices
        if choice.num_output_tokens > 1
    ]
    firsts = [choice for choice in choices if choice.submit.params.choice == 0]
    verdicts = [choice.verdict for choice in choices if choice.verdict is not None]
    _log.info(
        "request",
        request_id=request_id,
        model=model,
        status=status,
        finish_reason=",".join("-" if choice.finish is None else choice.finish.value for choice in choices),
        prompt_tokens=sum(len(choice.submit.prompt_token_ids) for choice in firsts),
        cached_tokens=sum(choice.num_cached_tokens for choice in firsts),
        output_tokens=num_output,
        tokenize_ms=_stage_ms(stages.tokenize_s),
        queue_ms=_stage_ms(stages.queue_s),
        prefill_ms=_stage_ms(stages.prefill_s),
        decode_ms=_stage_ms(stages.decode_s),
        stream_ms=_stage_ms(stages.stream_s),
        ttft_ms=_ms(first_ns, arrival_ns),
        tpot_ms=round(sum(gaps) / len(gaps), 3) if gaps else None,
        e2e_ms=_ms(now_ns, arrival_ns),
        slo_class=choices[0].slo.name,
        slo_ttft=_verdict([verdict.ttft for verdict in verdicts]),
        slo_tpot=_verdict([verdict.tpot for verdict in verdicts]),
        slo_itl=_verdict([verdict.itl for verdict in verdicts]),
        preemptions=sum(entry.preemptions for entry in times),
        error=None if generation.failure is None else generation.failure.message,
    )
