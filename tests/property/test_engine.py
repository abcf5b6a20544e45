"""Random event sequences: workers lost, requests aborted, the pool exhausted. Invariants after every event."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colocate.core.settings import EngineSettings
from colocate.types import FinishReason, Role
from tests.property.engine_world import World

engine_settings = st.builds(
    EngineSettings,
    num_blocks=st.integers(8, 24),
    block_size=st.sampled_from([2, 4, 8]),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 24),
    max_queue=st.integers(1, 12),
    total_units=st.integers(1, 4),
    plan=st.just("elastic"),
)

actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 30), st.integers(0, 30)),
        st.tuples(st.just("submit"), st.integers(1, 6), st.integers(8, 20)),
        st.tuples(st.just("resubmit"), st.integers(1, 20), st.integers(2, 20)),
        st.tuples(st.just("abort"), st.integers(1, 12)),
        st.tuples(st.just("prefill_read")),
        st.tuples(st.just("prefill_run")),
        st.tuples(st.just("turns"), st.integers(1, 12)),
        st.tuples(st.just("turns"), st.integers(1, 12)),
        st.tuples(st.just("decode_turn")),
        st.tuples(st.just("decode_turn")),
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
        world.submit(*arguments)
    elif name == "resubmit":
        num_prompt_tokens, max_tokens = arguments
        world.submit(num_prompt_tokens, max_tokens, already=max_tokens // 2)
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


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(engine_settings, actions)
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
