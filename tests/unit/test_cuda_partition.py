"""Shares of a GPU: the right SMs, all of them or none before ready, and switches that wait on the device only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.core.plan import build_plan_table, spread_shares
from colocate.device.cuda.atoms import split_into_atoms
from colocate.device.cuda.backend import FakeBackend
from colocate.device.cuda.driver import ILLEGAL_ADDRESS, INVALID_CONFIGURATION, OUT_OF_MEMORY, CudaError, GreenContext
from colocate.device.cuda.fake import FakeDriver
from colocate.device.cuda.lane import Graph, InlineLane, Lane, Mark
from colocate.device.cuda.partition import CudaPartition, Share
from colocate.errors import ConfigError, InvariantError
from colocate.types import WORKER_ROLES, Role

TABLE = build_plan_table(132, 8, spread_shares(132, 8))


def shares_of(role: Role) -> list[Share]:
    return [plan.units_of(role, 132) for plan in TABLE.plans]


class LateMark:
    """Done when the test says so."""

    def __init__(self, lane: LateLane) -> None:
        self.lane = lane
        self.is_over = False

    def is_done(self) -> bool:
        return self.is_over

    def wait(self) -> None:
        self.is_over = True


class LateLane:
    """A lane whose work takes as long as the test wants."""

    def __init__(self, green: GreenContext, marks: list[LateMark]) -> None:
        self.num_sms = green.num_sms
        self.followed: list[LateMark] = []
        self._marks = marks

    def use(self) -> AbstractContextManager[None]:
        return nullcontext()

    def mark(self) -> Mark:
        self._marks.append(LateMark(self))
        return self._marks[-1]

    def follow(self, mark: Mark) -> None:
        assert isinstance(mark, LateMark)
        self.followed.append(mark)

    def capture(self, work: Callable[[], None]) -> Graph:
        return InlineLane().capture(work)


class LateBackend(FakeBackend):
    """The fake GPU with work that outlasts a call; `marks` in the order they were made."""

    def __init__(self) -> None:
        super().__init__(FakeDriver())
        self.marks: list[LateMark] = []

    def lane(self, green: GreenContext) -> Lane:
        return LateLane(green, self.marks)


def test_both_workers_of_every_plan_get_disjoint_sms_that_cover_the_device() -> None:
    driver = FakeDriver()
    backends = {role: FakeBackend(driver) for role in WORKER_ROLES}
    partitions = {role: CudaPartition(backends[role], 0, role, shares_of(role)) for role in WORKER_ROLES}
    for plan in TABLE.plans:
        seen: dict[Role, set[int]] = {}
        for role, partition in partitions.items():
            share = plan.units_of(role, 132)
            partition.apply(share)
            assert partition.realised() == share
            assert (partition.lane is None) == (not share)
            seen[role] = set(driver.sm_ids(partition.green_of(share))) if share else set()
        assert seen[Role.PREFILL] | seen[Role.DECODE] == set(range(132))
        assert bool(seen[Role.PREFILL] & seen[Role.DECODE]) == (plan.name == "shared")
    assert len(partitions[Role.DECODE].shares) == 9, "eight splits and the whole device; nothing twice"
    for partition in partitions.values():
        partition.close()
    assert driver.leaks()["greens"] == 0


@settings(max_examples=200, deadline=None)
@given(st.integers(16, 200), st.data())
def test_shares_nest_and_keep_to_their_atoms_on_any_device(num_sms: int, data: st.DataObject) -> None:
    driver = FakeDriver(num_sms)
    table = build_plan_table(num_sms, 8)
    atoms = split_into_atoms(driver, 0, 8, num_sms)
    driver.retain_primary(0)
    plans = data.draw(st.lists(st.sampled_from(table.plans), min_size=2, max_size=2))
    for role in WORKER_ROLES:
        smaller, larger = sorted((plan.units_of(role, num_sms) for plan in plans), key=len)
        if smaller:
            greens = [driver.make_green(0, atoms.of(share)) for share in (smaller, larger)]
            assert set(driver.sm_ids(greens[0])) <= set(driver.sm_ids(greens[1]))
            assert [green.num_sms for green in greens] == [len(smaller), len(larger)]


@pytest.mark.parametrize("units", [range(4), range(4, 12), (0, 1, 2, 3, 4, 5, 6, 7, 16), range(130), range(140), ()])
def test_a_share_that_cuts_an_atom_is_a_bug(units: range | tuple[int, ...]) -> None:
    atoms = split_into_atoms(FakeDriver(), 0, 8, 132)
    with pytest.raises(InvariantError):
        atoms.of(list(units))


def test_a_driver_that_loses_sms_in_the_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="splits 140 SMs into 16 groups of 8, 132 in all"):
        split_into_atoms(FakeDriver(132), 0, 8, 140)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(INVALID_CONFIGURATION, "colocate doctor"), (OUT_OF_MEMORY, "--arm"), (ILLEGAL_ADDRESS, "restart")],
)
def test_if_the_fifth_share_fails_the_four_before_it_are_undone(code: int, remedy: str) -> None:
    driver = FakeDriver()
    driver.fail("make_green", code, after=4)
    shares = [tuple(range(8 * count)) for count in range(1, 8)]
    with pytest.raises(ConfigError, match=f"the decode share of 40 SMs cannot be made: .*{code}") as caught:
        CudaPartition(FakeBackend(driver), 0, Role.DECODE, shares)
    assert remedy in caught.value.remedy
    # On a faulted device nothing can be destroyed; it goes with the process.
    assert driver.leaks()["greens"] == (4 if code == ILLEGAL_ADDRESS else 0)


def test_a_context_that_came_out_smaller_than_asked_is_refused_and_undone() -> None:
    driver = FakeDriver(lost_sms=2)
    with pytest.raises(ConfigError, match="prefill share of 92 SMs has 90 SMs in the driver's reading"):
        CudaPartition(FakeBackend(driver), 0, Role.PREFILL, [tuple(range(40, 132))])
    assert driver.leaks()["greens"] == 0


def test_a_share_that_was_not_made_is_a_bug_and_changes_nothing() -> None:
    partition = CudaPartition(FakeBackend(FakeDriver()), 0, Role.DECODE, [tuple(range(16))])
    partition.apply(tuple(range(16)))
    with pytest.raises(InvariantError, match="decode has no share of 24 SMs; made before ready: 16"):
        partition.apply(tuple(range(24)))
    assert partition.realised() == tuple(range(16))
    assert partition.total_units == 132


def test_the_new_lane_follows_the_old_and_units_are_busy_until_its_mark_is_done() -> None:
    backend = LateBackend()
    small, large = tuple(range(16)), tuple(range(48))
    partition = CudaPartition(backend, 0, Role.DECODE, [small, large])
    partition.apply(large)
    assert partition.settled() and not backend.marks, "nothing ran before"
    partition.apply(small)
    lanes = {share: partition.lane_of(share) for share in (small, large)}
    assert partition.lane is lanes[small]
    (first,) = backend.marks
    assert first.lane is lanes[large]
    assert lanes[small].followed == [first]  # type: ignore[attr-defined]
    assert not partition.settled()
    partition.apply(())
    assert partition.lane is None
    partition.apply(large)
    second = backend.marks[1]
    assert lanes[large].followed == [second], "also across an empty share"  # type: ignore[attr-defined]
    second.is_over = True
    assert not partition.settled(), "the first lane's work is older"
    first.is_over = True
    assert partition.settled()
    partition.apply(large)
    assert len(backend.marks) == 2, "the share in force again: nothing to do"


def test_a_fault_shows_when_the_partition_is_asked_whether_it_settled() -> None:
    backend = FakeBackend(FakeDriver())
    partition = CudaPartition(backend, 0, Role.DECODE, [tuple(range(16)), tuple(range(24))])
    partition.apply(tuple(range(24)))
    partition.apply(tuple(range(16)))
    backend.driver.fault()
    with pytest.raises(CudaError):
        partition.settled()
    partition.close()
