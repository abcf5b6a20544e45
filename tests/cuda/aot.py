"""Compiles Triton kernels for sm_90 on a machine without a GPU, and reads from the result what a GPU would pay.

One kernel by its signature:

    kernel = compile_for_h200(my_kernel, {"x": "*bf16:16", "n": "i32", "eps": "fp32", "BLOCK": 128}, num_warps=4)
    assert kernel.spilled_bytes == 0

A signature gives every argument of the kernel, by name: a string is a type, `:16` after it says that the value is
divisible by 16 (triton finds that out at launch: of all tensors torch allocates, of most strides); anything that is
not a string is the value of a constexpr. An integer argument that is 1 at launch becomes a constexpr there: write 1.

Or all that a piece of product code launches, with the arguments it launches with (CPU tensors do):

    with compiled_launches() as launches:
        attention.decode(...)
    assert launches[0].kernel.uses_wgmma
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED_LIMIT_BYTES = 227 * 1024
"""Shared memory one block can have on sm_90 (CUDA C++ programming guide, table of compute capabilities)."""


@dataclass(frozen=True, slots=True)
class CompiledForH200:
    """What came out. `registers` are per thread, `spilled_bytes` the stack of one thread, `shared_bytes` per block."""

    ttgir: str
    ptx: str
    cubin: bytes
    registers: int
    spilled_bytes: int
    shared_bytes: int
    num_warps: int

    @property
    def uses_wgmma(self) -> bool:
        """The matrix products run on Hopper's warp-group instructions."""
        return "wgmma.mma_async" in self.ptx

    @property
    def num_async_copies(self) -> int:
        """`cp.async` instructions: loads that the software pipeline starts ahead of their use."""
        return len(re.findall(r"cp\.async\.c[ag]", self.ptx))


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch that did not take place."""

    name: str
    grid: tuple[int, int, int]
    kernel: CompiledForH200


def compile_for_h200(
    kernel: Any, signature: Mapping[str, object], *, num_warps: int = 4, num_stages: int = 3
) -> CompiledForH200:
    """Raises what triton or ptxas raise. Everything is compiled afresh unless this session did it before."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    missing = set(kernel.arg_names) ^ set(signature)
    assert not missing, f"arguments missing or unknown: {sorted(missing)}"
    types: dict[str, str] = {}
    constants: dict[str, object] = {}
    attributes: dict[tuple[int], list[list[object]]] = {}
    for place, name in enumerate(kernel.arg_names):
        value = signature[name]
        if not isinstance(value, str):
            types[name] = "constexpr"
            constants[name] = value
            continue
        types[name], _, divisor = value.partition(":")
        if divisor:
            attributes[(place,)] = [["tt.divisibility", int(divisor)]]
    source = ASTSource(kernel, types, constants, attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return read_compiled(compiled.asm, compiled.metadata)


@contextmanager
def compiled_launches() -> Iterator[list[Launch]]:
    """Inside, Triton kernels that are launched are compiled for sm_90 and go to the list; nothing runs."""
    from triton.runtime.driver import driver

    from tests.cuda.compiling_driver import COMPILING

    before, COMPILING.launches = driver._active, []
    driver.set_active(COMPILING)
    try:
        yield COMPILING.launches
    finally:
        driver._active = before


def read_compiled(asm: Mapping[str, Any], metadata: Any) -> CompiledForH200:
    """From triton's products by kind (ttgir, ptx, cubin) and its metadata."""
    registers, stack_bytes = _resources(asm["cubin"])
    return CompiledForH200(
        ttgir=asm["ttgir"],
        ptx=asm["ptx"],
        cubin=asm["cubin"],
        registers=registers,
        spilled_bytes=stack_bytes,
        shared_bytes=metadata.shared,
        num_warps=metadata.num_warps,
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) of a thread, as triton's own cuobjdump reads them."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])
