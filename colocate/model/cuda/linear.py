"""Matrix products on the GPU: cuBLAS through torch, told how many SMs the share has.

Weights are [out, in] as in the checkpoint, never repacked: two processes read one copy. Why cuBLAS learns the SM count:
it picks tiles and split-K for the whole device otherwise, and on a share of 24 SMs that makes waves which do not fill
it. `cublasSetSmCountTarget` acts on the handle of this thread and stays until it is set again; a captured graph keeps
the kernels that were chosen at its capture.

No bias here: `torch.addmm` with a bias of one dimension takes cublasLt, which does not know the handle's target, and
`mm` never does (aten/src/ATen/native/cuda/Blas.cpp). The bias of qkv is added by the rotation kernel, which reads these
values anyway; that of the output projection, which few models have, by one pass over it.

What torch.compile would have to beat: the products are these same cuBLAS kernels, and what lies between them is five
launches per layer of one pass each, all inside a CUDA graph. Nothing is left to fuse but norms into products, which it
does not do either. It is not used.

Unproven without a GPU: that the target changes the kernels chosen for these shapes, and what it gains.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import structlog
import torch
from torch import Tensor

_SUCCESS = 0
_log = structlog.get_logger("colocate.cublas")
_SetTarget = Callable[[int, int], int]


class CublasLinear:
    """Owned by one model and used from one thread; on CPU tensors torch's own products do the same."""

    def __init__(self, device: torch.device) -> None:
        self._set_target = _find_set_target() if device.type == "cuda" else None

    def use(self, num_sms: int) -> None:
        """Before the products of a forward: they will run on this many SMs; 0 is all of them. Launches nothing.

        A cuBLAS that refuses is warned about once and then left alone: the products are right, only slower.
        """
        if self._set_target is None:
            return
        status = self._set_target(_handle(), num_sms)
        if status != _SUCCESS:
            self._set_target = None
            _warn(f"cublasSetSmCountTarget({num_sms}) failed with status {status}")

    def project(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        """out [tokens, out] = x [tokens, in] @ weight.T; rows of x may lie apart."""
        torch.mm(x, weight.t(), out=out)

    def scores(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        """As `project`, with a float32 `out` that was never rounded to the type of x."""
        if x.dtype == torch.float32:
            torch.mm(x, weight.t(), out=out)
        elif x.is_cuda:
            torch.mm(x, weight.t(), out_dtype=torch.float32, out=out)
        else:  # torch has that product on CUDA only
            torch.mm(x.float(), weight.t().float(), out=out)


def _find_set_target() -> _SetTarget | None:
    """cublasStatus_t cublasSetSmCountTarget(cublasHandle_t, int) of the library that torch has loaded."""
    _handle()  # loads it
    path = _loaded_cublas(Path("/proc/self/maps").read_text())
    if path is None:
        _warn("no libcublas was found in this process")
        return None
    try:
        function = ctypes.CDLL(path).cublasSetSmCountTarget
    except (OSError, AttributeError) as error:
        _warn(f"{path}: {error}")
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_int]
    function.restype = ctypes.c_int
    return function


def _loaded_cublas(maps: str) -> str | None:
    """The path of libcublas (not libcublasLt) in the text of /proc/self/maps."""
    found = re.search(r"(/\S*/libcublas\.so[.0-9]*)$", maps, re.MULTILINE)
    return None if found is None else found[1]


def _handle() -> int:
    """cuBLAS's handle of this thread on the current device."""
    return int(torch.cuda.current_blas_handle())  # type: ignore[no-untyped-call]


def _warn(reason: str) -> None:
    _log.warning("cuBLAS is not told how many SMs a share has: products on small shares may be slow", reason=reason)
