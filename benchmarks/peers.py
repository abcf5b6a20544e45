"""Ours beside the servers that people run: vLLM, llama.cpp's server and `transformers serve`, on the same weights.

    python benchmarks/peers.py [--model 30m|125m] [--rounds 2] [--arms NAME...] [--out benchmarks/results/peers.json]

Four streams decode without pause while a prompt of 2,048 tokens arrives every few seconds, sent by the client of
`colocate bench`: four requests in flight (16 tokens in, 512 out), and an open loop of long prompts. In each round every
arm is started, measured and stopped once, in an order that turns round with the rounds, so that drift of the machine
hits all alike. A peer is what an environment variable names (benchmarks/systems/*.py); what is not installed is left
out and said. Each has its defaults and chunks of 256 tokens; random float32 weights, 1 GiB of float32 KV.

Figures are medians over the rounds. TTFT counts from when a long prompt was due. ITL is apart for gaps that touch the
time from sending a long prompt to its first token ("prefill") and all others ("quiet"). Memory is the proportional set
size of the server's processes after the load; start is from its command until it is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from machine import describe_machine
from peer_model import write_peer_model
from systems.llama_cpp import LlamaCpp, export_gguf
from systems.peer import PeerJob, PeerServer, PeerSystem
from systems.transformers_serve import TransformersServe
from systems.vllm import Vllm

from colocate.bench.loop import LoadRun
from colocate.bench.metrics.latency import itl_s, ttft_s
from colocate.bench.plan import BenchPlan
from colocate.bench.prompts import prepare_prompts
from colocate.bench.records import RequestRow
from colocate.bench.systems.colocate import Colocate
from colocate.bench.systems.server import Server, ServerFailed, running
from colocate.bench.systems.system import System
from colocate.bench.target import find_target
from colocate.errors import ConfigError
from colocate.telemetry.quantiles import quantile
from colocate.workload.rows import Workload, WorkloadRow

NUM_STREAMS = 4
STREAM_TOKENS = (16, 512)
PROMPT_TOKENS = 2048
CHUNK = 256
MAX_NUM_SEQS = 8
_MOST_STREAMS = 600  # more than any server gets through in a window
_TOGETHER = 1.05  # tokens per event
_LATE_S = 10.0  # for the last long prompt, after the window


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
    """`peer` None: this package."""

    name: str
    flags: tuple[str, ...] = ()
    peer: PeerSystem | None = None
    is_chunked: bool = False  # in chunks of CHUNK


@dataclass(frozen=True, slots=True)
class Ground:
    """What arms are started with."""

    setting: Setting
    model: Path
    gguf: Path

    def system(self, arm: Arm) -> System:
        if arm.peer is None:
            # Two cores whatever the machine has: the arms name the plan p1d1.
            flags = ("--units", "2", "--dtype", "float32", "--kv-memory", "1GiB", "--max-num-seqs", str(MAX_NUM_SEQS))
            return Colocate(str(self.model), (*flags, "--served-model-name", "bench", "--log-level", "warning"))
        job = PeerJob(
            model_dir=self.gguf if isinstance(arm.peer, LlamaCpp) else self.model,
            max_num_seqs=MAX_NUM_SEQS,
            chunk_tokens=CHUNK if arm.is_chunked else None,
            max_model_len=8192,
            dtype="float32",
            dummy_weights=False,
            kv_tokens=self.setting.kv_tokens,
            kv_gib=1,
        )
        return PeerServer(arm.peer, job)


ARMS = (
    Arm("colocate static p1d1", ("--plan", "static:p1d1")),
    Arm("colocate elastic", ("--plan", "elastic")),
    Arm("colocate chunked 256", ("--mode", "chunked", "--chunk-size", str(CHUNK))),
    Arm("vllm", peer=Vllm(cpu=True)),
    Arm("vllm 256, all cores", peer=Vllm(cpu=True, all_cores=True), is_chunked=True),
    Arm("llama.cpp", peer=LlamaCpp()),
    Arm("llama.cpp 256", peer=LlamaCpp(), is_chunked=True),
    Arm("transformers", peer=TransformersServe()),
    Arm("transformers 256", peer=TransformersServe(), is_chunked=True),
)
BASE_ARM = "colocate elastic"  # of the ratios

# Figure -> its heading and how it is written.
COLUMNS = {
    "ttft_p50_s": ("TTFT p50, 2,048 tokens", 1e3, "{:,.0f} ms"),
    "itl_quiet_p50_s": ("ITL p50 quiet", 1e3, "{:.1f} ms"),
    "itl_quiet_p99_s": ("ITL p99 quiet", 1e3, "{:.1f} ms"),
    "itl_prefill_p50_s": ("ITL p50 in prefill", 1e3, "{:.1f} ms"),
    "itl_prefill_p99_s": ("ITL p99 in prefill", 1e3, "{:.1f} ms"),
    "output_tokens_per_s": ("output tokens/s", 1.0, "{:.0f}"),
    "memory_bytes": ("memory", 1 / 2**20, "{:,.0f} MiB"),
    "start_s": ("start", 1.0, "{:.1f} s"),
}
RATIOS = ("ttft_p50_s", "itl_prefill_p99_s", "output_tokens_per_s")
Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows of both loads on one clock, and the window of it that counts."""

    streams: Sequence[RequestRow]
    prompts: Sequence[RequestRow]
    start_s: float
    end_s: float


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


def figures(seen: Seen) -> Figures:
    """Of one arm in one round; None where nothing was seen."""
    long = [row for row in seen.prompts if row.scheduled_s >= seen.start_s]
    first_s = sorted(value for row in long if (value := ttft_s(row)) is not None)
    quiet, busy = split_gaps(seen)
    tokens = sum(seen.start_s <= at_s < seen.end_s for row in seen.streams for at_s in row.token_s)
    rows = [*seen.streams, *long]
    return {
        "ttft_p50_s": _quantile(first_s, 0.5),
        "ttft_max_s": first_s[-1] if first_s else None,
        "itl_quiet_p50_s": _quantile(quiet, 0.5),
        "itl_quiet_p99_s": _quantile(quiet, 0.99),
        "itl_prefill_p50_s": _quantile(busy, 0.5),
        "itl_prefill_p99_s": _quantile(busy, 0.99),
        "output_tokens_per_s": tokens / (seen.end_s - seen.start_s),
        "num_prompts": len(long),
        "num_prompts_unanswered": len(long) - len(first_s),
        "num_quiet_gaps": len(quiet),
        "num_prefill_gaps": len(busy),
        "num_failed": sum(row.outcome in ("failed", "rejected", "timed_out") for row in rows),
        "tokens_per_event": _tokens_per_event(seen),
    }


def split_gaps(seen: Seen) -> tuple[list[float], list[float]]:
    """Gaps of the streams that end in the window: those that touch no long prompt's prefill, and the others. A prompt
    without an answer counts as being prefilled to the end. Sorted."""
    spans = [
        (row.sent_s, row.token_s[0] if row.token_s else float("inf")) for row in seen.prompts if row.sent_s is not None
    ]
    quiet: list[float] = []
    busy: list[float] = []
    for row in seen.streams:
        for gap_s, later_s in zip(itl_s(row), row.token_s[1:], strict=True):
            if seen.start_s <= later_s < seen.end_s:
                touches = any(sent_s < later_s and later_s - gap_s < first_s for sent_s, first_s in spans)
                (busy if touches else quiet).append(gap_s)
    return sorted(quiet), sorted(busy)


def _tokens_per_event(seen: Seen) -> float | None:
    """Of the streams: tokens that come together have gaps of zero, so an ITL means little where this is far above 1."""
    tokens = [row.token_s for row in seen.streams if row.token_s]
    return sum(map(len, tokens)) / sum(len(set(token_s)) for token_s in tokens) if tokens else None


def _quantile(values: Sequence[float], share: float) -> float | None:
    return quantile(values, share) if values else None


def run_arm(arm: Arm, ground: Ground, log: Path, seed: int) -> Figures:
    """Start, measure, stop. Raises ServerFailed, ConfigError."""
    system = ground.system(arm)
    with running(system, arm.flags, log) as server:
        seen = asyncio.run(measure(server, system, ground.setting, ground.model, seed))
        memory = server.resident_bytes()
        start_s = server.start_s
    return figures(seen) | {"memory_bytes": memory, "start_s": start_s}


def medians(rounds: Sequence[Figures]) -> Figures:
    """Over the rounds that have the figure."""
    found: Figures = {}
    for key in {key: None for each in rounds for key in each}:
        values = [value for each in rounds if (value := each.get(key)) is not None]
        found[key] = statistics.median(values) if values else None
    return found


def table(results: Mapping[str, Figures]) -> str:
    """Markdown; behind TTFT, ITL p99 in prefill and throughput their ratios to ours."""
    base = results.get(BASE_ARM, {})
    headings = [heading for heading, _, _ in COLUMNS.values()]
    lines = ["| server | " + " | ".join(headings) + " |", "|---" + "|---:" * len(headings) + "|"]
    for name, found in results.items():
        cells = [_cell(key, found, base if name != BASE_ARM else {}) for key in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(key: str, found: Figures, base: Figures) -> str:
    value, of = found.get(key), base.get(key)
    if value is None:
        return "-"
    _, scale, form = COLUMNS[key]
    ratio = f" ({value / of:.2f}x)" if key in RATIOS and of else ""
    return form.format(value * scale) + ratio


def chosen_arms(names: Sequence[str]) -> tuple[list[Arm], dict[str, str], list[str]]:
    """Arms whose name begins so and whose system is here, versions by system, and what was left out and why."""
    versions: dict[str, str] = {}
    left_out: list[str] = []
    arms = []
    for arm in ARMS:
        if not arm.name.startswith(tuple(names) or ("",)):
            continue
        if arm.peer is not None:
            found = versions.get(arm.peer.package) or arm.peer.version()
            if found is None:
                left_out.append(f"{arm.name}: {arm.peer.package} is not installed, see benchmarks/systems/")
                continue
            versions[arm.peer.package] = found
        arms.append(arm)
    return arms, versions, left_out


def study(arms: Sequence[Arm], ground: Ground, num_rounds: int, logs: Path) -> dict[str, list[Figures]]:
    """Figures of each round by arm. An arm that fails in a round has none of it, and says so."""
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
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SETTINGS), default="30m")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--window", type=float, help="seconds that are measured per arm and round")
    parser.add_argument("--arms", nargs="*", default=[], metavar="NAME", help="only arms whose name begins so")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    setting = SETTINGS[options.model]
    if options.window:
        setting = replace(setting, window_s=options.window)
    arms, versions, left_out = chosen_arms(options.arms)
    for line in left_out:
        print(f"left out: {line}")
    with tempfile.TemporaryDirectory(prefix="colocate-peers-") as folder:
        model = write_peer_model(Path(folder) / "model", setting.shape)
        gguf = Path(folder) / "model.gguf"
        if any(isinstance(arm.peer, LlamaCpp) for arm in arms):
            export_gguf(model, gguf)
        ground = Ground(setting, model, gguf)
        machine = describe_machine()
        rounds = study(arms, ground, options.rounds, Path(folder))
    results = {name: medians(found) for name, found in rounds.items() if found}
    print("\n" + table(results))
    for name, found in results.items():
        if (together := found.get("tokens_per_event")) and together > _TOGETHER:
            print(f"{name}: {together:.2f} tokens came together, so its ITL is not that of single tokens")
    if options.out:
        words = [f"--model {options.model}", f"--rounds {options.rounds}"]
        words += [f"--window {options.window:g}"] if options.window else []
        words += [f"--arms {' '.join(repr(name) for name in options.arms)}"] if options.arms else []
        record = {
            "command": " ".join(["python benchmarks/peers.py", *words]),
            "machine": machine,
            "versions": versions,
            "setting": {name: getattr(setting, name) for name in Setting.__slots__},
            "left_out": left_out,
            "medians": results,
            "rounds": rounds,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
