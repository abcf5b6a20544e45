"""Where a stream's blocks really ran: `native/cuda/smid.cu`, launched and read."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from colocate.device.cuda.driver import CudaDriver
from colocate.device.cuda.nvrtc import cubin_of
from colocate.errors import InvariantError

_THREADS = 1024  # two blocks fill an SM
_BLOCKS_PER_SM = 8
_SPIN_NS = 50_000


@dataclass(frozen=True, slots=True)
class Blocks:
    """One entry per block, in order of their numbers; times on the device's clock, which all processes share."""

    sm_ids: tuple[int, ...]
    begin_ns: tuple[int, ...]
    end_ns: tuple[int, ...]

    @property
    def sms(self) -> frozenset[int]:
        return frozenset(self.sm_ids)


class SmidProbe:
    """Owns its buffers on the device. Needs the primary context; launch and read from one thread."""

    def __init__(self, driver: CudaDriver, index: int = 0, max_blocks: int = 16_384) -> None:
        """Raises ConfigError without NVRTC, CudaError."""
        self._driver = driver
        self._max_blocks = max_blocks
        self._kernel = driver.load(cubin_of("smid", driver.facts(index).compute_capability), "smid_probe")
        self._sm_ids = driver.device_buffer(4 * max_blocks)
        self._begin = driver.device_buffer(8 * max_blocks)
        self._end = driver.device_buffer(8 * max_blocks)

    def sms_of(self, stream: int, num_sms: int) -> frozenset[int]:
        """The SMs a stream reaches. `num_sms` is how many it is thought to have: enough blocks are sent for that."""
        return self.run(stream, num_sms * _BLOCKS_PER_SM, _SPIN_NS).sms

    def run(self, stream: int, num_blocks: int, spin_ns: int) -> Blocks:
        self.clear()
        self.launch(stream, num_blocks, spin_ns)
        return self.read(num_blocks)

    def launch(self, stream: int, num_blocks: int, spin_ns: int) -> None:
        """Only launches: also inside a capture. Every block keeps its place for `spin_ns`."""
        if not 1 <= num_blocks <= self._max_blocks:
            raise InvariantError(f"{num_blocks} blocks, room for {self._max_blocks}")
        buffers = (self._sm_ids, self._begin, self._end)
        arguments = [*(("ptr", buffer) for buffer in buffers), ("u64", spin_ns)]
        self._kernel.launch(stream, num_blocks, _THREADS, arguments)

    def read(self, num_blocks: int) -> Blocks:
        """Waits for all work of this process. Raises InvariantError if a block has not run since `clear`."""
        sm_ids = array("I", self._driver.read(self._sm_ids, 4 * num_blocks))
        begin_ns = array("Q", self._driver.read(self._begin, 8 * num_blocks))
        end_ns = array("Q", self._driver.read(self._end, 8 * num_blocks))
        if not all(end_ns):
            raise InvariantError(f"{list(end_ns).count(0)} of {num_blocks} blocks have not run")
        return Blocks(tuple(sm_ids), tuple(begin_ns), tuple(end_ns))

    def clear(self) -> None:
        self._driver.clear(self._end, 8 * self._max_blocks)

    def close(self) -> None:
        for buffer in (self._sm_ids, self._begin, self._end):
            self._driver.free(buffer)
