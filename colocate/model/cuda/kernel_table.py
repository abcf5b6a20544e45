"""Measured seconds of attention kernels by phase and shape, and which kernel to take for a shape that is like them.

The file is JSON, written by `benchmarks/gpu_suite.py` on the device it is for:

    {"device": "NVIDIA H200", "head_dim": 128, "num_heads": 32, "num_kv_heads": 8, "dtype": "bfloat16", "timings":
     [{"phase": "prefill", "rows": 1, "new": 2048, "context": 2048, "sms": 132,
       "seconds": {"triton": 0.0011, "flashinfer": 0.0009, "sdpa": 0.0013}}]}

`new` is the tokens of all rows together, `context` the most keys a row sees, `sms` the share it was measured on.
Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colocate.errors import ConfigError
from colocate.model.config import ModelConfig

MEASURE_AGAIN = "write it again with benchmarks/gpu_suite.py on this device"


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a call computes: `phase` is prefill or decode."""

    phase: str
    rows: int
    new: int
    context: int
    sms: int

    def distance(self, other: AttentionShape) -> float:
        """Sum of the ratios of all sizes, as logarithms: twice the rows is as far as twice the context."""
        pairs = ((self.rows, other.rows), (self.new, other.new), (self.context, other.context), (self.sms, other.sms))
        return sum(abs(math.log(max(mine, 1) / max(theirs, 1))) for mine, theirs in pairs)


@dataclass(frozen=True, slots=True)
class KernelTiming:
    shape: AttentionShape
    seconds: dict[str, float]  # by kernel; a kernel that failed or is missing has no entry


@dataclass(frozen=True, slots=True)
class KernelTable:
    """Of one device and one model's heads."""

    device: str
    head_dim: int
    num_heads: int
    num_kv_heads: int
    dtype: str
    timings: tuple[KernelTiming, ...]

    def fits(self, config: ModelConfig, dtype: str) -> bool:
        """Whether it was measured for heads like these."""
        mine = (self.head_dim, self.num_heads, self.num_kv_heads, self.dtype)
        return mine == (config.head_dim, config.num_heads, config.num_kv_heads, dtype)

    def fastest(self, shape: AttentionShape, among: Collection[str]) -> str | None:
        """The fastest of `among` at the nearest measured shape of the phase; None where none of them was measured."""
        known = [
            timing
            for timing in self.timings
            if timing.shape.phase == shape.phase and any(name in timing.seconds for name in among)
        ]
        if not known:
            return None
        nearest = min(known, key=lambda timing: timing.shape.distance(shape))
        return min((name for name in among if name in nearest.seconds), key=nearest.seconds.__getitem__)

    def dump(self, path: Path) -> None:
        values = asdict(self)
        values["timings"] = [asdict(timing.shape) | {"seconds": timing.seconds} for timing in self.timings]
        path.write_text(json.dumps(values, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> KernelTable:
        """Raises ConfigError that names the file for anything but a table."""
        try:
            values = json.loads(path.read_text())
            return _table(values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(str(path), f"is not a table of kernels: {error!r}", MEASURE_AGAIN) from None

    @staticmethod
    def load_for(path: Path, device: str, config: ModelConfig, dtype: str) -> KernelTable:
        """Raises ConfigError also for a table of another device or of other heads: its seconds say nothing here."""
        table = KernelTable.load(path)
        if table.device != device:
            raise ConfigError(str(path), f"was measured on {table.device!r}, this is {device!r}", MEASURE_AGAIN)
        if not table.fits(config, dtype):
            measured = f"{table.num_heads}/{table.num_kv_heads} heads of {table.head_dim} in {table.dtype}"
            here = f"{config.num_heads}/{config.num_kv_heads} of {config.head_dim} in {dtype}"
            raise ConfigError(str(path), f"was measured for {measured}, the model has {here}", MEASURE_AGAIN)
        return table


def _table(values: dict[str, Any]) -> KernelTable:
    timings = []
    for entry in values["timings"]:
        sizes = {key: int(entry[key]) for key in ("rows", "new", "context", "sms")}
        seconds = {str(name): float(value) for name, value in entry["seconds"].items()}
        if entry["phase"] not in ("prefill", "decode") or not all(0 < value < math.inf for value in seconds.values()):
            raise ValueError(f"a timing is out of range: {entry}")
        timings.append(KernelTiming(AttentionShape(entry["phase"], **sizes), seconds))
    heads = {key: int(values[key]) for key in ("head_dim", "num_heads", "num_kv_heads")}
    return KernelTable(device=str(values["device"]), dtype=str(values["dtype"]), timings=tuple(timings), **heads)
