"""Blocks, stop rule, ledger, drain rate, request lifecycle: each promise once."""

from __future__ import annotations

import pytest

from colocate.config.profile import Coefficients, DeviceProfile, ShareProfile
from colocate.core.blocks import BlockPool
from colocate.core.drain_rate import MAX_RETRY_S, DrainRate
from colocate.core.engine import Engine
from colocate.core.ledger import SWITCHING, SwitchLedger
from colocate.core.outbox import MESSAGE_TOKENS, in_pieces
from colocate.core.plan import build_plan_table
from colocate.core.request import TRANSITIONS, Request, Stage
from colocate.core.settings import EngineSettings
from colocate.core.stop import finish_after
from colocate.errors import InvariantError
from colocate.messages.client import Submit
from colocate.messages.control import WorkerGone, WorkerHello
from colocate.messages.prefill import PrefillBatch
from colocate.messages.sampling import SamplingParams
from colocate.types import FinishReason, Role
from tests.property.engine_world import World


def make_request(request_id: int) -> Request:
    return Request(request_id, [1, 2, 3], SamplingParams(max_tokens=4), 0, [])


def test_shared_blocks_return_with_their_last_holder() -> None:
    pool = BlockPool(4, 16)
    blocks = pool.allocate(3)
    pool.share(blocks[:1])
    pool.release(blocks)
    assert pool.num_free == 3
    assert pool.ref_count(blocks[0]) == 1
    pool.release(blocks[:1])
    assert pool.num_free == 4


def test_the_pool_refuses_what_cannot_be() -> None:
    pool = BlockPool(2, 16)
    assert not pool.can_allocate(3)
    with pytest.raises(InvariantError):
        pool.allocate(3)
    with pytest.raises(InvariantError, match="nobody holds it"):
        pool.release([0])
    with pytest.raises(InvariantError, match="is free"):
        pool.share([0])


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_blocks_for(num_tokens: int, num_blocks: int) -> None:
    assert BlockPool(4, 16).blocks_for(num_tokens) == num_blocks


@pytest.mark.parametrize(
    ("params", "position", "token", "expected"),
    [
        (SamplingParams(max_tokens=9, eos_token_ids=(5,)), 0, 5, FinishReason.STOP),
        (SamplingParams(max_tokens=9, eos_token_ids=(5,), ignore_eos=True), 0, 5, None),
        (SamplingParams(max_tokens=9, eos_token_ids=(5,), min_tokens=2), 0, 5, None),
        (SamplingParams(max_tokens=9, eos_token_ids=(5,), min_tokens=2), 1, 5, FinishReason.STOP),
        (SamplingParams(max_tokens=9, stop_token_ids=(7,), ignore_eos=True), 0, 7, FinishReason.STOP),
        (SamplingParams(max_tokens=3), 2, 1, FinishReason.LENGTH),
        (SamplingParams(max_tokens=3), 1, 1, None),
        (SamplingParams(max_tokens=3, eos_token_ids=(5,)), 2, 5, FinishReason.STOP),
    ],
)
def test_stop_rule(params: SamplingParams, position: int, token: int, expected: FinishReason | None) -> None:
    assert finish_after(params, position, token) is expected


def test_an_illegal_move_tells_the_story_and_changes_nothing() -> None:
    request = make_request(1)
    request.move(Stage.PREFILLING, 5)
    with pytest.raises(InvariantError, match="5 waiting -> prefilling"):
        request.move(Stage.DECODING, 6)
    assert request.stage is Stage.PREFILLING


def test_every_stage_has_its_row_and_only_the_end_is_final() -> None:
    assert set(TRANSITIONS) == set(Stage)
    assert [stage for stage, targets in TRANSITIONS.items() if not targets] == [Stage.FINISHED]


def test_prefill_tokens_span_prompt_and_output() -> None:
    request = make_request(1)
    request.output_token_ids = [4, 5]
    everything = [1, 2, 3, 4, 5]
    for start in range(6):
        for end in range(start, 6):
            assert request.prefill_tokens(start, end) == everything[start:end]
    assert [request.token_at(position) for position in range(5)] == everything


def test_a_switch_is_in_force_once_both_workers_applied_it() -> None:
    table = build_plan_table(2)
    split, all_decode = table.by_name("p1d1"), table.by_name("all-decode")
    ledger = SwitchLedger(split)
    for role in (Role.PREFILL, Role.DECODE):
        ledger.applied(role, 1, 900)
    ledger.account(1_000, active=True)
    ledger.account(3_000, active=True)
    ledger.decide(split, all_decode, "prefill idle", 3_000)
    ledger.applied(Role.PREFILL, 2, 3_500)
    ledger.account(4_000, active=True)
    assert ledger.in_force() == SWITCHING
    ledger.applied(Role.DECODE, 2, 4_000)
    assert ledger.in_force() == "all-decode"
    ledger.account(9_000, active=True)
    ledger.account(20_000, active=False)
    assert ledger.residency_ns["p1d1"] == 2_000
    assert ledger.residency_ns[SWITCHING] == 1_000
    assert ledger.residency_ns["all-decode"] == 5_000
    assert list(ledger.latencies_ns) == [1_000]


def test_a_switch_overtaken_by_the_next_has_no_latency() -> None:
    table = build_plan_table(2)
    split, all_decode = table.by_name("p1d1"), table.by_name("all-decode")
    ledger = SwitchLedger(split)
    ledger.decide(split, all_decode, "", 100)
    ledger.decide(all_decode, split, "", 200)
    ledger.applied(Role.PREFILL, 2, 210)
    ledger.applied(Role.PREFILL, 3, 220)
    ledger.applied(Role.DECODE, 3, 230)
    assert list(ledger.latencies_ns) == [30]
    assert ledger.in_force() == "p1d1"


def test_the_ledger_keeps_the_last_switches_with_what_became_of_them() -> None:
    table = build_plan_table(2)
    plans = (table.by_name("p1d1"), table.by_name("all-decode"))
    ledger = SwitchLedger(plans[0])
    assert ledger.last is None
    for number in range(2, 102):
        ledger.decide(plans[number % 2], plans[1 - number % 2], "", number * 10)
        if number % 3:
            ledger.applied(Role.PREFILL, number, number * 10 + 1)
    kept = [switch.record() for switch in ledger.recent]
    assert [record.seq for record in kept] == list(range(38, 102)) and ledger.count == 100
    assert [record.prefill_applied_ns for record in kept[:3]] == [381, 0, 401]  # 39 was overtaken before
    assert ledger.last is not None and ledger.last.record() == kept[-1]


def test_a_switch_that_waited_for_a_restart_has_no_latency() -> None:
    table = build_plan_table(2)
    ledger = SwitchLedger(table.by_name("p1d1"))
    ledger.decide(table.by_name("p1d1"), table.by_name("all-decode"), "", 100)
    ledger.applied(Role.DECODE, 2, 150)
    ledger.interrupt()
    ledger.applied(Role.PREFILL, 2, 5_000_000_000)
    assert list(ledger.latencies_ns) == []
    assert ledger.in_force() == "all-decode"


def test_retry_after_follows_the_rate_at_which_the_queue_drains() -> None:
    rate = DrainRate()
    assert rate.retry_after_s(10, 0) == MAX_RETRY_S
    for index in range(1, 2001):
        rate.left_queue(index * 50_000_000)  # 20 per second for 100 s
    assert rate.retry_after_s(200, 100_000_000_000) == pytest.approx(5.0, rel=0.1)
    assert rate.retry_after_s(1, 100_000_000_000) == 1.0


@pytest.mark.parametrize("first", [Role.PREFILL, Role.DECODE])
def test_no_block_is_given_out_before_both_workers_are_known(first: Role) -> None:
    """A worker of the epoch before may still write to any block until it said Hello, or is dead."""
    settings = EngineSettings(
        num_blocks=8, block_size=4, max_num_seqs=2, max_num_batched_tokens=8, max_queue=2, total_units=2
    )
    second = Role.DECODE if first is Role.PREFILL else Role.PREFILL
    for meet_second in (WorkerHello(second, 1, 2, 1), WorkerGone(second, 1, "killed")):
        engine = Engine(settings)
        engine.handle(WorkerHello(first, 1, 2, 1), 1)
        engine.handle(Submit(1, [1, 2, 3], SamplingParams(max_tokens=4), 1), 2)
        assert engine.books.pool.num_free == 8
        commands = engine.handle(meet_second, 3) + engine.handle(WorkerHello(second, 2, 2, 1), 4)
        assert any(isinstance(command.message, PrefillBatch) for command in commands)


def test_the_youngest_gives_way_whatever_its_phase() -> None:
    """An old row starves while a younger prompt holds the pool in prefill: the prompt is the victim."""
    settings = EngineSettings(
        num_blocks=6, block_size=4, max_num_seqs=4, max_num_batched_tokens=4, max_queue=4, total_units=2
    )
    world = World(settings)
    for role in (Role.PREFILL, Role.DECODE):
        world.start(role)
    old = world.submit(4, 12)
    world.prefill_read()
    world.prefill_run()
    young = world.submit(12, 2)
    for _ in range(6):
        world.decode_turn()
    assert world.engine.books.requests[old].num_preemptions == 0
    assert world.engine.books.requests[young].num_preemptions == 1
    world.run_until_quiet()
    world.check_end()


def test_large_messages_are_cut_in_order() -> None:
    pieces = in_pieces([3, MESSAGE_TOKENS - 3, 1, MESSAGE_TOKENS * 2, 5], lambda size: size)
    assert pieces == [[3, MESSAGE_TOKENS - 3], [1], [MESSAGE_TOKENS * 2], [5]]


PROFILE = DeviceProfile(
    "test device", "made up", 4, 1, 4, [ShareProfile(4, Coefficients(1e-8, 0, 1e-7), Coefficients(1e-9, 1e-8, 1e-7))]
)


@pytest.mark.parametrize("plan", ["static:p2d2", "elastic"])
def test_the_latency_model_learns_both_phases_from_clean_work(plan: str) -> None:
    """The world takes 900 ns for everything, which is more than this profile says."""
    world = World(
        EngineSettings(
            num_blocks=64, block_size=4, max_num_seqs=8, max_num_batched_tokens=8, max_queue=8, total_units=4,
            plan=plan, latency=PROFILE,
        )
    )  # fmt: skip
    for role in (Role.PREFILL, Role.DECODE):
        world.start(role)
    for _ in range(4):
        world.submit(24, 12)
    while any(client.finish is None for client in world.clients.values()):
        world.apply_plan()
        world.prefill_read()
        world.prefill_run()
        world.decode_turn()
    model = world.engine.books.model
    assert model is not None
    assert model.correction("prefill") > 1.0 and model.correction("decode") > 1.0
