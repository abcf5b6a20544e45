"""Five stages from the engine's times and the frontend's, in exact nanoseconds."""

from __future__ import annotations

from dataclasses import astuple

import pytest
from starlette.datastructures import Headers

from colocate.errors import RequestError
from colocate.frontend.detokenizer import ByteLevelDetokenizer
from colocate.frontend.generation import Choice, Generation, TextOptions
from colocate.frontend.measures import RequestMeasures
from colocate.frontend.stages import stages_of, wants_stages
from colocate.messages.client import OutputItem, RequestTimes, Submit
from colocate.messages.sampling import SamplingParams
from colocate.types import FinishReason

MS = 1_000_000
ARRIVAL, SUBMITTED, SCHEDULED, FIRST, LAST, SENT = (10 * MS, 12 * MS, 15 * MS, 35 * MS, 95 * MS, 96 * MS)


def generation_of(*choices: list[tuple[int, OutputItem]]) -> Generation:
    """Each choice with the items that came for it and when."""
    generation = Generation(RequestMeasures(), 1 << 20, wake_per_token=False)
    generation.submitted_ns = SUBMITTED
    for index, items in enumerate(choices):
        submit = Submit(index, [1], SamplingParams(max_tokens=9, choice=index), ARRIVAL)
        choice = Choice(generation, index, submit, ByteLevelDetokenizer([b"x"] * 10), TextOptions())
        generation.add(choice)
        for at_ns, item in items:
            generation.deliver(choice, item, at_ns)
    return generation


def first(at_ns: int = FIRST, scheduled_ns: int = SCHEDULED) -> tuple[int, OutputItem]:
    return at_ns + MS, OutputItem(0, [5], times=RequestTimes(ARRIVAL, scheduled_ns, at_ns, 0, 0))


def last(at_ns: int = LAST, finish: FinishReason = FinishReason.LENGTH) -> tuple[int, OutputItem]:
    return at_ns, OutputItem(0, [6], finish, times=RequestTimes(ARRIVAL, SCHEDULED, FIRST, at_ns, 0))


def in_ms(generation: Generation, end_ns: int = SENT) -> list[float | None]:
    return [None if spent_s is None else spent_s * 1e3 for spent_s in astuple(stages_of(generation, end_ns))]


def test_they_follow_one_another() -> None:
    generation = generation_of([first(), last()])
    assert in_ms(generation) == pytest.approx([2, 3, 20, 60, 1])


def test_the_slowest_choice_tells() -> None:
    quick = [first(20 * MS), last(30 * MS)]
    generation = generation_of(quick, [first(), last()], quick)
    assert in_ms(generation) == pytest.approx([2, 3, 20, 60, 1])


def test_one_that_ended_early_spent_the_rest_where_it_was() -> None:
    assert in_ms(generation_of([])) == pytest.approx([2, 84, None, None, None])
    assert in_ms(generation_of([first()])) == pytest.approx([2, 3, 20, 61, None])


def test_a_stop_string_ends_decode_where_it_was_seen() -> None:
    generation = generation_of([first()])
    generation.choices[0].cut(FinishReason.STOP, LAST)
    assert in_ms(generation) == pytest.approx([2, 3, 20, 1, 60])


def test_one_token_has_no_decode() -> None:
    item = OutputItem(0, [5], FinishReason.LENGTH, times=RequestTimes(ARRIVAL, SCHEDULED, FIRST, FIRST, 0))
    assert in_ms(generation_of([(FIRST + MS, item)])) == pytest.approx([2, 3, 20, 0, 61])


def test_a_prompt_that_was_only_scored() -> None:
    item = OutputItem(0, [], FinishReason.LENGTH, times=RequestTimes(ARRIVAL, SCHEDULED, FIRST, FIRST, 0))
    assert in_ms(generation_of([(FIRST + MS, item)])) == pytest.approx([2, 3, 20, 0, 61])


def test_no_stage_is_negative_where_marks_are_out_of_order() -> None:
    """A successor of a lost engine may have scheduled what its predecessor answered."""
    generation = generation_of([first(FIRST, scheduled_ns=SUBMITTED - MS), last()])
    assert in_ms(generation) == pytest.approx([2, 0, 23, 60, 1])


@pytest.mark.parametrize(
    ("header", "wanted"), [({}, False), ({"x-colocate-stages": "0"}, False), ({"X-Colocate-Stages": "1"}, True)]
)
def test_the_header(header: dict[str, str], wanted: bool) -> None:
    assert wants_stages(Headers(header)) is wanted


@pytest.mark.parametrize("values", [("2",), ("",), ("true",), ("0", "1")])
def test_other_headers_are_refused(values: tuple[str, ...]) -> None:
    raw = [(b"x-colocate-stages", value.encode()) for value in values]
    with pytest.raises(RequestError, match="takes 0 or 1"):
        wants_stages(Headers(raw=raw))
