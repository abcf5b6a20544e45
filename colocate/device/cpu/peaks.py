"""Peak rates of the cores at hand, for the roofline prior: measured once per machine, then kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

_TIMEOUT_S = 20.0
_ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_CACHE_VERSION = 1


class CpuPeaks(Struct, frozen=True):
    """Of all chosen cores together: float32 products, and reads from memory."""

    flops_per_s: float
    bytes_per_s: float
    one_core_bytes_per_s: float

    @property
    def saturating_cores(self) -> int:
        """How many cores it takes to read as fast as all of them do."""
        return max(1, round(self.bytes_per_s / self.one_core_bytes_per_s))


def cpu_peaks(device_name: str, core_ids: tuple[int, ...], cache: Path) -> CpuPeaks | None:
    """From the cache, or measured now (a fifth of a second). None where it cannot be measured."""
    key = hashlib.sha256(f"{_CACHE_VERSION}/{device_name}/{len(core_ids)}".encode()).hexdigest()[:16]
    path = cache / f"peaks-{key}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=CpuPeaks)
    except (OSError, msgspec.MsgspecError):
        pass
    peaks = _measure(core_ids)
    if peaks is not None:
        _keep(path, peaks)
    return peaks


def _measure(core_ids: tuple[int, ...]) -> CpuPeaks | None:
    command = [sys.executable, "-m", "colocate.device.cpu.peak_probe"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            env={**os.environ, **_ONE_BLAS_THREAD},
            preexec_fn=lambda: os.sched_setaffinity(0, core_ids),
        )
        peaks = msgspec.json.decode(done.stdout, type=CpuPeaks)
    except (subprocess.SubprocessError, OSError, msgspec.MsgspecError):
        return None
    return peaks if min(peaks.flops_per_s, peaks.bytes_per_s, peaks.one_core_bytes_per_s) > 0 else None


def _keep(path: Path, peaks: CpuPeaks) -> None:
    """Renamed into place: a reader sees all of it or none. A cache that cannot be written is no reason to stop."""
    scratch = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(msgspec.json.encode(peaks))
        scratch.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()
