"""What a worker on the GPU allocates beside weights and KV: one arena, planned before any of it exists.

Imports no torch: the memory budget is computed where none is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from colocate.model.config import DTYPE_BYTES, ModelConfig

_ALIGNMENT_BYTES = 256  # what cudaMalloc gives, and more than any vector load or TMA descriptor asks
MAX_SPLITS = 64  # most pieces one row of logits is sampled in
FLOAT32, INT32 = "float32", "int32"
_BYTES = {**DTYPE_BYTES, INT32: 4}


@dataclass(frozen=True, slots=True)
class Activation:
    """One buffer of the arena. Buffers of different stages of a layer may overlap."""

    shape: tuple[int, ...]
    dtype: str
    offset_bytes: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * _BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class ActivationPlan:
    """Named buffers and the size of the arena that holds them.

    `delta` [tokens, hidden] is what the last product adds to the residual; `normed` [tokens, hidden]; `qkv` and
    `attention` share their place with `gate_up`, as attention is over before the feed-forward begins. `hidden`,
    `logits` and the sampler's pieces are sized by rows: those of a decode step, or those a prefill forward draws for.
    The hidden states of prefill forwards belong to the caller.
    """

    buffers: dict[str, Activation]
    nbytes: int

    @staticmethod
    def of(config: ModelConfig, dtype: str, max_tokens: int, max_rows: int) -> ActivationPlan:
        """`max_tokens` bounds the tokens of a forward, `max_rows` the rows of one step or one call of `logits`."""
        tokens = max(max_tokens, max_rows)
        wide = config.q_size + 2 * config.kv_size
        shapes: tuple[tuple[str, tuple[int, ...], str], ...] = (
            ("normed", (tokens, config.hidden_size), dtype),
            ("delta", (tokens, config.hidden_size), dtype),
            ("hidden", (max_rows, config.hidden_size), dtype),
            ("logits", (max_rows, config.vocab_size), FLOAT32),
            ("token_ids", (max_rows,), INT32),
            ("piece_max", (2, max_rows, MAX_SPLITS), FLOAT32),
            ("piece_token", (2, max_rows, MAX_SPLITS), INT32),
            ("row_peak", (max_rows,), FLOAT32),
            ("row_floor", (max_rows,), FLOAT32),
            ("row_verdict", (max_rows,), INT32),
            ("qkv", (tokens, wide), dtype),
        )
        buffers: dict[str, Activation] = {}
        end = 0
        for name, shape, kind in shapes:
            buffers[name] = Activation(shape, kind, end)
            end += _aligned(buffers[name].nbytes)
        buffers["attention"] = Activation((tokens, config.q_size), dtype, end)
        end += _aligned(buffers["attention"].nbytes)
        gate_up = Activation((tokens, 2 * config.intermediate_size), dtype, buffers["qkv"].offset_bytes)
        buffers["gate_up"] = gate_up
        return ActivationPlan(buffers, max(end, gate_up.offset_bytes + _aligned(gate_up.nbytes)))


def activation_bytes(config: ModelConfig, dtype: str, max_tokens: int, max_rows: int) -> int:
    """Size of the arena of one `CudaModel`."""
    return ActivationPlan.of(config, dtype, max_tokens, max_rows).nbytes


def rotary_bytes(config: ModelConfig, num_positions: int) -> int:
    """Size of the table of `rotary.rotary_table`."""
    return num_positions * config.head_dim * _BYTES[FLOAT32]


def hidden_bytes(config: ModelConfig, dtype: str, num_tokens: int) -> int:
    """Size of the hidden states of one prefill forward."""
    return num_tokens * config.hidden_size * _BYTES[dtype]


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
