"""What a forward of mode `chunked` costs beside its parts: is the baseline a strong one?

    python benchmarks/hybrid_forward.py [--shape 30M] [--rounds 7] [--out benchmarks/results/hybrid_forward.json]

For each chunk and standing batch, on one thread and in CPU time of that thread, so that other work on the machine does
not count: the chunk alone, the step alone, both in one forward, and a pure chunk of as many tokens as both have. Arms
take turns, the median of the rounds counts. Rows with a short context are like tokens of the chunk; with a long one the
forward has their attention to do as well, which no pure chunk has, so it stands beside the parts one after the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine
from random_model import SHAPES, write_random_model

from colocate.messages.prefill import PrefillBatch, PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.messages.spec import RuntimeFacts
from colocate.model.config import load_model_config
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.loader import HostMemory, load_weights
from colocate.worker.executor import StandingRow
from colocate.worker.hybrid_executor import ModelHybridExecutor
from colocate.worker.mapped_model import MappedModel

BLOCK_SIZE = 16
CHUNKS = (64, 128, 256, 512)
ROWS = (1, 16)
CACHED = 512  # tokens of the prompt before the chunk
CONTEXTS = (32, 1000)  # of every standing row
_GREEDY = SamplingParams(max_tokens=1 << 20, temperature=0.0)


def build(shape: str) -> tuple[ModelHybridExecutor, int]:
    """The executor on random weights and a filled pool, and the number of its blocks."""
    num_blocks = (CACHED + max(CHUNKS) + max(ROWS) + max(ROWS) * (max(CONTEXTS) + 64)) // BLOCK_SIZE + 2 * max(ROWS)
    with tempfile.TemporaryDirectory(prefix="colocate-bench-") as directory:
        model_dir = write_random_model(Path(directory) / shape, SHAPES[shape])
        config = load_model_config(model_dir)
        layout = WeightLayout.of(config, "float32")
        weights = bytearray(layout.nbytes)
        load_weights(model_dir, config, layout, HostMemory(memoryview(weights)), lambda done, total: None)
    facts = RuntimeFacts(
        device_kind="cpu", device_name="cpu", total_units=1, unit_granularity=1, unit_ids=(0,), model_name=shape,
        model_dir="", dtype="float32", vocab_size=config.vocab_size, max_model_len=4096, num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
    )  # fmt: skip
    values = np.random.default_rng(0).standard_normal(KVLayout(config, "float32", num_blocks, BLOCK_SIZE).nbytes // 4)
    kv = (values * 0.1).astype(np.float32)
    read_only = memoryview(weights).toreadonly()
    return ModelHybridExecutor(MappedModel(config, facts, read_only, memoryview(kv).cast("B"), False)), num_blocks


def chunk_of(num_tokens: int) -> PrefillBatch:
    blocks = list(range((CACHED + num_tokens) // BLOCK_SIZE + 1))
    token_ids = [300 + place % 1000 for place in range(num_tokens)]
    return PrefillBatch(0, [PrefillRow(0, 1, token_ids, CACHED, blocks, SampleState(_GREEDY, 0))])


def rows_of(num_rows: int, context: int, num_blocks: int) -> list[StandingRow]:
    """At the end of the pool, away from the chunk's blocks."""
    count = context // BLOCK_SIZE + 1
    state = SampleState(_GREEDY, 1)
    first = num_blocks - num_rows * count
    return [
        StandingRow(index + 1, 1, 300 + index, context, list(range(first + index * count, first + (index + 1) * count)),
                    state, 1)
        for index in range(num_rows)
    ]  # fmt: skip


def cpu_ms(action: Callable[[], object]) -> float:
    started = time.thread_time()
    action()
    return (time.thread_time() - started) * 1e3


def measure(executor: ModelHybridExecutor, chunk: int, rows: list[StandingRow], rounds: int) -> dict[str, float]:
    num_rows, version = len(rows), id(rows)
    batch, same_size = chunk_of(chunk), chunk_of(chunk + num_rows)
    arms: dict[str, Callable[[], object]] = {
        "chunk_ms": lambda: executor.step(batch, [], 1),
        "step_ms": lambda: executor.step(None, rows, version),
        "both_ms": lambda: executor.step(batch, rows, version),
        "same_size_chunk_ms": lambda: executor.step(same_size, [], 1),
    }
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, action in arms.items():
            took = cpu_ms(action)
            if turn:  # the first one warms up
                samples[name].append(took)
    found = {name: round(statistics.median(values), 2) for name, values in samples.items()}
    found["to_same_size_chunk"] = round(found["both_ms"] / found["same_size_chunk_ms"], 3)
    found["to_parts_in_turn"] = round(found["both_ms"] / (found["chunk_ms"] + found["step_ms"]), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="30M")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    executor, num_blocks = build(options.shape)
    executor.units_changed(1)
    results = {}
    for chunk, num_rows, context in itertools.product(CHUNKS, ROWS, CONTEXTS):
        rows = rows_of(num_rows, context, num_blocks)
        name = f"{chunk} tokens + {num_rows} rows of {context}"
        found = results[name] = measure(executor, chunk, rows, options.rounds)
        print(f"{name:32}" + "  ".join(f"{key} {value}" for key, value in found.items()), flush=True)
    if options.out:
        command = f"python benchmarks/hybrid_forward.py --shape {options.shape} --rounds {options.rounds}"
        record = {"command": command, "machine": describe_machine(), "forwards": results}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
