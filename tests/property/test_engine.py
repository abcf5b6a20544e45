"""Random event sequences: workers lost, requests aborted, the pool exhausted. Invariants after every event."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colocate.config.profile import Coefficients, DeviceProfile, ShareProfile
from colocate.core.prefill_scheduler import MAX_OVERTAKEN
from colocate.core.queues.choose import DISCIPLINES
from colocate.core.settings import ALL_GUARDS, EngineSettings
from colocate.messages.slo import SloClass
from colocate.types import FinishReason, Role
from tests.property.engine_world import World

UNITS = 4
# A device fast enough for nanosecond steps: deadlines of the classes below are then met, missed and hopeless in turn,
# and two full forwards in flight make a short prompt urgent.
_SHARES = [
    ShareProfile(units, Coefficients(3e-6 / units, 0, 4e-7 / units), Coefficients(1e-9, 2e-8, 4e-7 / units))
    for units in range(1, UNITS + 1)
]
PROFILE = DeviceProfile("test device", "made up", UNITS, 1, 4, _SHARES)
CLASSES = (SloClass("tight", 1.2e-5, 1e-5, itl_s=1.5e-5), SloClass("loose", 6e-5, 5e-5), SloClass("batch"))

engine_settings = st.builds(
    EngineSettings,
    num_blocks=st.one_of(st.integers(8, 24), st.integers(80, 120)),
    block_size=st.sampled_from([2, 4, 8]),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.one_of(st.integers(1, 24), st.just(24)),
    max_queue=st.integers(1, 40),
    total_units=st.just(UNITS),
    plan=st.sampled_from(["elastic", "slo", "on-demand", "static:p2d2"]),
    shadow=st.sampled_from([None, "elastic", "slo"]),
    guards=st.sampled_from([(), ALL_GUARDS]),
    discipline=st.sampled_from(["fcfs", "sjf-window", "edf", "shortest-cache", "memory-aware-deadline"]),
    admission=st.sampled_from(["greedy", "throttle"]),
    prefix_caching=st.booleans(),
    slo_classes=st.just(CLASSES),
    default_slo_class=st.sampled_from(["tight", "batch"]),
    max_slice_ms=st.sampled_from([1e-4, 20.0]),
    latency=st.just(PROFILE),
)
chunked_settings = st.builds(
    lambda settings: msgspec.structs.replace(settings, mode="chunked", plan="elastic", shadow=None), engine_settings
)

slo_class = st.sampled_from(["", "tight", "loose", "batch"])
actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 30), st.integers(0, 30), slo_class),
        st.tuples(st.just("submit"), st.integers(1, 6), st.integers(8, 20), slo_class),
        st.tuples(st.just("resubmit"), st.integers(1, 20), st.integers(2, 20)),
        st.tuples(st.just("next_turn"), st.integers(1, 12), st.integers(1, 8), st.sampled_from(["", "tenant"])),
        st.tuples(st.just("next_turn"), st.integers(1, 12), st.integers(1, 8), st.just("")),
        st.tuples(st.just("clump"), st.integers(16, 30), st.integers(1, 4)),
        st.tuples(st.just("abort"), st.integers(1, 12)),
        st.tuples(st.just("prefill_read")),
        st.tuples(st.just("prefill_run")),
        st.tuples(st.just("turns"), st.integers(1, 12)),
        st.tuples(st.just("turns"), st.integers(1, 12)),
        st.tuples(st.just("decode_turn")),
        st.tuples(st.just("decode_turn")),
        st.tuples(st.just("apply_plan")),
        st.tuples(st.just("pin"), st.sampled_from(["p1d3", "shared", None, "all-decode", "p9d9"])),
        st.tuples(st.just("prefill_fail")),
        st.tuples(st.just("decode_fail")),
        st.tuples(st.just("kill"), st.sampled_from([Role.PREFILL, Role.DECODE])),
        st.tuples(st.just("distrust")),
        st.tuples(st.just("start"), st.sampled_from([Role.PREFILL, Role.DECODE])),
    ),
    min_size=30,
    max_size=120,
)


def submit(world: World, name: str, arguments: list) -> None:
    if name == "submit":
        num_prompt_tokens, max_tokens, slo = arguments
        world.submit(num_prompt_tokens, max_tokens, slo_class=slo)
    elif name == "resubmit":
        num_prompt_tokens, max_tokens = arguments
        world.submit(num_prompt_tokens, max_tokens, already=max_tokens // 2)
    elif name == "clump":
        num_prompt_tokens, num_urgent_tokens = arguments
        for _ in range(3):
            world.submit(num_prompt_tokens, 6, slo_class="batch")
        world.submit(num_urgent_tokens, 4, slo_class="tight")
    else:
        after, num_prompt_tokens, salt = arguments
        world.submit(num_prompt_tokens, 6, after=after, salt=salt)


def perform(world: World, action: tuple) -> None:
    name, *arguments = action
    if name in ("submit", "resubmit", "clump", "next_turn"):
        submit(world, name, arguments)
    elif name == "abort":
        if arguments[0] in world.clients:
            world.abort(arguments[0])
    elif name == "turns":
        for _ in range(arguments[0]):
            world.prefill_read()
            world.prefill_run()
            world.decode_turn()
    elif name == "distrust":
        world.kill(Role.PREFILL, kv_trusted=False)
        world.kill(Role.DECODE, kv_trusted=False)
    else:
        getattr(world, name)(*arguments)


@pytest.mark.timeout(600)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(engine_settings, engine_settings, chunked_settings), actions)
def test_every_request_ends_once_with_its_own_tokens(config: EngineSettings, sequence: list[tuple]) -> None:
    world = World(config)
    world.start(Role.PREFILL)
    world.start(Role.DECODE)
    for action in sequence:
        perform(world, action)
    world.run_until_quiet()
    world.check_end()


def busy_world(discipline: str, **changes: object) -> World:
    world = World(
        EngineSettings(
            num_blocks=400, block_size=4, max_num_seqs=16, max_num_batched_tokens=24, max_queue=999, total_units=UNITS,
            plan="static:p2d2", discipline=discipline, slo_classes=CLASSES, default_slo_class="batch", latency=PROFILE,
            **changes,
        )
    )  # fmt: skip
    for role in (Role.PREFILL, Role.DECODE):
        world.start(role)
    return world


def test_a_short_prompt_that_would_be_late_interrupts_the_forwards_in_flight() -> None:
    world = busy_world("fcfs")
    perform(world, ("clump", 24, 2))
    assert [batch.urgent for batch in world.engine.prefill.batches] == [True, False, False]
    assert world.engine.prefill.num_set_aside == 1
    world.run_until_quiet()
    world.check_end()


def test_urgency_is_judged_again_when_somebody_else_has_gone() -> None:
    """The queue is as long as before, and another one stands in it."""
    world = busy_world("fcfs")
    for _ in range(3):
        world.submit(24, 6, slo_class="batch")
    patient = world.submit(2, 4, slo_class="batch")
    world.abort(patient)
    world.submit(2, 4, slo_class="tight")
    assert world.engine.prefill.num_set_aside == 1


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_a_prompt_that_has_begun_is_not_overtaken_for_ever(discipline: str) -> None:
    """A long prompt without a deadline, and urgent ones without end, each of which fills a forward and could be in
    time."""
    world = busy_world(discipline, prefix_caching=False)
    long = world.submit(24 * 8, 2, slo_class="batch")
    for _ in range(800):
        if len(world.engine.books.queue) < 3:
            world.submit(24, 1, slo_class="loose")
        world.prefill_read()
        world.prefill_run()
        world.decode_turn()
        if world.clients[long].tokens:
            break
    served = sum(client.finish is not None for client in world.clients.values())
    assert world.clients[long].tokens, "its first token never came"
    assert served <= 2 * MAX_OVERTAKEN + 16


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(2, 20)), min_size=2, max_size=6),
    st.booleans(),
    st.data(),
)
def test_a_poison_request_fails_alone(shapes: list[tuple[int, int]], one_fate: bool, data: st.DataObject) -> None:
    world = World(
        EngineSettings(
            num_blocks=64,
            block_size=4,
            max_num_seqs=6,
            max_num_batched_tokens=32,
            max_queue=16,
            total_units=2,
            one_fate=one_fate,
        )
    )
    world.start(Role.PREFILL)
    world.start(Role.DECODE)
    ids = [world.submit(*shape) for shape in shapes]
    world.poison = {data.draw(st.sampled_from(ids))}
    world.run_until_quiet()
    world.check_end()
    for request_id in ids:
        expected = FinishReason.ERROR if request_id in world.poison else FinishReason.LENGTH
        assert world.clients[request_id].finish is expected
    assert set(world.convicted) == world.poison


# 705 and 1486 are orders in which a prompt in prefill faulted the GPU while an innocent was on trial in decode.
@pytest.mark.parametrize("seed", [705, 1486, *range(20)])
def test_several_poison_requests_convict_nobody_else(seed: int) -> None:
    order = random.Random(seed)
    world = World(
        EngineSettings(
            num_blocks=64,
            block_size=4,
            max_num_seqs=6,
            max_num_batched_tokens=32,
            max_queue=50,
            total_units=2,
            one_fate=True,
        )
    )
    world.start(Role.PREFILL)
    world.start(Role.DECODE)
    num_requests = order.randint(3, 9)
    while len(world.clients) < num_requests or world.engine.books.requests:
        if len(world.clients) < num_requests and order.random() < 0.2:
            request_id = world.submit(order.randint(1, 20), order.randint(2, 20))
            if order.random() < 0.35:
                world.poison.add(request_id)
        for role in (Role.PREFILL, Role.DECODE):
            world.start(role)
        moves = [world.prefill_read, world.prefill_run, world.decode_turn]
        order.shuffle(moves)
        for move in moves:
            if order.random() < 0.7:
                move()
    failed = {number for number, client in world.clients.items() if client.finish is FinishReason.ERROR}
    assert failed == world.poison


@settings(max_examples=50, deadline=None)
@given(engine_settings, actions)
def test_the_same_events_give_the_same_commands(config: EngineSettings, sequence: list[tuple]) -> None:
    def run() -> list[tuple]:
        world = World(config)
        seen: list[tuple] = []
        carry_out = world.carry_out
        world.carry_out = lambda commands: (seen.extend(commands), carry_out(commands))[1]  # type: ignore[method-assign]
        for action in sequence:
            perform(world, action)
        return seen

    assert run() == run()
