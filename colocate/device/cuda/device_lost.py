"""Which exceptions mean that this process, and every other one on the GPU, can do nothing more with it.

Three libraries report the same fault in their own words: our driver seam (`CudaError`), torch (`AcceleratorError`, a
RuntimeError whose text is the runtime's), and triton (a RuntimeError of its launcher). Imports none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from colocate.device.cuda.driver import FATAL, MPS_SERVER_NOT_READY, CudaError
from colocate.errors import DeviceLost

# MPS: no connection, lost call, server not ready, client terminated. Whoever meets one of these is without a GPU, and
# a server that takes nobody (807) mostly waits for the last client that a fault hit.
_MPS = frozenset({805, 806, MPS_SERVER_NOT_READY, 810})

# Of cudaGetErrorString and of the names in cuda.h, for errors that carry no code. Lower case.
_WORDS = (
    "an illegal memory access was encountered",
    "misaligned address",
    "unspecified launch failure",
    "an illegal instruction was encountered",
    "the launch timed out and was terminated",
    "device-side assert triggered",
    "mps client has been terminated",
    "mps server is not ready",
    "cuda_error_illegal_address",
    "cuda_error_launch_failed",
    "cuda_error_misaligned_address",
)


def is_device_lost(error: BaseException) -> bool:
    """Looks at the causes of an exception as well."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if _is_lost(link):
            return True
        link = link.__cause__ or link.__context__
    return False


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, DeviceLost):
        return True
    if isinstance(error, CudaError):
        return error.code in FATAL or error.code in _MPS
    code = getattr(error, "error_code", None)  # torch.AcceleratorError
    if isinstance(code, int) and (code in FATAL or code in _MPS):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


@contextmanager
def device_lost_raised() -> Iterator[None]:
    """Around work on the GPU: a fault comes out as DeviceLost, which worker loops let through, and every other
    exception as it is."""
    try:
        yield
    except DeviceLost:
        raise
    except Exception as error:
        if is_device_lost(error):
            raise DeviceLost(f"{type(error).__name__}: {error}") from error
        raise
