"""Where one HTTP request spent its time: five stages that follow one another and add up to its end to end time.

    tokenize  its head was read until it was handed to the engine: body, checks, chat template, tokenization
    queue     until the engine sent its first prefill chunk to the worker
    prefill   until its first token was drawn
    decode    until its last token was drawn
    stream    the rest: the way to the frontend, text, and writing it out

The engine's times and the frontend's are of one monotonic clock. A request that ended early spent the rest in the stage
it was in. Of several choices the slowest tells: the one whose last token came last.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from starlette.datastructures import Headers

from colocate.errors import RequestError
from colocate.frontend.generation import Choice, Generation
from colocate.types import FinishReason

STAGES_HEADER = "x-colocate-stages"
STAGES_VALUES = ("0", "1")


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds. None where the request never got so far; those there are add up to the time from arrival to `end_ns`."""

    tokenize_s: float
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    stream_s: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def wants_stages(headers: Headers) -> bool:
    """Whether the client asks for them. Raises RequestError where the header holds anything but 0 or 1."""
    values = set(headers.getlist(STAGES_HEADER))
    if len(values) > 1 or not values <= set(STAGES_VALUES):
        message = f"the header {STAGES_HEADER} takes 0 or 1"
        raise RequestError(message, param=STAGES_HEADER, code="invalid_value")
    return "1" in values


def stages_of(generation: Generation, end_ns: int) -> Stages:
    """As of `end_ns`, monotonic."""
    choice = max(generation.choices, key=lambda choice: choice.last_token_ns)
    marks_ns = [choice.submit.arrival_ns, generation.submitted_ns, *_engine_marks_ns(choice)]
    spent_s: list[float] = []
    before_ns = marks_ns[0]
    for mark_ns in marks_ns[1:]:
        if not mark_ns:  # where it is now
            break
        until_ns = min(max(mark_ns, before_ns), end_ns)
        spent_s.append((until_ns - before_ns) / 1e9)
        before_ns = until_ns
    names = (stage.name for stage in fields(Stages))
    return Stages(**dict(zip(names, (*spent_s, (end_ns - before_ns) / 1e9), strict=False)))


def _engine_marks_ns(choice: Choice) -> tuple[int, int, int]:
    """First chunk sent, first and last token drawn; 0 where that has not been."""
    times = choice.times
    if times is None:
        return 0, 0, 0
    if choice.finish not in (FinishReason.STOP, FinishReason.LENGTH):
        return times.scheduled_ns, times.first_token_ns, 0
    # a stop string ends a request here: the engine has not said when the last token was drawn
    last_ns = times.finished_ns or choice.last_token_ns
    return times.scheduled_ns, times.first_token_ns or last_ns, last_ns
