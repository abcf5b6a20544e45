"""The peers that are installed here, as `colocate sweep --config` takes them.

    python benchmarks/systems/sweep_config.py [--gguf FILE] > peers.yaml
    colocate sweep MODEL --config peers.yaml --arms chunked elastic 'peer:vllm:*'

Each has the variants `default` and `chunk256`. llama.cpp needs the model as a GGUF file (`gguf_export.py`) and is left
out without one. What is left out is said on standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from systems.llama_cpp import LlamaCpp
from systems.peer import PeerJob, PeerSystem
from systems.transformers_serve import TransformersServe
from systems.vllm import Vllm

CHUNK = 256


def peers(gguf: Path | None) -> dict[str, PeerSystem]:
    """By the name that arms have. On a CPU."""
    found: dict[str, PeerSystem] = {
        "vllm": Vllm(cpu=True),
        "vllm-all-cores": Vllm(cpu=True, all_cores=True),
        "transformers": TransformersServe(),
    }
    return found | ({"llama.cpp": LlamaCpp()} if gguf is not None else {})


def entry(system: PeerSystem, job: PeerJob, version: str) -> dict[str, object]:
    """One system under `peers` (colocate/bench/systems/command.py). `{model}` and `{port}` are the sweep's to fill."""
    return {
        "command": system.command(job, "{port}"),
        "ready": "/health",
        "model": system.served_name(job),
        "environment": dict(system.environment(job)),
        "version": ["echo", version],
        "variants": {"default": [], f"chunk{CHUNK}": system.chunk_flags(CHUNK)},
    }


def document(systems: Mapping[str, PeerSystem], gguf: Path | None, max_num_seqs: int) -> dict[str, object]:
    """`peers` of those that are installed."""
    found: dict[str, object] = {}
    for name, system in systems.items():
        version = system.version()
        if version is None:
            print(f"{name}: {system.package} is not installed", file=sys.stderr)
            continue
        model = gguf if isinstance(system, LlamaCpp) and gguf is not None else Path("{model}")
        job = PeerJob(
            model_dir=model,
            max_num_seqs=max_num_seqs,
            chunk_tokens=None,
            max_model_len=8192,
            dtype="float32",
            dummy_weights=False,
        )
        found[name] = entry(system, job, version)
    return {"peers": found}


def main() -> None:
    import yaml

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--max-num-seqs", type=int, default=16)
    options = parser.parse_args()
    found = document(peers(options.gguf), options.gguf, options.max_num_seqs)
    yaml.safe_dump(found, sys.stdout, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
