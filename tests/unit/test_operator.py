"""Orders of an operator reach the engine as events: pins, changed targets, plan files; refused whole or done."""

from __future__ import annotations

import pytest

from colocate.core.settings import EngineSettings
from colocate.core.slo import SloBook
from colocate.messages.client import ChangeSlo, Submit, UsePlans
from colocate.messages.sampling import SamplingParams
from colocate.messages.slo import NO_SLO, SloClass
from colocate.types import Role
from tests.property.engine_world import World

CLASSES = (SloClass("interactive", 0.3, 0.05), SloClass("batch"))


def make_world(**changes: object) -> World:
    settings = EngineSettings(
        num_blocks=64, block_size=4, max_num_seqs=8, max_num_batched_tokens=32, max_queue=16, total_units=8,
        slo_classes=CLASSES, default_slo_class="batch", **changes,
    )  # fmt: skip
    world = World(settings)
    for role in (Role.PREFILL, Role.DECODE):
        world.start(role)
    return world


def submit(**changes: object) -> Submit:
    return Submit(1, [1, 2], SamplingParams(max_tokens=4), 0, **changes)


def test_a_pin_holds_through_load_and_a_release_ends_it() -> None:
    world = make_world(plan="elastic")
    world.pin("p5d3")
    assert world.engine.plan.name == "p5d3"
    world.submit(20, 8)
    for _ in range(4):
        world.prefill_read()
        world.prefill_run()
        world.decode_turn()
        assert world.engine.plan.name == "p5d3"
    world.pin(None)
    world.decode_turn()
    assert world.engine.plan.name == "all-decode", "elastic lends again"
    assert [reply.problem for reply in world.replies] == ["", ""]


@pytest.mark.parametrize("plan", ["p9d9", "all-decode", "nonsense"])
def test_a_plan_that_cannot_serve_is_refused_and_nothing_changes(plan: str) -> None:
    world = make_world(plan="static:p4d4")
    world.pin(plan)
    assert world.replies[0].problem and world.replies[0].remedy
    assert world.engine.plan.name == "p4d4" and world.engine.controller.pinned is None


def test_targets_change_for_requests_from_now_on() -> None:
    world = make_world()
    before = world.submit(4, 4, slo_class="interactive")
    world.handle(ChangeSlo(7, [SloClass("interactive", 0.1, 0.02, itl_s=0.04)]))
    after = world.submit(4, 4, slo_class="interactive")
    requests = world.engine.books.requests
    assert (requests[before].slo.ttft_s, requests[after].slo.ttft_s) == (0.3, 0.1)
    assert (requests[after].tpot_ns, requests[after].itl_ns) == (20_000_000, 40_000_000)
    assert world.replies[0].query_id == 7 and not world.replies[0].problem


@pytest.mark.parametrize(
    "changed", [SloClass("unknown", 0.1), SloClass("interactive", 0.0), SloClass("batch", itl_s=-1.0)]
)
def test_targets_that_make_no_sense_change_nothing(changed: SloClass) -> None:
    world = make_world()
    world.handle(ChangeSlo(1, [SloClass("batch", 9.0), changed]))
    assert world.replies[0].problem
    assert tuple(world.engine.slo.classes.values()) == CLASSES


def test_a_plan_file_read_again_changes_the_candidates() -> None:
    world = make_world(plan="elastic")
    world.handle(UsePlans(0, ["p6d2", "p5d3"], "p6d2"))
    assert world.engine.controller.candidates == ("p6d2", "p5d3") and world.engine.controller.best_static == "p6d2"
    world.handle(UsePlans(0, ["p3d9"], "p3d9"))
    assert world.engine.controller.candidates == ("p6d2", "p5d3")
    assert [bool(reply.problem) for reply in world.replies] == [False, True]


def test_a_request_falls_under_its_class_the_default_or_its_own_targets() -> None:
    book = SloBook(CLASSES, "batch")
    assert book.of(submit()).name == "batch"
    assert book.of(submit(slo_class="interactive")) == CLASSES[0]
    own = book.of(submit(slo_class="interactive", ttft_s=0.9, itl_s=0.2))
    assert (own.ttft_s, own.tpot_s, own.itl_s) == (0.9, 0.05, 0.2)
    assert SloBook((), "").of(submit()) == NO_SLO
    assert SloBook(CLASSES, "").of(submit()) == CLASSES[0], "without a word the first class is the default"
