"""Two workers over any sequence of plans never hold the same unit unless a plan shares it, however they interleave."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.core.plan import SHARED, build_plan_table
from colocate.device.emulated.partition import EmulatedPartition
from colocate.device.partition import Partition
from colocate.errors import InvariantError
from colocate.messages.control import PlanApplied
from colocate.transport.board import Board
from colocate.types import WORKER_ROLES, Role
from colocate.worker.boundary import Boundary

TOTAL_UNITS = 6
TABLE = build_plan_table(TOTAL_UNITS)
NAMES = [plan.name for plan in TABLE.plans]


class InterleavedBoard(Board):
    """The real board; after every look at the other's claim and every claim, the other may run a whole boundary."""

    preempt: Callable[[Role], None] | None = None

    def held(self, role: Role) -> int:
        num_units = super().held(role)
        if self.preempt is not None:
            self.preempt(role)
        return num_units

    def set_held(self, role: Role, num_units: int) -> None:
        super().set_held(role, num_units)
        if self.preempt is not None:
            self.preempt(Role.DECODE if role is Role.PREFILL else Role.PREFILL)


class LatePartition:
    """A GPU's partition: what was launched under a share runs on until `finish`."""

    total_units = TOTAL_UNITS

    def __init__(self) -> None:
        self.units: tuple[int, ...] = ()
        self.unfinished: list[tuple[int, ...]] = []

    def apply(self, units: tuple[int, ...]) -> None:
        if self.units:
            self.unfinished.append(self.units)
        self.units = units

    def finish(self) -> None:
        """The work of the oldest share: lanes follow each other."""
        del self.unfinished[:1]

    def settled(self) -> bool:
        return not self.unfinished

    def realised(self) -> tuple[int, ...]:
        return self.units

    def busy(self) -> set[int]:
        return set(self.units).union(*self.unfinished)


class World:
    """Both workers' boundaries over one board, and the check that matters."""

    def __init__(self, make_partition: Callable[[], Partition] = lambda: EmulatedPartition(TOTAL_UNITS)) -> None:
        self.board = InterleavedBoard.create()
        self.partitions = {role: make_partition() for role in WORKER_ROLES}
        self.thread_counts: dict[Role, list[int]] = {role: [] for role in WORKER_ROLES}
        clock = itertools.count(1)
        self.boundaries = {
            role: Boundary(
                role,
                TABLE,
                self.board,
                self.partitions[role],
                self.thread_counts[role].append,
                lambda: next(clock),
            )
            for role in WORKER_ROLES
        }
        self.seq = 0

    def set_plan(self, name: str) -> None:
        self.seq += 1
        self.board.set_plan(self.seq, TABLE.index_of(name))

    def check(self, role: Role) -> PlanApplied | None:
        applied = self.boundaries[role].check()
        self.assert_disjoint()
        return applied

    def assert_disjoint(self) -> None:
        units = {role: set(self.partitions[role].realised()) for role in WORKER_ROLES}
        for role in WORKER_ROLES:
            assert len(units[role]) <= Board.held(self.board, role), "units in use are claimed on the board"
        if units[Role.PREFILL] & units[Role.DECODE]:
            in_force = {TABLE.plans[self.board.applied(role).plan_index].name for role in WORKER_ROLES}
            assert SHARED in in_force, f"{units} overlap under {in_force}"

    def settle(self) -> None:
        for _ in range(4):
            for role in WORKER_ROLES:
                self.check(role)
        for role in WORKER_ROLES:
            word = self.board.plan()
            assert not self.boundaries[role].is_pending
            assert self.board.applied(role)[:2] == tuple(word)
            share = TABLE.plans[word.plan_index].units_of(role, TOTAL_UNITS)
            assert self.partitions[role].realised() == share
            assert self.board.held(role) == len(share)


@pytest.fixture
def world() -> World:
    return World()


def test_before_any_plan_nothing_is_held(world: World) -> None:
    assert world.check(Role.DECODE) is None
    assert not world.boundaries[Role.DECODE].is_pending
    assert world.partitions[Role.DECODE].realised() == ()


@pytest.mark.parametrize(
    ("before", "after", "first", "held_meanwhile", "acknowledged"),
    [
        ("p4d2", "p2d4", Role.PREFILL, 2, True),  # the shrinking side lets go at once
        ("p4d2", "p2d4", Role.DECODE, 2, False),  # the growing side keeps what it has
        ("p2d4", "all-prefill", Role.PREFILL, 2, False),
        ("p4d2", "all-prefill", Role.DECODE, 0, True),
        ("p4d2", "shared", Role.DECODE, 6, True),  # nobody waits for a shared plan
        ("shared", "p4d2", Role.PREFILL, 4, False),  # lets go, but the plan is not in force while decode sees all
        ("all-decode", "p4d2", Role.PREFILL, 0, False),
        ("all-decode", "p4d2", Role.DECODE, 2, True),
    ],
)
def test_one_side_alone(
    world: World, before: str, after: str, first: Role, held_meanwhile: int, acknowledged: bool
) -> None:
    world.set_plan(before)
    world.settle()
    world.set_plan(after)
    applied = world.check(first)
    assert len(world.partitions[first].realised()) == held_meanwhile == world.board.held(first)
    assert (applied is not None) == acknowledged == (not world.boundaries[first].is_pending)
    world.settle()


def test_what_is_free_is_taken_before_the_rest_is_let_go(world: World) -> None:
    world.set_plan("p2d4")
    world.settle()
    world.set_plan("p1d5")
    world.check(Role.PREFILL)  # lets one go; decode has not looked yet
    world.set_plan("p4d2")
    assert world.check(Role.PREFILL) is None
    assert world.partitions[Role.PREFILL].realised() == (4, 5), "the unit that was free, not decode's"
    assert world.check(Role.DECODE) is not None
    applied = world.check(Role.PREFILL)
    assert applied is not None and applied.seq == 3
    assert world.thread_counts[Role.PREFILL] == [2, 1, 2, 4]


def test_units_are_let_go_before_the_board_says_so(world: World) -> None:
    world.set_plan("p4d2")
    world.settle()
    world.set_plan("p2d4")

    def decode_runs(role: Role) -> None:
        world.board.preempt = None
        world.check(Role.DECODE)

    world.board.preempt = decode_runs
    world.check(Role.PREFILL)
    assert world.partitions[Role.DECODE].realised() == (0, 1, 2, 3)


def test_an_unchanged_plan_is_acknowledged_once_and_again_to_a_new_engine(world: World) -> None:
    world.set_plan("p4d2")
    assert world.check(Role.DECODE) is not None
    assert world.check(Role.DECODE) is None
    world.boundaries[Role.DECODE].restate()
    applied = world.check(Role.DECODE)
    assert applied is not None and applied.seq == 1
    assert world.thread_counts[Role.DECODE] == [2], "nothing is applied twice"


def test_a_successor_takes_over_from_a_worker_that_died_holding_units(world: World) -> None:
    world.set_plan("p4d2")
    world.settle()
    world.set_plan("p2d4")
    assert world.check(Role.DECODE) is None, "prefill is dead and holds four"
    world.partitions[Role.PREFILL].apply(())
    world.board.clear(Role.PREFILL)
    assert world.check(Role.DECODE) is not None


def test_a_plan_that_the_table_lacks_is_a_bug_not_a_share(world: World) -> None:
    world.board.set_plan(1, len(TABLE.plans))
    with pytest.raises(InvariantError, match="the board names plan"):
        world.check(Role.DECODE)


_ACTIONS = st.lists(st.one_of(st.sampled_from(NAMES), st.sampled_from(WORKER_ROLES)), min_size=2, max_size=40)
_INTERRUPTIONS = st.lists(st.one_of(st.none(), st.just("run"), st.sampled_from(NAMES)), min_size=20, max_size=80)


@settings(max_examples=300, deadline=None)
@given(_ACTIONS)
def test_any_order_of_plans_and_boundaries(actions: list[str | Role]) -> None:
    world = World()
    world.set_plan("p4d2")
    for action in actions:
        if isinstance(action, Role):
            world.check(action)
        else:
            world.set_plan(action)
    world.settle()
    world.board.close()


@settings(max_examples=300, deadline=None)
@given(_ACTIONS, _INTERRUPTIONS)
def test_any_interleaving_inside_a_boundary(actions: list[str | Role], interruptions: list[str | None]) -> None:
    world = World()
    world.set_plan("p4d2")
    pending = iter(interruptions)
    nested: set[Role] = set()

    def preempt(role: Role) -> None:
        """`role` is the worker that may run now, in the middle of the other's boundary; the plan may change too."""
        interruption = next(pending, None)
        if interruption is None or role in nested:
            return
        if interruption != "run":
            world.set_plan(interruption)
        nested.update(WORKER_ROLES)
        try:
            world.boundaries[role].check()
            world.assert_disjoint()
        finally:
            nested.clear()

    for action in actions:
        if isinstance(action, Role):
            world.board.preempt = preempt
            nested.add(action)
            world.boundaries[action].check()
            nested.discard(action)
            world.board.preempt = None
            world.assert_disjoint()
        else:
            world.set_plan(action)
    world.settle()
    world.board.close()


class LateWorld(World):
    """Workers on a GPU. Without `shared` among its plans, units are busy on one side only, at every instant."""

    def __init__(self) -> None:
        self.late = {role: LatePartition() for role in WORKER_ROLES}
        fresh = iter(self.late.values())
        super().__init__(lambda: next(fresh))

    def assert_disjoint(self) -> None:
        busy = {role: self.late[role].busy() for role in WORKER_ROLES}
        for role in WORKER_ROLES:
            assert len(busy[role]) <= Board.held(self.board, role), "unfinished work is held on the board"
        assert not busy[Role.PREFILL] & busy[Role.DECODE]

    def settle(self) -> None:
        for partition in self.late.values():
            partition.unfinished.clear()
        for role in WORKER_ROLES * 2:  # gives up what it may, so that the other can grow and finish in turn
            self.check(role)
            self.late[role].unfinished.clear()
        super().settle()


def test_units_count_as_held_until_their_work_is_done() -> None:
    world = LateWorld()
    world.set_plan("p4d2")
    world.settle()
    world.set_plan("p2d4")
    assert world.check(Role.PREFILL) is None
    assert world.late[Role.PREFILL].realised() == (4, 5), "new work goes to the smaller share at once"
    assert (world.board.held(Role.PREFILL), world.boundaries[Role.PREFILL].is_pending) == (4, True)
    assert world.check(Role.DECODE) is None
    assert world.late[Role.DECODE].realised() == (0, 1)
    world.late[Role.PREFILL].finish()
    assert world.check(Role.PREFILL) is not None
    assert world.board.held(Role.PREFILL) == 2
    assert world.check(Role.DECODE) is not None


def test_units_that_still_run_are_taken_back_without_asking() -> None:
    world = LateWorld()
    world.set_plan("p4d2")
    world.settle()
    world.set_plan("p2d4")
    world.check(Role.PREFILL)
    world.set_plan("p3d3")
    assert world.check(Role.PREFILL) is None
    assert world.late[Role.PREFILL].realised() == (3, 4, 5)
    assert world.board.held(Role.PREFILL) == 4, "the first share's work still runs"
    world.set_plan("p4d2")
    assert world.check(Role.PREFILL) is not None, "in force: it never gave anything up"
    assert world.check(Role.DECODE) is not None


def test_the_peer_is_rung_when_the_units_are_free_and_not_before() -> None:
    world = LateWorld()
    world.set_plan("p4d2")
    world.settle()
    rung: list[Role] = []
    world.board.ring = rung.append  # type: ignore[method-assign]
    world.set_plan("p2d4")
    world.check(Role.PREFILL)
    assert rung == []
    world.late[Role.PREFILL].finish()
    world.check(Role.PREFILL)
    assert rung == [Role.DECODE]


_EXCLUSIVE = [name for name in NAMES if name != SHARED]
_LATE_ACTIONS = st.lists(
    st.one_of(
        st.sampled_from(_EXCLUSIVE),
        st.sampled_from(WORKER_ROLES),
        st.tuples(st.just("finish"), st.sampled_from(WORKER_ROLES)),
    ),
    min_size=2,
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(_LATE_ACTIONS, st.lists(st.sampled_from(["", "run", "finish"]), min_size=20, max_size=80))
def test_nobody_takes_a_unit_whose_work_is_unfinished(
    actions: list[str | Role | tuple[str, Role]], interruptions: list[str]
) -> None:
    world = LateWorld()
    world.set_plan("p4d2")
    pending = iter(interruptions)
    inside: set[Role] = set()

    def preempt(role: Role) -> None:
        interruption = next(pending, "")
        if interruption == "finish":
            world.late[role].finish()
        elif interruption == "run" and role not in inside:
            inside.add(role)
            world.check(role)

    for action in actions:
        if isinstance(action, Role):
            inside.add(action)
            world.board.preempt = preempt
            world.boundaries[action].check()
            world.board.preempt = None
            inside.clear()
            world.assert_disjoint()
        elif isinstance(action, tuple):
            world.late[action[1]].finish()
        else:
            world.set_plan(action)
    world.settle()
    world.board.close()


@settings(max_examples=200, deadline=None)
@given(_ACTIONS)
def test_late_partitions_come_to_rest_from_any_plan_also_shared(actions: list[str | Role]) -> None:
    late = {role: LatePartition() for role in WORKER_ROLES}
    fresh = iter(late.values())
    world = World(lambda: next(fresh))
    world.set_plan("p4d2")
    for action in actions:
        if isinstance(action, Role):
            world.boundaries[action].check()
            assert len(late[action].busy()) <= world.board.held(action)
        else:
            world.set_plan(action)
    for _ in range(6):
        for role in WORKER_ROLES:
            late[role].unfinished.clear()
            world.boundaries[role].check()
    late[Role.PREFILL].unfinished.clear()
    late[Role.DECODE].unfinished.clear()
    world.settle()
    world.board.close()
