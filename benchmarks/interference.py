"""What prefill does to decode on the same cores: the effect that the partition is for.

    python benchmarks/interference.py pressure [--shape 30M]   prompts without pause beside 4 decoding streams
    python benchmarks/interference.py bursts   [--shape 125M]  a 2,048-token prompt every 6 s beside 4 streams

Each arm is its own `colocate serve` on the same random weights, spoken to over HTTP from this process; the arms run one
after another, the whole list `--repeats` times, so that drift of a shared machine hits all alike. Ratios are to the
phases alone, measured in the same run. `--arms chunked shared` runs the arms whose names begin so, and no others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine
from random_model import SHAPES, write_random_model
from server import Server, running_server
from stream_client import StreamRecord, percentile, stream

PROMPT_TOKENS = 2048
NUM_STREAMS = 4
# Two cores whatever the machine has: the arms name the plan p1d1.
_UNITS = ("--units", "2")
SERVER_FLAGS = (*_UNITS, "--kv-memory", "1GiB", "--max-num-seqs", "16", "--dtype", "float32", "--log-level", "warning")


@dataclass(frozen=True)
class Arm:
    name: str
    flags: tuple[str, ...]
    decodes: bool = True
    prefills: bool = True


# The industry's default, with both cores and every chunk size that a careful operator would try.
CHUNKED_ARMS = tuple(
    Arm(f"chunked {size}", ("--mode", "chunked", "--chunk-size", str(size))) for size in (64, 128, 256, 512)
)
PRESSURE_ARMS = (
    Arm("decode alone", ("--plan", "elastic"), prefills=False),
    Arm("prefill alone", ("--plan", "elastic"), decodes=False),
    # Alone, but on their share of the split: what is missing to these is contention, the rest is the share.
    Arm("decode on share", ("--plan", "static:p1d1"), prefills=False),
    Arm("prefill on share", ("--plan", "static:p1d1"), decodes=False),
    Arm("static split", ("--plan", "static:p1d1")),
    Arm("elastic", ("--plan", "elastic")),
    Arm("shared", ("--mode", "shared")),
    *CHUNKED_ARMS,
)
BURST_ARMS = (
    Arm("static split", ("--plan", "static:p1d1")),
    Arm("elastic", ("--plan", "elastic")),
    Arm("shared", ("--mode", "shared")),
    *CHUNKED_ARMS,
)


def prompt_tokens(seed: int, count: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(300, 2000) for _ in range(count)]


class Load:
    """4 endless streams and prompts, on one server, inside one window."""

    def __init__(self, server: Server, model: str) -> None:
        self.port = server.port
        self.model = model
        self.streams: list[StreamRecord] = []
        self.prompts: list[StreamRecord] = []
        self._next_seed = 100

    async def decode(self) -> None:
        """One stream after another, each as long as fits, so that 4 are always decoding."""
        while True:
            record = StreamRecord(0.0)
            self.streams.append(record)
            self._next_seed += 1
            await stream(self.port, self.model, prompt_tokens(self._next_seed, 16), 1500, record)
            if record.error:
                raise RuntimeError(record.error)

    async def prefill(self, pause_s: float) -> None:
        """Prompts of 2,048 tokens that want one token: one every `pause_s`, or back to back where it is 0."""
        while True:
            started = time.perf_counter()
            record = StreamRecord(0.0)
            self.prompts.append(record)
            self._next_seed += 1
            await stream(self.port, self.model, prompt_tokens(self._next_seed, PROMPT_TOKENS), 1, record)
            if record.error:
                raise RuntimeError(record.error)
            if pause_s:
                await asyncio.sleep(max(0.0, started + pause_s - time.perf_counter()))


async def run_arm(arm: Arm, server: Server, model: str, window_s: float, pause_s: float) -> dict:
    load = Load(server, model)
    tasks = [asyncio.create_task(load.decode()) for _ in range(NUM_STREAMS if arm.decodes else 0)]
    await asyncio.sleep(2.0)
    # Two prompt loops without pause keep one waiting while one runs: the prefill worker never idles.
    num_loops = (1 if pause_s else 2) if arm.prefills else 0
    tasks += [asyncio.create_task(load.prefill(pause_s)) for _ in range(num_loops)]
    await asyncio.sleep(1.0)
    start_s = time.perf_counter()
    done, _ = await asyncio.wait(tasks, timeout=window_s, return_when=asyncio.FIRST_EXCEPTION)
    end_s = time.perf_counter()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return summarize(load, start_s, end_s, bursts=bool(pause_s)) | {"state": residency(server)}


def residency(server: Server) -> dict:
    state = server.state()
    return {"residency": state["residency"], "switches": state["switches"]["count"]}


def summarize(load: Load, start_s: float, end_s: float, *, bursts: bool) -> dict:
    """Rates over the window; ITL of all gaps, and apart for gaps while a prompt was being prefilled or not."""
    seconds = end_s - start_s
    gaps = [gap for record in load.streams for gap in record.gaps_s(start_s, end_s)]
    prompts = [record for record in load.prompts if record.token_s and start_s <= record.token_s[0] <= end_s]
    result: dict = {
        "decode_tokens_per_s": sum(start_s <= at <= end_s for record in load.streams for at in record.token_s)
        / seconds,
        "prefill_tokens_per_s": len(prompts) * PROMPT_TOKENS / seconds,
        "num_gaps": len(gaps),
        "num_prompts": len(prompts),
    }
    if gaps:
        result |= {"itl_p50_ms": percentile(gaps, 50) * 1e3, "itl_p99_ms": percentile(gaps, 99) * 1e3}
    if prompts:
        result["ttft_p50_s"] = statistics.median(record.ttft_s for record in prompts if record.ttft_s is not None)
    if bursts and gaps:
        busy, quiet = split_gaps(load, prompts, start_s, end_s)
        for name, values in (("busy", busy), ("quiet", quiet)):
            if values:
                result[f"itl_{name}_p50_ms"] = percentile(values, 50) * 1e3
                result[f"itl_{name}_p99_ms"] = percentile(values, 99) * 1e3
    return result


def split_gaps(
    load: Load, prompts: list[StreamRecord], start_s: float, end_s: float
) -> tuple[list[float], list[float]]:
    """Gaps that overlap the time between sending a long prompt and its first token, and all others."""
    busy: list[float] = []
    quiet: list[float] = []
    for record in load.streams:
        for earlier, later in zip(record.token_s, record.token_s[1:], strict=False):
            if not start_s <= later <= end_s:
                continue
            hit = any(prompt.sent_s < later and earlier < prompt.token_s[0] for prompt in prompts)
            (busy if hit else quiet).append(later - earlier)
    return busy, quiet


def combine(samples: list[dict]) -> dict:
    """Median over repeats, with the range, of every figure."""
    figures = {key for sample in samples for key, value in sample.items() if isinstance(value, int | float)}
    combined: dict = {}
    for key in sorted(figures):
        values = [sample[key] for sample in samples if key in sample]
        combined[key] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    combined["state"] = samples[-1]["state"]
    return combined


def print_table(results: dict[str, dict], keys: tuple[str, ...]) -> None:
    print(f"{'arm':16}" + "".join(f"{key:>22}" for key in keys))
    for name, figures in results.items():
        cells = (f"{figures[key]['median']:.3g}" if key in figures else "-" for key in keys)
        print(f"{name:16}" + "".join(f"{cell:>22}" for cell in cells))


def print_ratios(results: dict[str, dict]) -> None:
    """To the phases alone, as the prototype's were: 0.74 of decode, 0.70 of prefill, 1.42 of decode's p99. A phase that
    scales perfectly over two cores cannot keep more than 0.50 on one, so the ratios to the phases alone on their share
    stand beside them."""
    print("\nratios to the phases alone on both cores [and alone on their share]")
    for name in ("static split", "elastic", "shared", *(arm.name for arm in CHUNKED_ARMS)):
        if name not in results:
            continue
        cells = [
            f"{label} {_ratio(results, name, f'{phase} alone', key):.2f} "
            f"[{_ratio(results, name, f'{phase} on share', key):.2f}]"
            for label, phase, key in (
                ("decode", "decode", "decode_tokens_per_s"),
                ("prefill", "prefill", "prefill_tokens_per_s"),
                ("ITL p99", "decode", "itl_p99_ms"),
            )
        ]
        print(f"{name:16} " + "   ".join(cells))
    print("prototype split: decode 0.74   prefill 0.70   ITL p99 1.42; 171 and 1,016 tokens/s, p99 34 ms")


def _ratio(results: dict[str, dict], arm: str, base: str, key: str) -> float:
    return results[arm][key]["median"] / results[base][key]["median"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["pressure", "bursts"])
    parser.add_argument("--shape", choices=sorted(SHAPES))
    parser.add_argument("--window", type=float, default=20.0, help="seconds measured per arm and repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=[""], metavar="NAME", help="only arms whose name begins so")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    is_pressure = options.study == "pressure"
    shape = options.shape or ("30M" if is_pressure else "125M")
    arms, pause_s = (PRESSURE_ARMS, 0.0) if is_pressure else (BURST_ARMS, 6.0)
    arms = tuple(arm for arm in arms if arm.name.startswith(tuple(options.arms)))
    samples: dict[str, list[dict]] = {arm.name: [] for arm in arms}
    with tempfile.TemporaryDirectory(prefix="colocate-bench-") as directory:
        model = write_random_model(Path(directory) / shape, SHAPES[shape])
        for repeat in range(options.repeats):
            for arm in arms:
                flags = (*SERVER_FLAGS, *arm.flags, "--served-model-name", shape)
                with running_server(str(model), *flags) as server:
                    sample = asyncio.run(run_arm(arm, server, shape, options.window, pause_s))
                samples[arm.name].append(sample)
                shown = {key: round(value, 3) for key, value in sample.items() if isinstance(value, int | float)}
                print(f"repeat {repeat + 1} {arm.name}: {shown}", flush=True)
    results = {name: combine(values) for name, values in samples.items()}
    print()
    if is_pressure:
        keys = ("itl_p50_ms", "itl_p99_ms", "decode_tokens_per_s", "prefill_tokens_per_s", "ttft_p50_s")
    else:
        keys = ("itl_quiet_p50_ms", "itl_busy_p50_ms", "itl_busy_p99_ms", "ttft_p50_s", "decode_tokens_per_s")
    print_table(results, keys)
    if is_pressure and options.arms == [""]:
        print_ratios(results)
    if options.out:
        command = f"python benchmarks/interference.py {options.study} --shape {shape} --repeats {options.repeats}"
        if options.arms != [""]:
            command += f" --arms {' '.join(options.arms)}"
        record = {"command": command, "machine": describe_machine(), "window_s": options.window, "arms": results}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
