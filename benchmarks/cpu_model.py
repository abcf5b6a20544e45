"""What the model's arithmetic costs on the CPU, beside a minimal torch loop and transformers, in one run.

Decode: `ModelDecodeExecutor` (paged KV, sampling included) against a hand-written torch loop over a contiguous KV
cache and against `transformers` generate, per batch size and context length. Prefill: `ModelPrefillExecutor` against a
forward of transformers. The same random weights (Llama shape "125M" of random_model.py), the same threads; the
contenders take turns and each figure is the median over its turns. The floor of a step is the larger of (bytes of
weights and KV) / (measured read bandwidth) and FLOPs / (measured rate of large matrix products).

OpenMP's wait policy is the caller's: its default, spinning, suits the peers on a quiet machine and ruins them on a busy
one; `colocate serve` sets OMP_WAIT_POLICY=passive.

    python benchmarks/cpu_model.py [--quick] [--threads N] [--out benchmarks/results/cpu_model.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from random_model import SHAPES
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from colocate.messages.prefill import PrefillBatch, PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.messages.spec import RuntimeFacts
from colocate.model.config import ModelConfig, load_model_config
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.llama import LayerWeights, all_layer_weights, bytes_tensor, map_weights
from colocate.model.native import load_kernels
from colocate.worker.executor import StandingRow
from colocate.worker.mapped_model import MappedModel
from colocate.worker.model_executor import ModelDecodeExecutor, ModelPrefillExecutor

BLOCK_SIZE = 16
SHAPE = "125M"


def build_transformers() -> Any:
    import transformers

    shape = SHAPES[SHAPE]
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def take_weights(hf: Any) -> tuple[ModelConfig, bytearray]:
    """The model's configuration and its weights laid out as the keeper lays them out."""
    with tempfile.TemporaryDirectory() as directory:
        hf.config.architectures = ["LlamaForCausalLM"]
        hf.config.save_pretrained(directory)
        config = load_model_config(Path(directory))
    layout = WeightLayout.of(config, "float32")
    buffer = bytearray(layout.nbytes)
    tensors, state = map_weights(layout, bytes_tensor(memoryview(buffer))), hf.state_dict()
    for entry in layout.entries:
        for part in entry.parts:
            tensors[entry.name][part.first_row : part.first_row + part.num_rows] = state[part.checkpoint_name]
    return config, buffer


class MinimalLoop:
    """The decode step one would write by hand: fused qkv, contiguous KV, torch's operators, greedy."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], batch: int, context: int, room: int) -> None:
        self.config, self.embed, self.norm = config, weights["embed"], weights["norm"]
        self.layers = all_layer_weights(config, weights)
        self.length = context
        shape = (config.num_layers, 2, batch, config.num_kv_heads, context + room, config.head_dim)
        self.kv = torch.randn(shape) * 0.1
        positions = torch.arange(context + room).unsqueeze(1)
        frequency = config.rope.theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.cat((positions * frequency, positions * frequency), dim=1)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.tokens = torch.arange(batch)

    def rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * self.cos[self.length] + turned * self.sin[self.length]

    @torch.inference_mode()
    def step(self) -> None:
        x = self.embed[self.tokens]
        for index, layer in enumerate(self.layers):
            x = self.attend(x, index, layer)
            h = rms_norm(x, (x.shape[-1],), layer.post_norm, self.config.rms_norm_eps)
            gate, up = linear(h, layer.gate_up).chunk(2, dim=-1)
            x = x + linear(silu(gate) * up, layer.down)
        x = rms_norm(x, (x.shape[-1],), self.norm, self.config.rms_norm_eps)
        self.tokens = linear(x, self.embed).argmax(-1)
        self.length += 1

    def attend(self, x: Tensor, index: int, layer: LayerWeights) -> Tensor:
        config, batch, end = self.config, len(x), self.length + 1
        h = rms_norm(x, (x.shape[-1],), layer.input_norm, config.rms_norm_eps)
        heads = linear(h, layer.qkv).view(batch, -1, 1, config.head_dim)
        q, k, v = heads.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)
        keys, values = self.kv[index]
        keys[:, :, self.length : end] = self.rotate(k)
        values[:, :, self.length : end] = v
        grouped = config.num_heads != config.num_kv_heads
        out = scaled_dot_product_attention(self.rotate(q), keys[:, :, :end], values[:, :, :end], enable_gqa=grouped)
        return x + linear(out.reshape(batch, -1), layer.o)


class Ours:
    """Both executors over one pool, in one process."""

    def __init__(self, config: ModelConfig, weights: bytearray, num_tokens: int) -> None:
        num_blocks = num_tokens // BLOCK_SIZE + 64
        facts = RuntimeFacts(
            device_kind="cpu", device_name="cpu", total_units=1, unit_granularity=1, unit_ids=(0,), model_name=SHAPE,
            model_dir="", dtype="float32", vocab_size=config.vocab_size, max_model_len=4096, num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
        )  # fmt: skip
        layout = KVLayout(config, "float32", num_blocks, BLOCK_SIZE)
        self.kv = torch.randn(layout.nbytes // 4).mul_(0.1).numpy()
        view = memoryview(self.kv).cast("B")
        mapped = MappedModel(config, facts, memoryview(weights).toreadonly(), view, False)
        self.prefill = ModelPrefillExecutor(mapped)
        self.decode = ModelDecodeExecutor(mapped)
        self.order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).tolist()

    def rows(self, batch: int, context: int, room: int) -> list[StandingRow]:
        count = (context + room) // BLOCK_SIZE + 1
        state = SampleState(SamplingParams(max_tokens=1 << 20, temperature=0.0), 1)
        return [StandingRow(i, 1, i, context, self.order[i * count : (i + 1) * count], state, 1) for i in range(batch)]

    def step(self, rows: list[StandingRow]) -> None:
        for row, token_id in zip(rows, self.decode.step(rows, 0).token_ids, strict=True):
            row.last_token_id = token_id
            row.context_len += 1
            row.position += 1

    def prompt(self, token_ids: list[int]) -> None:
        state = SampleState(SamplingParams(max_tokens=1, temperature=0.0), 0)
        blocks = self.order[: len(token_ids) // BLOCK_SIZE + 1]
        forward = self.prefill.begin(PrefillBatch(0, [PrefillRow(0, 1, token_ids, 0, blocks, state)]))
        while not forward.run_slice():
            pass


def timed_s(action: Callable[[], object], repetitions: int = 1) -> list[float]:
    samples = []
    for _ in range(repetitions):
        started = time.perf_counter()
        action()
        samples.append(time.perf_counter() - started)
    return samples


def generate_steps_s(hf: Any, config: ModelConfig, batch: int, context: int, num_steps: int) -> list[float]:
    """Seconds of each decode step inside `generate`, going on from a cache that is already filled."""
    import transformers

    cache = transformers.DynamicCache()
    for layer in range(config.num_layers):
        kv = torch.randn(2, batch, config.num_kv_heads, context, config.head_dim) * 0.1
        cache.update(kv[0], kv[1], layer)
    stamps: list[float] = []

    def stamp(input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        stamps.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)

    tokens = torch.randint(0, config.vocab_size, (batch, context + 1))
    hf.generate(
        tokens, attention_mask=torch.ones_like(tokens), past_key_values=cache, max_new_tokens=num_steps + 1,
        do_sample=False, stopping_criteria=[stamp],
    )  # fmt: skip
    return [later - earlier for earlier, later in itertools.pairwise(stamps)]


def bandwidth_gb_s() -> float:
    """Best of several reads of 512 MiB, far beyond the caches."""
    data = torch.ones(1 << 27)
    return data.numel() * 4 / min(timed_s(lambda: data.sum(), 7)) / 1e9


def matrix_gflops() -> float:
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / min(timed_s(lambda: torch.mm(a, b), 15)) / 1e9


def refresh(rates: dict[str, float]) -> None:
    """Keep the best rate seen: on a shared machine one moment may show half of what there is."""
    rates["read_gb_s"] = max(rates.get("read_gb_s", 0.0), bandwidth_gb_s())
    rates["matrix_gflops"] = max(rates.get("matrix_gflops", 0.0), matrix_gflops())


def floor_s(config: ModelConfig, rates: dict[str, float], new: int, keys: int, kv_bytes: int, logits: int) -> float:
    """`new` tokens of weights' FLOPs, `keys` query-key pairs, `kv_bytes` read, `logits` rows of lm_head."""
    head = config.vocab_size * config.hidden_size
    body = config.num_params - head
    num_bytes = 4 * config.num_params + kv_bytes
    flops = 2 * body * new + 2 * head * logits + 4 * keys * config.q_size * config.num_layers
    return max(num_bytes / rates["read_gb_s"] / 1e9, flops / rates["matrix_gflops"] / 1e9)


def measure_decode(
    hf: Any, config: ModelConfig, weights: bytearray, rates: dict[str, float], cases: list[tuple[int, int]], turns: int
) -> Iterator[dict[str, Any]]:
    tensors = map_weights(WeightLayout.of(config, "float32"), bytes_tensor(memoryview(weights)))
    steps = 6
    for batch, context in cases:
        room = (steps + 1) * turns + 2
        ours = Ours(config, weights, batch * (context + room + BLOCK_SIZE))
        rows = ours.rows(batch, context, room)
        loop = MinimalLoop(config, tensors, batch, context, room)
        samples: dict[str, list[float]] = {"ours": [], "minimal_loop": [], "transformers": []}
        for _ in range(turns):
            samples["ours"] += timed_s(partial(ours.step, rows), steps + 1)[1:]
            samples["minimal_loop"] += timed_s(loop.step, steps + 1)[1:]
            samples["transformers"] += generate_steps_s(hf, config, batch, context, steps)[1:]
        ms = {name: statistics.median(values) * 1e3 for name, values in samples.items()}
        refresh(rates)
        kv_bytes = batch * context * config.kv_bytes_per_token("float32")
        floor = floor_s(config, rates, batch, batch * context, kv_bytes, batch) * 1e3
        yield {
            "batch": batch, "context": context, "ms": ms, "floor_ms": floor,
            "of_minimal_loop": ms["ours"] / ms["minimal_loop"],
            "speedup_over_transformers": ms["transformers"] / ms["ours"], "of_floor": ms["ours"] / floor,
        }  # fmt: skip


def measure_prefill(
    hf: Any, config: ModelConfig, weights: bytearray, rates: dict[str, float], lengths: list[int], turns: int
) -> Iterator[dict[str, Any]]:
    ours = Ours(config, weights, max(lengths) + BLOCK_SIZE)
    for length in lengths:
        tokens = torch.randint(0, config.vocab_size, (1, length))
        token_ids = tokens[0].tolist()
        samples: dict[str, list[float]] = {"ours": [], "transformers": []}
        with torch.inference_mode():
            for _ in range(turns):
                samples["ours"] += timed_s(partial(ours.prompt, token_ids))
                samples["transformers"] += timed_s(partial(hf, tokens, use_cache=True, logits_to_keep=1))
        ms = {name: statistics.median(values) * 1e3 for name, values in samples.items()}
        refresh(rates)
        floor = floor_s(config, rates, length, length * (length + 1) // 2, 0, 1) * 1e3
        yield {
            "tokens": length, "ms": ms, "floor_ms": floor, "rate_of_transformers": ms["transformers"] / ms["ours"],
            "of_floor": ms["ours"] / floor,
        }  # fmt: skip


def print_decode(point: dict[str, Any]) -> None:
    ms = point["ms"]
    print(
        f"decode  batch {point['batch']:2} context {point['context']:4}: ours {ms['ours']:7.2f} ms, minimal loop "
        f"{ms['minimal_loop']:7.2f}, transformers {ms['transformers']:7.2f}; "
        f"{point['of_minimal_loop']:.2f} of the loop (target 1.10), {point['speedup_over_transformers']:.2f}x "
        f"transformers (target 1.30 at 4, 16); floor {point['floor_ms']:.2f} ms, {point['of_floor']:.2f} of it",
        flush=True,
    )


def print_prefill(point: dict[str, Any]) -> None:
    ms = point["ms"]
    print(
        f"prefill {point['tokens']:4} tokens: ours {ms['ours']:8.1f} ms, transformers {ms['transformers']:8.1f}; "
        f"{point['rate_of_transformers']:.2f} of its rate (target 0.95); floor {point['floor_ms']:.1f} ms, "
        f"{point['of_floor']:.2f} of it",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="fewer cases and turns")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hf = build_transformers()
    config, weights = take_weights(hf)
    rates: dict[str, float] = {}
    refresh(rates)
    print(
        f"{config.num_params:,} parameters, fp32, {options.threads} threads; memory {rates['read_gb_s']:.1f} GB/s, "
        f"matrices {rates['matrix_gflops']:.0f} GFLOP/s; native kernels: {'yes' if load_kernels() else 'no'}"
    )
    cases = [(b, c) for b in (1, 4, 16) for c in ((256,) if options.quick else (256, 1024))]
    decode, prefill = [], []
    for point in measure_decode(hf, config, weights, rates, cases, 2 if options.quick else 4):
        print_decode(point)
        decode.append(point)
    lengths = [128, 512] if options.quick else [128, 512, 2048]
    for point in measure_prefill(hf, config, weights, rates, lengths, 3 if options.quick else 5):
        print_prefill(point)
        prefill.append(point)
    if options.out:
        head = {
            "command": "python benchmarks/cpu_model.py" + (" --quick" if options.quick else ""),
            "machine": describe_machine(), "num_parameters": config.num_params, "threads": options.threads,
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default (spinning)"),
            "native_kernels": load_kernels() is not None, "rates": rates,
        }  # fmt: skip
        options.out.write_text(json.dumps({**head, "decode": decode, "prefill": prefill}, indent=1) + "\n")


if __name__ == "__main__":
    main()
