"""What torch can do here, asked of a short-lived process so that this one never loads it."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
from msgspec import Struct

_TIMEOUT_S = 120.0

# Set for the workers and for this probe before torch loads. A spinning OpenMP thread burns the core that the other
# phase was just given.
PASSIVE_OPENMP = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
    "OMP_PROC_BIND": "false",
    "OMP_DYNAMIC": "false",
}


class TorchFacts(Struct, frozen=True):
    """`gflops` per dtype: the geometric mean of a prefill-like and a decode-like matrix product."""

    torch: str
    num_threads: int
    isa: str
    openmp: bool
    mkldnn: bool
    gflops: dict[str, float]


def probe_torch() -> TorchFacts | None:
    """None where torch cannot be imported or does not finish."""
    command = [sys.executable, "-m", "colocate.device.cpu.matmul_probe"]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_TIMEOUT_S, check=True, env={**os.environ, **PASSIVE_OPENMP}
        )
        return msgspec.json.decode(done.stdout, type=TorchFacts)
    except (subprocess.SubprocessError, OSError, msgspec.DecodeError):
        return None
