"""What every lane keeps, and a partition over it: inline always, on green streams where a GPU is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from colocate.device.cuda.backend import Backend, FakeBackend
from colocate.device.cuda.fake import FakeDriver
from colocate.device.cuda.lane import Lane
from colocate.device.cuda.partition import CudaPartition
from colocate.types import Role

torch = pytest.importorskip("torch")

DECODE_SHARES = (2, 5)  # atoms


@pytest.fixture(params=["fake", pytest.param("gpu", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "fake":
        return FakeBackend(FakeDriver())
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    from colocate.device.cuda.gpu_backend import GpuBackend

    return GpuBackend(0)


@pytest.fixture
def partition(backend: Backend) -> Iterator[CudaPartition]:
    facts = backend.driver.facts(0)
    shares = [tuple(range(facts.atom_sms * count)) for count in DECODE_SHARES]
    partition = CudaPartition(backend, 0, Role.DECODE, [*shares, tuple(range(facts.num_sms)), ()])
    yield partition
    partition.close()


@pytest.fixture
def lane(partition: CudaPartition) -> Lane:
    return partition.lane_of(partition.shares[0])


def filled(backend: Backend, size: int, value: float = 0.0) -> torch.Tensor:
    """Ready on the device: lanes do not wait for the stream that fills it."""
    tensor = torch.full((size,), value, device=backend.torch_device)
    backend.settle()
    return tensor


def test_work_of_a_lane_is_done_when_its_mark_is(backend: Backend, lane: Lane) -> None:
    source = torch.arange(1000, device=backend.torch_device)
    backend.driver.synchronize()
    with lane.use():
        doubled = source * 2
        host = backend.pinned((1000,), torch.int64)
        host.copy_(doubled, non_blocking=True)
    mark = lane.mark()
    mark.wait()
    assert mark.is_done()
    assert host.tolist() == list(range(0, 2000, 2))


def test_a_lane_that_follows_sees_what_was_launched_before(backend: Backend, partition: CudaPartition) -> None:
    first, second, _ = (partition.lane_of(share) for share in partition.shares)
    values = filled(backend, 1 << 20)
    with first.use():
        for _ in range(50):
            values += 1
    second.follow(first.mark())
    with second.use():
        total = values.sum()
    second.mark().wait()
    assert total.item() == 50 * (1 << 20)


def test_a_graph_does_nothing_when_captured_and_reads_its_buffers_when_replayed(backend: Backend, lane: Lane) -> None:
    given = filled(backend, 64, 1.0)
    result = filled(backend, 64)

    def work() -> None:
        torch.mul(given, 3, out=result)

    with lane.use():
        work()
        result.zero_()
    graph = lane.capture(work)
    lane.mark().wait()
    assert result.sum().item() == 0
    for value in (2.0, 5.0):
        with lane.use():
            given.fill_(value)
        graph.replay()
        lane.mark().wait()
        assert result.unique().tolist() == [3 * value]


def test_several_graphs_of_one_lane_live_side_by_side(backend: Backend, lane: Lane) -> None:
    counter = filled(backend, 1)
    graphs = [lane.capture(lambda step=step: counter.add_(step)) for step in (1, 10, 100)]
    for graph in (*graphs, graphs[0]):
        graph.replay()
    lane.mark().wait()
    assert counter.item() == 112


def test_work_that_raises_in_a_graph_raises_as_it_is_and_the_lane_goes_on(backend: Backend, lane: Lane) -> None:
    counter = filled(backend, 1)

    def wrong() -> None:
        counter.add_(1)
        raise ValueError("a bug of the caller's")

    graph = lane.capture(lambda: counter.add_(1))
    if not backend.is_fake:
        with pytest.raises(ValueError, match="caller's"):
            lane.capture(wrong)
    graph.replay()
    with lane.use():
        counter.add_(1)
    lane.mark().wait()
    assert counter.item() == 2


def test_an_error_of_torch_s_own_is_not_taken_for_the_gpu_s(backend: Backend, lane: Lane) -> None:
    left = torch.zeros(2, 3, device=backend.torch_device)
    with pytest.raises(RuntimeError, match="shapes"), lane.use():
        left @ left


def test_switching_there_and_back_settles_once_the_work_is_done(backend: Backend, partition: CudaPartition) -> None:
    small, large, whole = partition.shares
    values = filled(backend, 1 << 16)
    for share in (small, whole, (), large, small):
        partition.apply(share)
        assert partition.realised() == share
        if partition.lane is not None:
            with partition.lane.use():
                values += 1
    lane = partition.lane
    assert lane is not None
    lane.mark().wait()
    assert partition.settled()
    assert values.unique().tolist() == [4.0]


def test_lanes_know_how_many_sms_they_have(backend: Backend, partition: CudaPartition) -> None:
    for share in partition.shares:
        assert partition.green_of(share).num_sms == len(share)
        assert partition.lane_of(share).num_sms == (0 if backend.is_fake else len(share))
