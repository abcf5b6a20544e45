"""The servers of `benchmarks/peers.py`: ours and the peers, each as its users start it, and with its best chunk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from systems.llama_cpp import LlamaCpp
from systems.peer import PeerJob, PeerServer, PeerSystem
from systems.transformers_serve import TransformersServe
from systems.vllm import Vllm

from colocate.bench.systems.colocate import Colocate
from colocate.bench.systems.system import System

MAX_NUM_SEQS = 8
BEST_CHUNKS = Path(__file__).parent / "results" / "peers_chunks.json"

# What is measured with each chunk. None: this package.
CHUNKED: Mapping[str, PeerSystem | None] = {
    "colocate chunked": None,
    "vllm all cores": Vllm(cpu=True, all_cores=True),
    "llama.cpp": LlamaCpp(),
    "transformers": TransformersServe(),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """Of one size of model. Seconds."""

    shape: str
    kv_tokens: int  # that 1 GiB holds in float32
    every_s: float  # between long prompts
    warmup_s: float
    window_s: float


# A server whose prompts take longer than `every_s` queues them: it is long enough for one core to prefill one.
SETTINGS = {
    "30m": Setting("30M", 32768, every_s=6.0, warmup_s=6.0, window_s=18.0),
    "125m": Setting("125M", 14336, every_s=12.0, warmup_s=12.0, window_s=36.0),
}


@dataclass(frozen=True, slots=True)
class Arm:
    """`peer` None: this package. `chunk_tokens` None: what a peer does by itself."""

    name: str
    flags: tuple[str, ...] = ()
    peer: PeerSystem | None = None
    chunk_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Ground:
    """What arms are started with."""

    setting: Setting
    model: Path
    gguf: Path

    def system(self, arm: Arm) -> System:
        if arm.peer is None:
            flags = ("--units", str(num_cores()), "--dtype", "float32", "--kv-memory", "1GiB")
            flags += ("--max-num-seqs", str(MAX_NUM_SEQS), "--served-model-name", "bench", "--log-level", "warning")
            return Colocate(str(self.model), flags)
        job = PeerJob(
            model_dir=self.gguf if isinstance(arm.peer, LlamaCpp) else self.model,
            max_num_seqs=MAX_NUM_SEQS,
            chunk_tokens=arm.chunk_tokens,
            max_model_len=8192,
            dtype="float32",
            dummy_weights=False,
            kv_tokens=self.setting.kv_tokens,
            kv_gib=1,
            threads=num_cores(),
        )
        return PeerServer(arm.peer, job)


def num_cores() -> int:
    """That servers compute on: two, whatever the machine has, because an arm names the plan p1d1."""
    return min(2, len(os.sched_getaffinity(0)))


def chunk_arm(name: str, tokens: int) -> Arm:
    """One of CHUNKED with chunks of so many tokens."""
    peer = CHUNKED[name]
    flags = ("--mode", "chunked", "--chunk-size", str(tokens)) if peer is None else ()
    return Arm(f"{name} {tokens}", flags, peer, tokens)


def study_arms(best: Mapping[str, int]) -> list[Arm]:
    """Ours, and each peer with its default and its best chunk. `best` by the names of CHUNKED; without one, an arm is
    not there."""
    usual = {
        "colocate chunked": [
            Arm("colocate static p1d1", ("--plan", "static:p1d1")),
            Arm("colocate elastic", ("--plan", "elastic")),
        ],
        "vllm all cores": [Arm("vllm", peer=Vllm(cpu=True))],
        "llama.cpp": [Arm("llama.cpp", peer=LlamaCpp())],
        "transformers": [Arm("transformers", peer=TransformersServe())],
    }
    return [arm for name in CHUNKED for arm in (*usual[name], *([chunk_arm(name, best[name])] if name in best else []))]


def chunk_arms(sizes: Sequence[int]) -> list[Arm]:
    """All of CHUNKED with all sizes, to find the best. Sizes outermost: drift hits all systems alike."""
    return [chunk_arm(name, tokens) for tokens in sizes for name in CHUNKED]


def rule(sizes: Sequence[int]) -> str:
    return f"the best chunk of {', '.join(map(str, sizes))} tokens, by the smallest TTFT p50 x ITL p99 in prefill"


def read_best(file: Path = BEST_CHUNKS) -> tuple[dict[str, int], str]:
    """What `peers.py --chunks` wrote last: best chunks by the names of CHUNKED, nothing of a system that was not there,
    and the rule that chose them."""
    if not file.exists():
        return {}, ""
    record = json.loads(file.read_text())
    return record["best"], record["rule"]


def installed(arms: Sequence[Arm], names: Sequence[str]) -> tuple[list[Arm], dict[str, str], list[str]]:
    """Arms whose name begins so and whose system is here, versions by system, and what was left out and why."""
    versions: dict[str, str] = {}
    left_out: list[str] = []
    found = []
    for arm in arms:
        if not arm.name.startswith(tuple(names) or ("",)):
            continue
        if arm.peer is not None:
            version = versions.get(arm.peer.package) or arm.peer.version()
            if version is None:
                left_out.append(f"{arm.name}: {arm.peer.package} is not installed, see benchmarks/systems/")
                continue
            versions[arm.peer.package] = version
        found.append(arm)
    return found, versions, left_out
