"""Fixed work on a share (`native/cuda/burn.cu`): how long did it take, and where did it run?"""

from __future__ import annotations

from array import array

from colocate.device.cuda.driver import CudaDriver, GreenContext
from colocate.device.cuda.nvrtc import cubin_of
from colocate.device.cuda.smid import Blocks
from colocate.errors import InvariantError

_THREADS = 256


class BurnProbe:
    """One block per SM. Owns the device memory that the blocks of one launch write; two launches at once need two
    probes. Needs the primary context."""

    def __init__(self, driver: CudaDriver, index: int, num_sms: int) -> None:
        """`num_sms`: of the device. Raises ConfigError without NVRTC, CudaError."""
        self._driver = driver
        self._room = num_sms
        self._kernel = driver.load(cubin_of("burn", driver.facts(index).compute_capability), "burn")
        self._begin = driver.device_buffer(8 * num_sms)
        self._end = driver.device_buffer(8 * num_sms)
        self._sm_ids = driver.device_buffer(4 * num_sms)
        self._sink = driver.device_buffer(4)

    def launch(self, green: GreenContext, rounds: int) -> None:
        """Does not wait on a GPU."""
        if green.num_sms > self._room:
            raise InvariantError(f"{green.num_sms} blocks, room for {self._room}")
        buffers = (self._sm_ids, self._begin, self._end, self._sink)
        self._kernel.launch(green.stream, green.num_sms, _THREADS, [*_pointers(*buffers), ("u32", rounds)])

    def read(self, green: GreenContext) -> Blocks:
        """Of the last launch on this share. Waits for all work of this process."""
        num_blocks = green.num_sms
        sm_ids = array("I", self._driver.read(self._sm_ids, 4 * num_blocks))
        begin_ns = array("Q", self._driver.read(self._begin, 8 * num_blocks))
        end_ns = array("Q", self._driver.read(self._end, 8 * num_blocks))
        return Blocks(tuple(sm_ids), tuple(begin_ns), tuple(end_ns))

    def write_to(self, green: GreenContext, address: int) -> None:
        """Let one block write its records at `address`; waits. Raises CudaError where that is a fault."""
        self._kernel.launch(green.stream, 1, _THREADS, [*_pointers(*(address,) * 4), ("u32", 1)])
        self._driver.synchronize()


def _pointers(*addresses: int) -> list[tuple[str, int]]:
    return [("ptr", address) for address in addresses]
