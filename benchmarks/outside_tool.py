"""`colocate bench` beside an outside tool, guidellm, on one server with one load: do the rulers agree?

    PEER_GUIDELLM=BINARY python benchmarks/outside_tool.py [--model 30m] [--rate 2] [--requests 60] [--rounds 4]
        [--url URL --tokenizer FOLDER] [--out benchmarks/results/outside_tool.json]

Both send the same number of requests of the same lengths at the same constant rate, in turns, the first of each round
changing; each figure is the median over the rounds, and the difference is to guidellm's. Without --url a server is
started with random weights, in the steadiest mode: `colocate serve --mode chunked`. BINARY comes from a virtual
environment (`pip install torch==2.13.0 guidellm==0.8.1`); without the variable, it is `guidellm` on the PATH.

What differs by definition, and is small at a low load: guidellm counts TTFT from when it sent a request, this package
from when it was due; guidellm draws text, whose tokens it counts itself, this package ids.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe_machine
from peer_model import write_peer_model
from random_model import SHAPES

from colocate.bench.systems.colocate import Colocate
from colocate.bench.systems.server import running

BINARY_VARIABLE = "PEER_GUIDELLM"
BOUND = 0.05
_RUN_S = 900.0
Figures = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`rate` in requests per second."""

    rate: float = 2.0
    num_requests: int = 60
    prompt_tokens: int = 128
    output_tokens: int = 32


def find_guidellm() -> str | None:
    return shutil.which(os.environ.get(BINARY_VARIABLE) or "guidellm")


def guidellm_command(binary: str, url: str, model: str, tokenizer: Path, load: Load, out: Path, seed: int) -> list[str]:
    # Usage with every event is vLLM's own option: not every server takes it, and guidellm asks for it by itself.
    stream_options = {"include_usage": True, "continuous_usage_stats": False}
    backend = {
        "kind": "openai_http",
        "target": url,
        "model": model,
        "request_format": "/v1/completions",
        "http2": False,
        "extras": {"body": {"stream_options": stream_options, "temperature": 0}},
    }
    tokenizer_arguments = {"kind": "huggingface_auto", "model": str(tokenizer)}
    data = {"kind": "synthetic_text", "prompt_tokens": load.prompt_tokens, "output_tokens": load.output_tokens}
    return [
        binary, "run",
        "--backend", json.dumps(backend),
        "--tokenizer", json.dumps(tokenizer_arguments),
        "--data", json.dumps(data),
        "--profile", f"kind=constant,rate={load.rate:g}",
        "--constraint", f"kind=max_requests,count={load.num_requests}",
        "--seed", f"kind=static,seed={seed}",
        "--output", f"kind=json,path={out}",
        "--disable-console",
    ]  # fmt: skip


def bench_command(url: str, model: str, load: Load, out: Path, seed: int) -> list[str]:
    return [
        sys.executable, "-m", "colocate", "bench", url,
        "--model", model,
        "--lengths", f"{load.prompt_tokens}/{load.output_tokens}",
        "--rate", f"{load.rate:g}",
        "--arrivals", "constant",
        "--num-prompts", str(load.num_requests),
        "--seed", str(seed),
        "--out", str(out),
        "--json", "--quiet",
    ]  # fmt: skip


def guidellm_figures(report: Mapping[str, Any]) -> Figures:
    """Of its JSON report. Milliseconds there, seconds here."""
    benchmark = report["benchmarks"][0]
    metrics = benchmark["metrics"]
    totals = metrics["request_totals"]
    if not totals["successful"]:
        raise RuntimeError(f"guidellm had no answer: {totals}")

    def median(name: str) -> float:
        return float(metrics[name]["successful"]["median"])

    return {
        "requests": float(totals["successful"]),
        "ttft_p50_s": median("time_to_first_token_ms") / 1e3,
        "itl_p50_s": median("inter_token_latency_ms") / 1e3,
        "e2e_p50_s": median("request_latency"),
        "prompt_tokens": median("prompt_token_count"),
        "output_tokens": median("output_token_count"),
        "output_tokens_per_s": float(metrics["output_token_count"]["successful"]["total_sum"])
        / float(benchmark["duration"]),
    }


def bench_figures(rows: Sequence[Mapping[str, Any]]) -> Figures:
    """From the raw rows of `requests.jsonl`, by guidellm's definitions: ITL is a request's mean gap, and each latency's
    median is over requests; throughput counts from the first request to the end of the last."""
    done = [row for row in rows if row["outcome"] == "finished"]
    gaps = [(row["token_s"][-1] - row["token_s"][0]) / (len(row["token_s"]) - 1) for row in done]
    return {
        "requests": float(len(done)),
        "ttft_p50_s": statistics.median(row["token_s"][0] - row["scheduled_s"] for row in done),
        "itl_p50_s": statistics.median(gaps),
        "e2e_p50_s": statistics.median(row["token_s"][-1] - row["scheduled_s"] for row in done),
        "prompt_tokens": statistics.median(row["prompt_tokens"] for row in done),
        "output_tokens": statistics.median(row["output_tokens"] for row in done),
        "output_tokens_per_s": sum(row["output_tokens"] for row in done)
        / (max(row["end_s"] for row in done) - min(row["scheduled_s"] for row in done)),
    }


def run_guidellm(binary: str, url: str, model: str, tokenizer: Path, load: Load, folder: Path, seed: int) -> Figures:
    out = folder / "guidellm.json"
    _run(guidellm_command(binary, url, model, tokenizer, load, out, seed), {"HF_HUB_OFFLINE": "1"})
    return guidellm_figures(json.loads(out.read_text()))


def run_bench(url: str, model: str, load: Load, folder: Path, seed: int) -> Figures:
    out = folder / "bench"
    _run(bench_command(url, model, load, out, seed), {})
    rows = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    shutil.rmtree(out)
    return bench_figures(rows)


def _run(command: Sequence[str], environ: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_RUN_S, check=False, env={**os.environ, **environ}
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")


def compare(theirs: Sequence[Figures], ours: Sequence[Figures]) -> dict[str, tuple[float, float, float]]:
    """Figure -> guidellm's median over rounds, ours, and (ours - guidellm's) / guidellm's."""
    found = {}
    for key in theirs[0]:
        a, b = (statistics.median(each[key] for each in rounds) for rounds in (theirs, ours))
        found[key] = (a, b, (b - a) / a if a else 0.0)
    return found


def table(found: Mapping[str, tuple[float, float, float]]) -> str:
    lines = ["| figure | guidellm | colocate bench | difference |", "|---|---:|---:|---:|"]
    for key, (a, b, difference) in found.items():
        scale, unit = (1e3, " ms") if key.endswith("_p50_s") else (1.0, "")
        lines.append(f"| {key} | {a * scale:.2f}{unit} | {b * scale:.2f}{unit} | {difference:+.1%} |")
    return "\n".join(lines)


@contextlib.contextmanager
def server(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Its address, and the folder of its tokenizer."""
    if options.url:
        yield options.url, options.tokenizer
        return
    model = write_peer_model(folder / "model", options.model.upper())
    flags = ("--dtype", "float32", "--kv-memory", "1GiB", "--served-model-name", "bench", "--log-level", "warning")
    with running(Colocate(str(model), flags), ("--mode", "chunked"), folder / "server.log") as started:
        yield started.url, model


def main() -> int:
    """1 where a latency or the throughput differs by more than BOUND."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(name.lower() for name in SHAPES), default="30m")
    parser.add_argument("--url", help="of a server that runs already, with --tokenizer")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--served-model-name", default="bench")
    parser.add_argument("--rate", type=float, default=Load().rate)
    parser.add_argument("--requests", type=int, default=Load().num_requests)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if bool(options.url) != bool(options.tokenizer):
        parser.error("--url and --tokenizer go together: guidellm counts tokens by that folder")
    binary = find_guidellm()
    if binary is None:
        print(f"guidellm is not installed: name its binary with {BINARY_VARIABLE}, see --help")
        return 0
    load = Load(rate=options.rate, num_requests=options.requests)
    rounds: dict[str, list[Figures]] = {"guidellm": [], "colocate bench": []}
    with tempfile.TemporaryDirectory(prefix="colocate-outside-") as name:
        folder = Path(name)
        with server(options, folder) as (url, tokenizer):
            model = options.served_model_name
            run: dict[str, Callable[[int], Figures]] = {
                "guidellm": lambda seed: run_guidellm(binary, url, model, tokenizer, load, folder, seed),
                "colocate bench": lambda seed: run_bench(url, model, load, folder, seed),
            }
            for number in range(options.rounds):
                for tool in list(run) if number % 2 == 0 else reversed(list(run)):
                    rounds[tool].append(run[tool](1000 + number))  # other prompts each time: none is cached
                    print(f"round {number + 1} {tool}: {rounds[tool][-1]}", flush=True)
    found = compare(rounds["guidellm"], rounds["colocate bench"])
    print("\n" + table(found))
    if options.out:
        version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout.strip()
        record = {
            "command": f"python benchmarks/outside_tool.py --rate {load.rate:g} --requests {load.num_requests} "
            f"--rounds {options.rounds}",
            "machine": describe_machine(),
            "version": version,
            "medians": found,
            "rounds": rounds,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    compared = [key for key in found if key.endswith("_s")]
    return int(any(abs(found[key][2]) > BOUND for key in compared))


if __name__ == "__main__":
    sys.exit(main())
