"""Random event sequences: workers lost, requests aborted, the pool exhausted. Invariants after every event."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colocate.config.profile import Coefficients, DeviceProfile, ShareProfile
from colocate.core.settings import ALL_GUARDS, EngineSettings
from colocate.messages.slo import SloClass
from colocate.types import FinishReason, Role
from tests.property.engine_world import World

UNITS = 4
# A device fast enough for nanosecond steps: deadlines of the classes below are then met, missed and hopeless in turn.
_SHARES = [
    ShareProfile(units, Coefficients(4e-8 / units, 0, 4e-7 / units), Coefficients(1e-9, 2e-8, 4e-7 / units))
    for units in range(1, UNITS + 1)
]
PROFILE = DeviceProfile("test device", "made up", UNITS, 1, 4, _SHARES)
CLASSES = (SloClass("tight", 3e-6, 1e-6, itl_s=1.5e-6), SloClass("loose", 2e-5, 5e-6), SloClass("batch"))

engine_settings = st.builds(
    EngineSettings,
    num_blocks=st.integers(8, 24),
    block_size=st.sampled_from([2, 4, 8]),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 24),
    max_queue=st.integers(1, 12),
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


def perform(world: World, action: tuple) -> None:
    name, *arguments = action
    if name == "submit":
        num_prompt_tokens, max_tokens, slo = arguments
        world.submit(num_prompt_tokens, max_tokens, slo_class=slo)
    elif name == "resubmit":
        num_prompt_tokens, max_tokens = arguments
        world.submit(num_prompt_tokens, max_tokens, already=max_tokens // 2)
    elif name == "next_turn":
        after, num_prompt_tokens, salt = arguments
        world.submit(num_prompt_tokens, 6, after=after, salt=salt)
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


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(2, 20)), min_size=2, max_size=6),
    st.data(),
)
def test_a_poison_request_fails_alone(shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    world = World(
        EngineSettings(
            num_blocks=64, block_size=4, max_num_seqs=6, max_num_batched_tokens=32, max_queue=16, total_units=2
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
