"""What a run of the suite works with: the real shapes, or tiny ones on the fake backend (`--smoke`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gpu.shapes import FULL, TINY

FAKE = "COLOCATE_FAKE_CUDA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One per run. Points are what the sections sweep; every list begins with what matters most, so a section that
    runs out of time has it."""

    is_smoke: bool
    models: Path  # directory of `make_shapes`
    out: Path  # where results go
    serve_flags: tuple[str, ...]  # given to every `colocate serve`
    names: tuple[str, ...]  # of the shapes; the first is the one that single-model sections use
    dtype: str
    decode_points: tuple[tuple[int, int], ...]  # (batch, context)
    prefill_points: tuple[int, ...]  # tokens of one prompt
    decode_shares: tuple[int, ...]  # SMs; 0 is the whole device
    prefill_shares: tuple[int, ...]
    repeats: int  # of a timed piece of work; the median counts
    num_switches: int
    copy_bytes: int
    gemm_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    chunk_sizes: tuple[int, ...]  # of mode chunked
    max_model_len: int
    load_s: float  # of every end-to-end load
    drain_s: float  # how long answers may take after the last arrival
    max_answer: int  # tokens; longer ones are cut, so that a run ends
    rates: tuple[float, ...]  # requests per second of a load
    loads: tuple[str, ...]  # of live.LOADS
    profile_budget: str  # of `colocate profile`
    profile: Path | None = None  # what the policies predict from; None: a roofline prior
    num_hand_overs: int = 200

    @property
    def model(self) -> Path:
        return self.models / self.names[0]


_DECODE_SHARES = (0, 48, 16, 32, 24, 64, 80, 96)
_PREFILL_SHARES = (0, 84, 116, 100, 68, 52)
_DECODE_POINTS = (
    (64, 2048), (1, 2048), (256, 2048), (64, 512), (64, 8192), (16, 2048), (128, 2048), (32, 4096), (8, 8192),
    (256, 512),
)  # fmt: skip


def full_setting(models: Path, out: Path, serve_flags: tuple[str, ...] = ()) -> Setting:
    return Setting(
        is_smoke=False,
        models=models,
        out=out,
        serve_flags=serve_flags,
        names=FULL,
        dtype="bfloat16",
        decode_points=_DECODE_POINTS,
        prefill_points=(2048, 8192, 4096, 512, 16384, 1024, 256),
        decode_shares=_DECODE_SHARES,
        prefill_shares=_PREFILL_SHARES,
        repeats=10,
        num_switches=1000,
        copy_bytes=4 << 30,
        gemm_size=8192,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        chunk_sizes=(1024, 2048, 512, 4096),
        max_model_len=16384,
        load_s=14.0,
        drain_s=8.0,
        max_answer=200,
        rates=(8.0,),
        loads=("chat",),
        profile_budget="240s",
    )


def smoke_setting(models: Path, out: Path, serve_flags: tuple[str, ...] = ()) -> Setting:
    """Whether every section runs from end to end, and nothing about speed."""
    return Setting(
        is_smoke=True,
        models=models,
        out=out,
        serve_flags=serve_flags,
        names=TINY,
        dtype="float32",
        decode_points=((2, 32), (1, 64)),
        prefill_points=(32, 16),
        decode_shares=(0, 48),
        prefill_shares=(0, 84),
        repeats=2,
        num_switches=20,
        copy_bytes=1 << 20,
        gemm_size=64,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        chunk_sizes=(32,),
        max_model_len=512,
        load_s=1.0,
        drain_s=60.0,
        max_answer=4,
        rates=(2.0,),
        loads=("chat",),
        profile_budget="15s",
        num_hand_overs=3,
    )


def is_fake() -> bool:
    return os.environ.get(FAKE) == "1"
