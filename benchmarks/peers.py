"""Ours beside the servers that people run: vLLM, llama.cpp's server and `transformers serve`, on the same weights.

    python benchmarks/peers.py [--model 30m|125m] [--rounds 2] [--arms NAME...] [--out benchmarks/results/peers.json]
    python benchmarks/peers.py --chunks 64 128 256 512 --rounds 1 --window 12 --out benchmarks/results/peers_chunks.json
    python benchmarks/peers.py --table benchmarks/results/peers.json        the table of a run that is done, or was cut

Four streams decode without pause while a prompt of 2,048 tokens arrives every few seconds, sent by the client of
`colocate bench`: four requests in flight (16 tokens in, 512 out), and an open loop of long prompts. In each round every
arm is started, measured and stopped once, in an order that turns round with the rounds, so that drift of the machine
hits all alike. A peer is what an environment variable names (benchmarks/systems/*.py); what is not installed is left
out and said. Random float32 weights, 1 GiB of float32 KV.

Each peer has its defaults and its best chunk. What is best was measured before by the second line, which takes every
system with every size: the chunk with the smallest product of TTFT p50 and ITL p99 in prefill, as the first wants it
large and the second small. It is read from results/peers_chunks.json.

Figures are medians over the rounds. TTFT counts from when a long prompt was due. ITL is apart for gaps that touch the
time from sending a long prompt to its first token ("prefill") and all others ("quiet"). Memory is the proportional set
size of the server's processes after the load; start is from its command until it is ready, the shortest of the rounds,
because vLLM compiles in its first. The results are written after every arm.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import describe_machine
from peer_arms import (
    CHUNKED,
    SETTINGS,
    Arm,
    Ground,
    Setting,
    chunk_arm,
    chunk_arms,
    installed,
    read_best,
    rule,
    study_arms,
)
from peer_figures import Figures, Rounds, Seen, best_chunks, figures, medians, notes, table
from peer_model import write_peer_model
from systems.llama_cpp import LlamaCpp, export_gguf

from colocate.bench.loop import LoadRun
from colocate.bench.plan import BenchPlan
from colocate.bench.prompts import prepare_prompts
from colocate.bench.records import RequestRow
from colocate.bench.systems.server import Server, ServerFailed, running
from colocate.bench.systems.system import System
from colocate.bench.target import find_target
from colocate.errors import ConfigError
from colocate.workload.rows import Workload, WorkloadRow

NUM_STREAMS = 4
STREAM_TOKENS = (16, 512)
PROMPT_TOKENS = 2048
_MOST_STREAMS = 600  # more than any server gets through in a window
_LATE_S = 10.0  # for the last long prompt, after the window


def stream_load(seconds: float) -> Workload:
    tokens, answer = STREAM_TOKENS
    rows = tuple(WorkloadRow(arrival_s=0.0, prompt_tokens=tokens, output_tokens=answer) for _ in range(_MOST_STREAMS))
    return Workload("streams", rows, seconds)


def prompt_load(setting: Setting) -> Workload:
    """One that warms up, then one every `every_s`, the last early enough to be answered inside."""
    end_s = setting.warmup_s + setting.window_s
    num_counted = max(1, int(setting.window_s / setting.every_s))
    due_s = [0.5, *(setting.warmup_s + 0.5 + index * setting.every_s for index in range(num_counted))]
    rows = tuple(WorkloadRow(arrival_s=at_s, prompt_tokens=PROMPT_TOKENS, output_tokens=1) for at_s in due_s)
    return Workload("long prompts", rows, end_s)


async def measure(server: Server, system: System, setting: Setting, tokenizer: Path, seed: int) -> Seen:
    """Offer both loads. Raises ConfigError where the server cannot be asked at all."""
    seconds = setting.warmup_s + setting.window_s
    plan = BenchPlan(
        url=server.url,
        model=server.launch.model,
        workload=stream_load(seconds),
        out=Path(),  # rows stay here: nothing is written
        system={"llama.cpp": "llama.cpp", "transformers": "transformers"}.get(system.name, ""),
        concurrency=NUM_STREAMS,
        warmup_s=setting.warmup_s,
        drain_s=0.0,
        tokenizer=tokenizer,
        seed=seed,
    )
    target = await find_target(plan)
    long_plan = replace(plan, workload=prompt_load(setting), concurrency=None, drain_s=_LATE_S, seed=seed + 1)
    streams = LoadRun(plan, target, await prepare_prompts(plan, target), "streams")
    prompts = LoadRun(long_plan, target, await prepare_prompts(long_plan, target), "prompts")
    stream_rows: list[RequestRow] = []
    prompt_rows: list[RequestRow] = []
    for load in (streams, prompts):
        await load.prepare()
    streams.start_clock()
    prompts.start_clock()
    await asyncio.gather(streams.run(stream_rows.append), prompts.run(prompt_rows.append))
    return Seen(stream_rows, prompt_rows, setting.warmup_s, seconds)


def run_arm(arm: Arm, ground: Ground, log: Path, seed: int) -> Figures:
    """Start, measure, stop. Raises ServerFailed, ConfigError."""
    system = ground.system(arm)
    with running(system, arm.flags, log) as server:
        seen = asyncio.run(measure(server, system, ground.setting, ground.model, seed))
        memory = server.resident_bytes()
        start_s = server.start_s
    return figures(seen) | {"memory_bytes": memory, "start_s": start_s}


def study(arms: Sequence[Arm], ground: Ground, num_rounds: int, logs: Path) -> Iterator[Rounds]:
    """Figures of each round by arm, so far, after every arm. One that fails in a round has none of it, and says so."""
    rounds: dict[str, list[Figures]] = {arm.name: [] for arm in arms}
    for number in range(num_rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            try:
                found = run_arm(arm, ground, logs / f"{number}-{arm.name}.log", seed=1000 * number)
            except (ServerFailed, ConfigError) as error:
                print(f"round {number + 1} {arm.name} failed: {error}", flush=True)
                continue
            rounds[arm.name].append(found)
            shown = {key: value if value is None else round(value, 4) for key, value in found.items()}
            print(f"round {number + 1} {arm.name}: {shown}", flush=True)
            yield rounds


def report(rounds: Rounds, num_rounds: int, versions: dict[str, str], chosen_by: str = "") -> str:
    """Markdown: the table, what its names mean, and what is missing."""
    results = {name: medians(found) for name, found in rounds.items() if found}
    lines = [
        table(results),
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    ]
    if chosen_by:
        lines.append(f"A number behind a name is {chosen_by}.")
    lines += [f"{note}." for note in notes(rounds, num_rounds)]
    return "\n".join(lines)


def report_of(record: dict[str, Any]) -> str:
    """Of a results file."""
    return report(record["rounds"], record["num_rounds"], record["versions"], record["chosen_by"])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SETTINGS), default="30m")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--window", type=float, help="seconds that are measured per arm and round")
    parser.add_argument("--arms", nargs="*", default=[], metavar="NAME", help="only arms whose name begins so")
    parser.add_argument("--chunks", nargs="*", type=int, default=[], metavar="N", help="find the best of these instead")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of these results; nothing is run")
    return parser.parse_args()


def written_command(options: argparse.Namespace) -> str:
    words = [f"--model {options.model}", f"--rounds {options.rounds}"]
    words += [f"--window {options.window:g}"] if options.window else []
    words += [f"--arms {' '.join(repr(name) for name in options.arms)}"] if options.arms else []
    words += [f"--chunks {' '.join(map(str, options.chunks))}"] if options.chunks else []
    return " ".join(["python benchmarks/peers.py", *words])


def main() -> None:
    options = parse()
    if options.table:
        print(report_of(json.loads(options.table.read_text())))
        return
    setting = SETTINGS[options.model]
    if options.window:
        setting = replace(setting, window_s=options.window)
    best, chosen_by = ({}, "") if options.chunks else read_best()
    wanted = chunk_arms(options.chunks) if options.chunks else study_arms(best)
    arms, versions, left_out = installed(wanted, options.arms)
    for line in left_out:
        print(f"left out: {line}")
    machine = describe_machine()
    versions = {"colocate": str(machine["commit"]), **versions}
    about: dict[str, object] = {
        "command": written_command(options),
        "machine": machine,
        "versions": versions,
        "setting": {name: getattr(setting, name) for name in Setting.__slots__},
        "left_out": left_out,
        "num_rounds": options.rounds,
        "chosen_by": chosen_by,
    }
    rounds: Rounds = {}
    with tempfile.TemporaryDirectory(prefix="colocate-peers-") as folder:
        model = write_peer_model(Path(folder) / "model", setting.shape)
        gguf = Path(folder) / "model.gguf"
        if any(isinstance(arm.peer, LlamaCpp) for arm in arms):
            export_gguf(model, gguf)
        # What it compiles is of no use to anyone else: the model's path is part of it.
        os.environ.setdefault("VLLM_CACHE_ROOT", str(Path(folder) / "vllm"))
        for rounds in study(arms, Ground(setting, model, gguf), options.rounds, Path(folder)):
            if options.out:
                options.out.write_text(json.dumps(about | outcome(rounds, options.chunks), indent=1) + "\n")
    print("\n" + report(rounds, options.rounds, versions, chosen_by))
    if options.chunks:
        print(f"best: {outcome(rounds, options.chunks)['best']}")


def outcome(rounds: Rounds, chunks: Sequence[int]) -> dict[str, object]:
    """Of the results file: `medians` by arm, and `best` where chunks were compared."""
    results = {name: medians(found) for name, found in rounds.items() if found}
    found: dict[str, object] = {"medians": results, "rounds": rounds}
    if chunks:
        sizes = {name: {chunk_arm(name, tokens).name: tokens for tokens in chunks} for name in CHUNKED}
        found |= {"rule": rule(chunks), "best": best_chunks(results, sizes)}
    return found


if __name__ == "__main__":
    main()
