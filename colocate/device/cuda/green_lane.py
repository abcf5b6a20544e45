"""The lane of a real GPU: torch's work on the stream of a green context.

Only the stream is used, never a current context, so everything torch launches inside `use()` is confined by where it
goes. Events are made in the primary context and recorded on streams of its green contexts: the driver counts those as
one context (its events may be used across), which is unproven here until a GPU has run it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from colocate.device.cuda.driver import (
    ILLEGAL_ADDRESS,
    MPS_CONNECTION_FAILED,
    MPS_RPC_FAILURE,
    MPS_SERVER_NOT_READY,
    NAMES,
    OUT_OF_MEMORY,
    UNKNOWN,
    CudaError,
    GreenContext,
)
from colocate.device.cuda.lane import Graph, Mark
from colocate.errors import InvariantError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

# What cudaGetErrorString says for each code, where a message has no code of its own (torch before 2.8, triton).
_PHRASES = {
    "out of memory": OUT_OF_MEMORY,
    "illegal memory access": ILLEGAL_ADDRESS,
    "the launch timed out": 702,
    "device-side assert": 710,
    "hardware stack error": 714,
    "illegal instruction": 715,
    "misaligned address": 716,
    "operation not supported on global/shared address space": 717,
    "invalid program counter": 718,
    "unspecified launch failure": 719,
    "mps client failed to connect": MPS_CONNECTION_FAILED,
    "between the mps server and the mps client failed": MPS_RPC_FAILURE,
    "mps server is not ready": MPS_SERVER_NOT_READY,
    "uncorrectable ecc error": 214,
    "uncorrectable nvlink error": 220,
}


def as_cuda_error(call: str, error: RuntimeError) -> CudaError | None:
    """What torch or triton raised, as the driver's code; None where it is not about CUDA.

    Since 2.8 torch carries the code (`torch.AcceleratorError.error_code`; the runtime's numbers are the driver's);
    otherwise the text tells it, and 999 stands for one that names none.
    """
    text = str(error)
    code = getattr(error, "error_code", None)
    if code is None:
        if "cuda" not in text.lower():
            return None
        code = next((code for phrase, code in _PHRASES.items() if phrase in text.lower()), UNKNOWN)
    return CudaError(call, int(code), NAMES.get(int(code), text.splitlines()[0][:200]))


class GreenLane:
    """Valid as long as its green context. Owned by one worker."""

    def __init__(self, green: GreenContext, torch_device: str) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self._num_sms = green.num_sms
        self._stream = self._cuda.ExternalStream(green.stream, device=torch.device(torch_device))
        self._pool: Any = None  # of all graphs of this lane: pools are not shared between streams

    @property
    def num_sms(self) -> int:
        return self._num_sms

    def use(self) -> AbstractContextManager[None]:
        """Whatever of CUDA is raised inside comes out as a CudaError."""
        return _on_stream(self._cuda, self._stream)

    def mark(self) -> Mark:
        with _translated("cudaEventRecord"):
            event = self._cuda.Event(blocking=True, enable_timing=False)
            event.record(self._stream)
        return GreenMark(event)

    def follow(self, mark: Mark) -> None:
        if not isinstance(mark, GreenMark):
            raise InvariantError(f"a lane of the GPU cannot wait for a {type(mark).__name__}")
        with _translated("cudaStreamWaitEvent"):
            self._stream.wait_event(mark.event)

    def capture(self, work: Callable[[], None]) -> Graph:
        """In mode "thread_local": other threads of this process (a lane of the other phase) go on as they are."""
        graph = self._cuda.CUDAGraph()
        if self._pool is None:
            self._pool = self._cuda.graph_pool_handle()
        with self.use(), _no_collection():
            self._stream.synchronize()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                _abandon(graph)
                raise
            graph.capture_end()
        return _GreenGraph(graph, self)


class GreenMark:
    """A CUDA event whose waiters sleep; polled by `is_done`."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def is_done(self) -> bool:
        with _translated("cudaEventQuery"):
            return bool(self.event.query())

    def wait(self) -> None:
        with _translated("cudaEventSynchronize"):
            self.event.synchronize()


class _GreenGraph:
    """Its memory comes from its lane's pool, so it keeps the lane."""

    def __init__(self, graph: Any, lane: GreenLane) -> None:
        self._graph = graph
        self._lane = lane

    def replay(self) -> None:
        with self._lane.use():
            self._graph.replay()


@contextmanager
def _on_stream(cuda: Any, stream: Any) -> Iterator[None]:
    with _translated("cudaLaunchKernel"), cuda.stream(stream):
        yield


@contextmanager
def _no_collection() -> Iterator[None]:
    """A collection in the middle of a capture could destroy a graph or free memory, which breaks the capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _translated(call: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        known = as_cuda_error(call, error)
        if known is None:
            raise
        raise known from error


def _abandon(graph: Any) -> None:
    """End a capture whose work raised, so that the stream can be used again; the first error is the one to tell."""
    try:
        graph.capture_end()
    except RuntimeError:
        return
    graph.reset()
