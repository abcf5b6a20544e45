"""What two worker processes cost in memory beside one copy of weights and KV.

A real daemon serves a random fp32 model; its KV pool is filled by concurrent requests; then the proportional set size
(PSS: shared pages divided among those who map them) of every process is read from /proc/PID/smaps_rollup. A bare
`import torch` is measured in the same run, in two processes side by side, as the workers are. Figures:

    workers ratio   (PSS of keeper and both workers - 2 bare imports) / (weights + resident KV)     target: under 1.15
    whole ratio     (PSS of every process - 2 bare imports) / (weights + resident KV)

Resident KV is what the decode worker has touched of the pool: PSS counts no page that nobody has touched.

    python benchmarks/memory.py [--shape 125M] [--kv-memory 512MiB] [--out benchmarks/results/memory.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe_machine
from random_model import SHAPES, write_random_model
from server import Server, running_server
from stream_client import stream

from colocate.config.sizes import format_size, parse_size

ROLES = ("keeper", "prefill", "decode")
_BARE = "import torch, sys; torch.ones(8) @ torch.ones(8); print('up', flush=True); sys.stdin.read()"


def pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Pss of process {pid}")


def segment_bytes(pid: int) -> dict[str, int]:
    """Resident bytes of each keeper's segment as this process maps it."""
    found: dict[str, int] = {}
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            name = line.split("memfd:colocate-")[-1].split()[0] if "memfd:colocate-" in line else ""
        elif name and line.startswith("Rss:"):
            found[name] = found.get(name, 0) + int(line.split()[1]) * 1024
    return found


def tree(supervisor_pid: int) -> dict[str, int]:
    """Role -> pid of the daemon's processes, the supervisor included."""
    pids = {"supervisor": supervisor_pid}
    for child in Path(f"/proc/{supervisor_pid}/task/{supervisor_pid}/children").read_text().split():
        title = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0].decode()
        pids[title.removeprefix("colocate:").strip()] = int(child)
    return pids


def bare_torch_bytes() -> int:
    """PSS of one of two processes that have imported torch and multiplied once."""
    processes = [
        subprocess.Popen([sys.executable, "-c", _BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        return sum(pss_bytes(process.pid) for process in processes) // 2
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def fill(server: Server, num_requests: int, num_prompt_tokens: int) -> None:
    """So many requests at once, each holding its prompt's KV until the last has its tokens."""
    prompts = [
        [3 + (index + position) % 4000 for position in range(num_prompt_tokens)] for index in range(num_requests)
    ]
    records = await asyncio.gather(*(stream(server.port, "bench", prompt, 64) for prompt in prompts))
    errors = [record.error for record in records if record.error]
    if errors:
        raise RuntimeError(f"{len(errors)} requests failed: {errors[0]}")


def measure(shape_name: str, kv_bytes: int) -> dict:
    bare = bare_torch_bytes()
    with tempfile.TemporaryDirectory() as directory:
        model = write_random_model(Path(directory) / "model", SHAPES[shape_name], max_model_len=4096)
        arguments = [str(model), "--served-model-name", "bench", "--kv-memory", str(kv_bytes), "--max-num-seqs", "16"]
        with running_server(*arguments) as server:
            kv = server.state()["kv"]
            per_request = int(0.97 * kv["blocks_total"] / 8) * kv["block_size"] - 64
            asyncio.run(fill(server, 8, min(per_request, 4000)))
            pids = tree(server.pid)
            pss = {role: pss_bytes(pid) for role, pid in pids.items()}
            segments = segment_bytes(pids["decode"])
    weights = 4 * SHAPES[shape_name].num_parameters
    ideal = weights + segments.get("kv", 0)
    workers = sum(pss[role] for role in ROLES) - 2 * bare
    return {
        "machine": describe_machine(),
        "command": " ".join(["python", *sys.argv]),
        "shape": shape_name,
        "weights_bytes": weights,
        "kv_pool_bytes": kv_bytes,
        "kv_touched_by_decode_bytes": segments.get("kv", 0),
        "bare_torch_bytes": bare,
        "pss_bytes": pss,
        "workers_ratio": round(workers / ideal, 4),
        "whole_ratio": round((sum(pss.values()) - 2 * bare) / ideal, 4),
        "beside_the_segments_bytes": workers - segments.get("weights", 0) - segments.get("kv", 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125M")
    parser.add_argument("--kv-memory", type=parse_size, default=parse_size("512MiB"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = measure(options.shape, options.kv_memory)
    for role, num_bytes in result["pss_bytes"].items():
        print(f"{role:<11} PSS {format_size(num_bytes)}")
    print(f"bare torch  PSS {format_size(result['bare_torch_bytes'])}")
    touched = result["kv_touched_by_decode_bytes"] / options.kv_memory
    print(
        f"weights {format_size(result['weights_bytes'])}, KV pool {format_size(options.kv_memory)}, {touched:.0%} used"
    )
    print(f"workers ratio {result['workers_ratio']:.3f} (target under 1.15), whole ratio {result['whole_ratio']:.3f}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
