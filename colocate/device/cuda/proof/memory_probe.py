"""A probe worker's memory: the keeper's part, which needs no context, and a client's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from colocate.device.cuda.backend import Backend
from colocate.device.cuda.driver import CudaDriver
from colocate.device.cuda.memory import DeviceMapping, DeviceSegment, Ticket, VmmTransport
from colocate.errors import InvariantError

if TYPE_CHECKING:
    import torch

_LAUNCHES_AHEAD = 64  # of the endless writer: some are always under way


class KeptMemory:
    """The keeper's one segment."""

    def __init__(self, driver: CudaDriver, index: int, num_bytes: int) -> None:
        self._transport = VmmTransport(driver, index)
        self.segment: DeviceSegment = self._transport.allocate("proof", num_bytes)

    def export(self) -> int:
        """A fresh descriptor, the caller's."""
        return self._transport.ticket(self.segment).fd

    def close(self) -> None:
        self._transport.free(self.segment)


class MappedMemory:
    """A client's mapping, seen as 4-byte words. Word i of the pattern is seed + i."""

    def __init__(self, backend: Backend, index: int, fd: int, num_bytes: int, *, writable: bool) -> None:
        """Takes the descriptor over."""
        ticket = Ticket("proof", num_bytes, num_bytes, fd=fd)
        self._backend = backend
        self._mapping: DeviceMapping = VmmTransport(backend.driver, index).map(ticket, writable=writable)

    @property
    def address(self) -> int:
        return self._mapping.address

    def write(self, seed: int) -> float:
        """Seconds until the whole pattern is on the device."""
        began_s = time.monotonic()
        words = self._words()
        words.copy_(self._pattern(seed, 0, words.numel()))
        self._backend.driver.synchronize()
        return time.monotonic() - began_s

    def count_wrong(self, seed: int) -> tuple[int, int]:
        """Words of the first half that are not the pattern's, and how many words that half has."""
        words = self._words()
        half = words.numel() // 2
        wrong = (words[:half] != self._pattern(seed, 0, half)).sum()
        return int(wrong.item()), half

    def start_writing(self) -> None:
        """Launch some writes of the second half, and do not wait for them."""
        for number in range(_LAUNCHES_AHEAD):
            self._second_half().fill_(number)

    def write_for_ever(self) -> None:
        number = 0
        while True:
            number = (number + 1) % 1000
            self._second_half().fill_(number)

    def close(self) -> None:
        self._mapping.close()

    def _words(self) -> torch.Tensor:
        import torch

        return self._backend.tensor(self._mapping.address, self._mapping.num_bytes).view(torch.int32)

    def _second_half(self) -> torch.Tensor:
        words = self._words()
        return words[words.numel() // 2 :]

    def _pattern(self, seed: int, first: int, end: int) -> torch.Tensor:
        import torch

        return torch.arange(first + seed, end + seed, dtype=torch.int32, device=self._backend.torch_device)


def context_free_driver(index: int) -> CudaDriver:
    """A driver for a process that never makes a context. Raises ConfigError, CudaError."""
    from colocate.device.cuda.backend import is_fake_chosen

    if is_fake_chosen():
        from colocate.device.cuda.fake import FakeDriver

        return FakeDriver()
    from colocate.device.cuda.bindings import BindingsDriver

    driver = BindingsDriver()
    if driver.granularity(index) <= 0:
        raise InvariantError("the driver names no granularity")
    return driver
