"""`colocate bench` beside an outside tool, guidellm, on one server with one load: do the rulers agree?

    PEER_GUIDELLM=BINARY python benchmarks/outside_tool.py [--device emulated|cpu] [--rate X] [--requests N]
        [--rounds 4] [--url URL --tokenizer FOLDER] [--out benchmarks/results/outside_tool.json]

Both send the same number of requests of text of the same lengths at the same constant rate, in turns, the first of each
round changing; each figure is the median over the rounds, and the difference is to guidellm's. BINARY comes from a
virtual environment (`pip install torch==2.13.0 guidellm==0.8.1`); without the variable, it is `guidellm` on the PATH.

Two rulers are told apart by what they measure only if that is the same for both. So without --url the server's device
is emulated: its time does not depend on who else wants the cores, and a client that computes more than the other does
not slow down the server that it measures. It is 132 units of a roofline prior in slow motion (live_study/slowed.py), so
that a millisecond of host time is little beside it; two requests are in flight, and each meets the next one's prefill.
`--device cpu` computes on one core and leaves one to the client: weights of 30 million parameters, one in flight.

Figures of `colocate bench` are what it prints itself, except for the throughput, which guidellm takes over all its
requests and this package over a window. What differs by definition, and is small at this load: guidellm counts from
when it sent a request over a connection that is open, this package from when it was due, with the connection's
set-up; guidellm's ITL is our TPOT; its end-to-end latency ends with the stream, ours with the last token. Each makes
text of its own, whose tokens are counted by the same tokenizer. guidellm runs one worker process instead of ten, which
would share two cores with the server.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from live_study.slowed import slowed_profile
from machine import describe_machine
from peer_model import write_peer_model

from colocate.bench.systems.colocate import Colocate
from colocate.bench.systems.server import running
from colocate.config.profile import load_profile

BINARY_VARIABLE = "PEER_GUIDELLM"
BOUND = 0.05
PROFILE = Path(__file__).parents[1] / "configs" / "profiles" / "emulated-h200-roofline.yaml"
SLOW = 5.0
_RUN_S = 900.0
_ENVIRON = {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
Figures = dict[str, float]

# Figure -> how it is written. What ends with _s is held against BOUND.
HEADINGS = {
    "requests": ("requests", 1.0, "{:.0f}"),
    "prompt_tokens": ("prompt tokens, median", 1.0, "{:.0f}"),
    "output_tokens": ("output tokens, median", 1.0, "{:.0f}"),
    "ttft_p50_s": ("TTFT p50", 1e3, "{:.1f} ms"),
    "itl_p50_s": ("mean gap of a request, p50", 1e3, "{:.2f} ms"),
    "e2e_p50_s": ("end to end p50", 1e3, "{:.0f} ms"),
    "output_tokens_per_s": ("output tokens/s", 1.0, "{:.1f}"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`rate` in requests per second."""

    rate: float = 2.0
    num_requests: int = 48
    prompt_tokens: int = 1024
    output_tokens: int = 32


# 1,024 tokens are 0.2 s of the emulated device, and a step 24 ms.
LOADS = {"emulated": Load(), "cpu": Load(rate=1.0, num_requests=30, prompt_tokens=128)}


def find_guidellm() -> str | None:
    found = shutil.which(os.environ.get(BINARY_VARIABLE) or "guidellm")
    return found and str(Path(found).absolute())  # not resolved: it belongs to its virtual environment


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
        "--seed", f"kind=static,value={seed}",
        "--output", f"kind=json,path={out}",
        "--disable-console",
    ]  # fmt: skip


def bench_command(url: str, model: str, tokenizer: Path, load: Load, out: Path, seed: int) -> list[str]:
    return [
        sys.executable, "-m", "colocate", "bench", url,
        "--model", model,
        "--prompts", "text",
        "--tokenizer", str(tokenizer),
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


def bench_figures(printed: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Figures:
    """Of what `colocate bench --json` printed; of the rows of `requests.jsonl` what is not printed: lengths, and the
    throughput from the first request to the end of the last."""
    done = [row for row in rows if row["outcome"] == "finished"]
    return {
        "requests": float(printed["num_finished"]),
        "ttft_p50_s": printed["ttft_s"]["p50"],
        "itl_p50_s": printed["tpot_s"]["p50"],
        "e2e_p50_s": printed["e2e_s"]["p50"],
        "prompt_tokens": statistics.median(row["prompt_tokens"] for row in done),
        "output_tokens": statistics.median(row["output_tokens"] for row in done),
        "output_tokens_per_s": sum(row["output_tokens"] for row in done)
        / (max(row["end_s"] for row in done) - min(row["scheduled_s"] for row in done)),
    }


def run_guidellm(binary: str, url: str, model: str, tokenizer: Path, load: Load, folder: Path, seed: int) -> Figures:
    out = folder / "guidellm.json"
    # It reads settings of where it is, and may log there.
    _run(guidellm_command(binary, url, model, tokenizer, load, out, seed), cwd=folder)
    return guidellm_figures(json.loads(out.read_text()))


def run_bench(url: str, model: str, tokenizer: Path, load: Load, folder: Path, seed: int) -> Figures:
    out = folder / "bench"
    shutil.rmtree(out, ignore_errors=True)
    printed = json.loads(_run(bench_command(url, model, tokenizer, load, out, seed)))
    rows = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    return bench_figures(printed, rows)


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    """What it prints. Raises RuntimeError where it fails, also for a run that was not valid."""
    environ = {**os.environ, **_ENVIRON}
    done = subprocess.run(command, capture_output=True, text=True, timeout=_RUN_S, check=False, cwd=cwd, env=environ)
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done.stdout


def compare(theirs: Sequence[Figures], ours: Sequence[Figures]) -> dict[str, tuple[float, float, float]]:
    """Figure -> guidellm's median over rounds, ours, and (ours - guidellm's) / guidellm's."""
    found = {}
    for key in HEADINGS:
        a, b = (statistics.median(each[key] for each in rounds) for rounds in (theirs, ours))
        found[key] = (a, b, (b - a) / a if a else 0.0)
    return found


def table(found: Mapping[str, tuple[float, float, float]]) -> str:
    """Markdown."""
    lines = ["| figure | guidellm | colocate bench | difference |", "|---|---:|---:|---:|"]
    for key, (a, b, difference) in found.items():
        name, scale, form = HEADINGS[key]
        lines.append(f"| {name} | {form.format(a * scale)} | {form.format(b * scale)} | {difference:+.1%} |")
    return "\n".join(lines)


def furthest(found: Mapping[str, tuple[float, float, float]]) -> float:
    """The largest difference of a latency or the throughput, without its sign."""
    return max(abs(difference) for key, (_, _, difference) in found.items() if key.endswith("_s"))


@contextlib.contextmanager
def server(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Its address, and the folder of its tokenizer."""
    if options.url:
        yield options.url, options.tokenizer.resolve()
        return
    model = write_peer_model(folder / "model", "tiny" if options.device == "emulated" else "30M")
    flags = (*device_flags(options.device, folder), "--dtype", "float32", "--kv-memory", "512MiB")
    flags += ("--served-model-name", "bench", "--log-level", "warning")
    with running(Colocate(str(model), flags), ("--mode", "chunked"), folder / "server.log") as started:
        yield started.url, model


def device_flags(device: str, folder: Path) -> tuple[str, ...]:
    """Of `colocate serve`. The emulated device's profile is written to `folder`."""
    if device == "cpu":
        return ("--units", "1")
    profile = slowed_profile(load_profile(PROFILE), SLOW)
    file = folder / "profile.json"
    file.write_bytes(msgspec.json.encode(profile))
    return ("--device", "emulated", "--units", str(profile.units), "--profile", str(file))


def study(options: argparse.Namespace, binary: str, load: Load, folder: Path) -> dict[str, list[Figures]]:
    """Figures of each round by tool. A run that fails, or is not valid, is said and has none."""
    rounds: dict[str, list[Figures]] = {"guidellm": [], "colocate bench": []}
    with server(options, folder) as (url, tokenizer):
        about = (url, options.served_model_name, tokenizer, load, folder)
        run: dict[str, Callable[[int], Figures]] = {
            "guidellm": lambda seed: run_guidellm(binary, *about, seed),
            "colocate bench": lambda seed: run_bench(*about, seed),
        }
        for number in range(options.rounds):
            for tool in list(run) if number % 2 == 0 else reversed(list(run)):
                try:
                    figures = run[tool](1000 + number)  # other prompts each time: none is cached
                except RuntimeError as error:
                    print(f"round {number + 1} {tool} is left out: {error}", flush=True)
                    continue
                rounds[tool].append(figures)
                print(f"round {number + 1} {tool}: {figures}", flush=True)
    return rounds


def main() -> int:
    """1 where a latency or the throughput differs by more than BOUND."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(LOADS), default="emulated")
    parser.add_argument("--url", help="of a server that runs already, with --tokenizer")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--served-model-name", default="bench")
    parser.add_argument("--rate", type=float, help="requests per second")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if bool(options.url) != bool(options.tokenizer):
        parser.error("--url and --tokenizer go together: guidellm counts tokens by that folder")
    binary = find_guidellm()
    if binary is None:
        print(f"guidellm is not installed: name its binary with {BINARY_VARIABLE}, see --help")
        return 0
    usual = LOADS[options.device]
    load = replace(usual, rate=options.rate or usual.rate, num_requests=options.requests or usual.num_requests)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="colocate-outside-") as name:
        rounds = study(options, binary, load, Path(name))
    if not all(rounds.values()):
        print("one of the two has no round to compare")
        return 1
    found = compare(rounds["guidellm"], rounds["colocate bench"])
    print("\n" + table(found))
    if options.out:
        version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout.strip()
        record = {
            "command": f"python benchmarks/outside_tool.py --device {options.device} --rate {load.rate:g} "
            f"--requests {load.num_requests} --rounds {options.rounds}",
            "load": asdict(load),
            "machine": machine,
            "version": version,
            "medians": found,
            "rounds": rounds,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nLargest difference of a latency or the throughput: {furthest(found):.1%}; bound {BOUND:.0%}.")
    return int(furthest(found) > BOUND)


if __name__ == "__main__":
    sys.exit(main())
