"""What prefix reuse gives and what it costs.

    python benchmarks/prefix_reuse.py [--size demo|30M] [--document 1024] [--repetitions 7] [--out FILE]

Gives: the time to the first token of a second turn and of one more question about a document, against a server with
--no-prefix-caching. Both servers run side by side and are asked in turns, so other load on the machine hits both; the
figure is the ratio of medians. A prompt that nobody has sent before shows what a miss costs end to end.
Costs: microseconds of the engine, without a process around it, for one prompt of 8192 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from core_hot_path import summary
from machine import describe_machine
from random_model import SHAPES, write_random_model
from server import Server, running_server
from stream_client import StreamRecord, stream

from colocate.core.engine import Engine
from colocate.core.settings import EngineSettings
from colocate.messages.client import Submit
from colocate.messages.control import WorkerHello
from colocate.messages.prefill import PrefillDone, PrefillRowDone
from colocate.messages.sampling import SamplingParams
from colocate.types import Role

QUESTION_TOKENS = 32
ANSWER_TOKENS = 48
ENGINE_PROMPT_TOKENS = 8192
VOCABULARY = range(300, 2000)
CASES = ("same document, next question", "second turn", "new prompt")


def draw(num_tokens: int, rng: random.Random) -> list[int]:
    return rng.choices(VOCABULARY, k=num_tokens)


# -- time to the first token -------------------------------------------------------------------------------------------


async def ask(server: Server, prompt: list[int], max_tokens: int = 2) -> StreamRecord:
    record = await stream(server.port, "model", prompt, max_tokens)
    if record.error is not None:
        raise RuntimeError(record.error)
    return record


class Case:
    """One kind of request. `prompt` may talk to the server first; what it returns is measured."""

    def __init__(self, name: str, document_tokens: int) -> None:
        self.name = name
        self.document = draw(document_tokens, random.Random("document"))

    async def prompt(self, server: Server, rng: random.Random) -> list[int]:
        question = draw(QUESTION_TOKENS, rng)
        if self.name == "same document, next question":
            return self.document + question
        other = draw(len(self.document), rng)
        if self.name == "second turn":
            answer = (await ask(server, other, ANSWER_TOKENS)).token_ids
            return other + answer + question
        return other + question


async def measure_case(case: Case, servers: dict[str, Server], repetitions: int) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in servers}
    for server in servers.values():
        await ask(server, await case.prompt(server, random.Random("warm-up")))
    for repetition in range(repetitions):
        order = list(servers) if repetition % 2 else list(reversed(servers))
        for name in order:
            prompt = await case.prompt(servers[name], random.Random(f"{case.name} {repetition}"))
            ttft_s = (await ask(servers[name], prompt)).ttft_s
            assert ttft_s is not None
            samples[name].append(ttft_s * 1e3)
    medians = {f"{name}_ms": round(statistics.median(values), 3) for name, values in samples.items()}
    return {**medians, "ratio": round(medians["cached_ms"] / medians["uncached_ms"], 4)}


@contextlib.contextmanager
def both_servers(model: str, max_tokens: int) -> Iterator[dict[str, Server]]:
    flags = (model, "--device", "cpu", "--served-model-name", "model", "--max-model-len", str(max_tokens))
    with running_server(*flags) as cached, running_server(*flags, "--no-prefix-caching") as uncached:
        yield {"cached": cached, "uncached": uncached}


def measure_ttft(size: str, document_tokens: int, repetitions: int) -> dict[str, dict[str, float]]:
    max_tokens = document_tokens + ANSWER_TOKENS + QUESTION_TOKENS + 16
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        model = "demo" if size == "demo" else str(write_random_model(Path(directory), SHAPES[size]))
        with both_servers(model, max_tokens) as servers:
            for name in CASES:
                results[name] = asyncio.run(measure_case(Case(name, document_tokens), servers, repetitions))
    return results


# -- cost in the engine ------------------------------------------------------------------------------------------------


class EngineBench:
    """An engine that prefills one prompt at a time and wants one token of each."""

    def __init__(self, num_blocks: int, prefix_caching: bool) -> None:
        settings = EngineSettings(
            num_blocks=num_blocks,
            block_size=16,
            max_num_seqs=64,
            max_num_batched_tokens=ENGINE_PROMPT_TOKENS,
            max_queue=64,
            total_units=132,
            unit_granularity=8,
            prefix_caching=prefix_caching,
        )
        self.engine = Engine(settings)
        self.now_ns = 1
        self.num_requests = 0
        for role in (Role.PREFILL, Role.DECODE):
            self.handle_us(WorkerHello(role, 1, 1, 1))

    def handle_us(self, event: object) -> float:
        self.now_ns += 1000
        started = time.thread_time_ns()
        self.engine.handle(event, self.now_ns)  # type: ignore[arg-type]
        return (time.thread_time_ns() - started) / 1e3

    def run_us(self, prompt: list[int]) -> tuple[float, float]:
        """Microseconds of its submission, with admission and the batch that is sent, and of its end."""
        self.num_requests += 1
        submit_us = self.handle_us(Submit(self.num_requests, prompt, SamplingParams(max_tokens=1), self.now_ns))
        batch = self.engine.prefill.batches[0]
        rows = [PrefillRowDone(chunk.request.request_id, chunk.incarnation, 7) for chunk in batch.chunks]
        return submit_us, self.handle_us(PrefillDone(batch.batch_id, rows, 0, 0, 0))


def measure_engine(repetitions: int) -> dict[str, dict[str, dict[str, float]]]:
    """`miss` inserts 512 blocks, `miss, evicting` also forgets as many, `hit` finds 511."""
    per_prompt = ENGINE_PROMPT_TOKENS // 16
    ample = per_prompt * (repetitions + 8)
    benches = {
        "off": EngineBench(ample, prefix_caching=False),
        "miss": EngineBench(ample, prefix_caching=True),
        "miss, evicting": EngineBench(2 * per_prompt, prefix_caching=True),
        "hit": EngineBench(ample, prefix_caching=True),
    }
    rng = random.Random(1)
    known = draw(ENGINE_PROMPT_TOKENS, rng)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in benches}
    for name, bench in benches.items():
        for _ in range(3):
            bench.run_us(list(known) if name == "hit" else draw(ENGINE_PROMPT_TOKENS, rng))
    for _ in range(repetitions):
        for name, bench in benches.items():
            samples[name].append(bench.run_us(list(known) if name == "hit" else draw(ENGINE_PROMPT_TOKENS, rng)))
    return {
        name: {
            "submit": summary([submit_us for submit_us, _ in values]),
            "end": summary([end_us for _, end_us in values]),
        }
        for name, values in samples.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", choices=["demo", *SHAPES])
    parser.add_argument("--document", type=int, default=1024, help="tokens of a document, and of a first turn")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sizes = options.size or ["demo", "30M"]
    results = {
        "machine": describe_machine(),
        "document_tokens": options.document,
        "question_tokens": QUESTION_TOKENS,
        "answer_tokens": ANSWER_TOKENS,
        "repetitions": options.repetitions,
        "engine_prompt_tokens": ENGINE_PROMPT_TOKENS,
        "engine": measure_engine(100),
        "ttft": {size: measure_ttft(size, options.document, options.repetitions) for size in sizes},
    }
    print(f"{'time to first token':42} {'cached ms':>10} {'uncached ms':>12} {'ratio':>7}")
    for size, cases in results["ttft"].items():
        for name, row in cases.items():
            print(f"{size + ': ' + name:42} {row['cached_ms']:10.1f} {row['uncached_ms']:12.1f} {row['ratio']:7.3f}")
    print(f"\n{'engine, prompt of 8192 tokens':42} {'submit us':>10} {'p99':>8} {'end us':>8} {'p99':>8}")
    for name, row in results["engine"].items():
        figures = [row[event][measure] for event in ("submit", "end") for measure in ("median_us", "p99_us")]
        print(f"{name:42} {figures[0]:10.0f} {figures[1]:8.0f} {figures[2]:8.0f} {figures[3]:8.0f}")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
