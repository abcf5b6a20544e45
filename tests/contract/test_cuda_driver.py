"""What every CUDA driver keeps: the fake one always, NVIDIA's where a GPU is there."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from colocate.device.cuda.atoms import split_into_atoms
from colocate.device.cuda.bindings import BindingsDriver
from colocate.device.cuda.driver import (
    INVALID_CONFIGURATION,
    INVALID_VALUE,
    NOT_FOUND,
    OUT_OF_MEMORY,
    CudaDriver,
    CudaError,
    GpuFacts,
)
from colocate.device.cuda.fake import FakeDriver
from colocate.device.cuda.nvrtc import cubin_of
from colocate.device.cuda.smid import SmidProbe
from colocate.errors import ConfigError


def gpu_driver() -> BindingsDriver:
    """Skips where there is no driver library or no GPU, and for no other reason."""
    try:
        driver = BindingsDriver()
    except ConfigError as error:
        pytest.skip(str(error))
    except CudaError as error:
        if error.code != 100:
            raise
        pytest.skip("CUDA finds no device")
    return driver


@pytest.fixture(params=["fake", pytest.param("gpu", marks=pytest.mark.gpu)])
def driver(request: pytest.FixtureRequest) -> Iterator[CudaDriver]:
    if request.param == "gpu":
        real = gpu_driver()
        real.retain_primary(0)
        yield real
        return
    fake = FakeDriver(is_mps_client=True)
    fake.retain_primary(0)
    yield fake
    fake.close()


@pytest.fixture
def facts(driver: CudaDriver) -> GpuFacts:
    return driver.facts(0)


def test_facts_make_sense_together(facts: GpuFacts) -> None:
    assert facts.name and facts.uuid.startswith("GPU-") and len(facts.uuid) == 40
    assert facts.driver_version >= 12040, "green contexts came with 12.4"
    assert 0 < facts.atom_sms <= facts.num_sms
    assert facts.atom_sms % facts.partition_step_sms == 0
    assert 0 < facts.free_bytes <= facts.total_bytes


def test_the_split_accounts_for_every_sm(driver: CudaDriver, facts: GpuFacts) -> None:
    groups, remainder = driver.split(0, facts.atom_sms)
    assert {group.num_sms for group in groups} == {facts.atom_sms}
    assert sum(group.num_sms for group in groups) + (remainder.num_sms if remainder else 0) == facts.num_sms


def test_a_size_that_is_no_multiple_of_the_step_is_refused_not_rounded(driver: CudaDriver, facts: GpuFacts) -> None:
    for size in (facts.partition_step_sms + 1, facts.num_sms + facts.atom_sms):
        with pytest.raises(CudaError) as caught:
            driver.split(0, size)
        assert caught.value.code == INVALID_CONFIGURATION


def test_a_green_context_has_the_sms_of_its_groups_and_only_those(driver: CudaDriver, facts: GpuFacts) -> None:
    atoms = split_into_atoms(driver, 0, facts.atom_sms, facts.num_sms)
    border = facts.atom_sms * 2
    low = driver.make_green(0, atoms.of(range(border)))
    high = driver.make_green(0, atoms.of(range(border, facts.num_sms)))
    probe = SmidProbe(driver)
    try:
        assert (low.num_sms, high.num_sms) == (border, facts.num_sms - border)
        seen = [probe.sms_of(green.stream, green.num_sms) for green in (low, high)]
        assert [len(sms) for sms in seen] == [low.num_sms, high.num_sms]
        assert not seen[0] & seen[1]
    finally:
        probe.close()
        for green in (low, high):
            driver.destroy_green(green)


def test_groups_of_two_splits_do_not_go_together(driver: CudaDriver, facts: GpuFacts) -> None:
    (first, *_), _ = driver.split(0, facts.atom_sms)
    (second, *_), _ = driver.split(0, facts.atom_sms * 2)
    with pytest.raises(CudaError) as caught:
        driver.make_green(0, [first, second])
    assert caught.value.code == INVALID_CONFIGURATION
    with pytest.raises(CudaError) as caught:
        driver.make_green(0, [])
    assert caught.value.code == INVALID_VALUE


def write_through(driver: CudaDriver, address: int, num_bytes: int) -> list[int]:
    """Numbers that a kernel writes at an address: the SM of each of 64 blocks."""
    scratch = driver.device_buffer(1024)
    kernel = driver.load(cubin_of("smid", driver.facts(0).compute_capability), "smid_probe")
    kernel.launch(0, 64, 32, [("ptr", address), ("ptr", scratch), ("ptr", scratch + 512), ("u64", 1000)])
    written = list(struct.unpack("64I", driver.read(address, 256)))
    driver.free(scratch)
    return written


def test_memory_is_shared_by_descriptor_and_outlives_its_first_handle(driver: CudaDriver) -> None:
    size = driver.granularity(0) * 2
    handle = driver.create(0, size)
    fds = [driver.export(handle), driver.export(handle)]
    assert fds[0] != fds[1], "each is fresh"
    os.close(fds[1])
    again = driver.import_(fds[0])
    os.close(fds[0])
    own = driver.map(0, handle, size, writable=True)
    other = driver.map(0, again, size, writable=False)
    assert own != other
    driver.release(handle)
    driver.release(again)
    driver.clear(own, size)
    assert driver.read(other, 16) == bytes(16)
    written = write_through(driver, own, size)
    driver.unmap(own, size)
    assert list(struct.unpack("64I", driver.read(other, 256))) == written, "the mapping keeps the memory"
    driver.unmap(other, size)


def test_sizes_that_are_no_multiple_of_the_granularity_are_refused(driver: CudaDriver) -> None:
    granularity = driver.granularity(0)
    for size in (granularity + 1, granularity // 2, 0):
        with pytest.raises(CudaError) as caught:
            driver.create(0, size)
        assert caught.value.code == INVALID_VALUE


def test_more_memory_than_there_is_fails_as_out_of_memory_and_takes_nothing(
    driver: CudaDriver, facts: GpuFacts
) -> None:
    granularity = driver.granularity(0)
    with pytest.raises(CudaError) as caught:
        driver.create(0, facts.total_bytes // granularity * granularity + granularity)
    assert caught.value.code == OUT_OF_MEMORY and not caught.value.is_fatal
    driver.release(driver.create(0, granularity))


def test_a_descriptor_of_something_else_is_refused(driver: CudaDriver) -> None:
    with Path(os.devnull).open("rb") as other, pytest.raises(CudaError):
        driver.import_(other.fileno())


def test_buffers_start_as_zeros_and_can_be_cleared(driver: CudaDriver) -> None:
    address = driver.device_buffer(4096)
    assert driver.read(address, 4096) == bytes(4096)
    write_through(driver, address, 4096)
    driver.clear(address, 4096)
    assert driver.read(address + 1024, 16) == bytes(16)
    driver.free(address)


def test_a_function_that_the_image_lacks_is_not_found(driver: CudaDriver, facts: GpuFacts) -> None:
    with pytest.raises(CudaError) as caught:
        driver.load(cubin_of("smid", facts.compute_capability), "no_such_kernel")
    assert caught.value.code == NOT_FOUND


def test_blocks_of_a_stream_run_in_waves_that_keep_their_time(driver: CudaDriver, facts: GpuFacts) -> None:
    atoms = split_into_atoms(driver, 0, facts.atom_sms, facts.num_sms)
    green = driver.make_green(0, atoms.of(range(facts.atom_sms)))
    probe = SmidProbe(driver)
    try:
        blocks = probe.run(green.stream, green.num_sms * 6, 200_000)
        assert all(end - begin >= 200_000 for begin, end in zip(blocks.begin_ns, blocks.end_ns, strict=True))
        for sm in blocks.sms:
            mine = sorted(
                (begin, end)
                for seen, begin, end in zip(blocks.sm_ids, blocks.begin_ns, blocks.end_ns, strict=True)
                if seen == sm
            )
            # Two blocks of 1,024 threads fill an SM: the third begins when one of them has ended.
            for (_, first_end), (_, second_end), (begin, _) in zip(mine, mine[1:], mine[2:], strict=False):
                assert begin >= min(first_end, second_end)
    finally:
        probe.close()
        driver.destroy_green(green)
