"""Rotary position embedding: frequencies of every supported scaling, and the cos/sin table of one run.

Sources: RoPE arXiv 2104.09864; linear position interpolation arXiv 2306.15595; YaRN arXiv 2309.00071; Llama 3.1's
scaling as published with its weights. Computed by numpy, single-threaded and once for all positions, so that every
process of a run has the same table bit by bit.
"""

from __future__ import annotations

from math import floor, log, pi

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from colocate.model.rope_config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> npt.NDArray[np.float32]:
    """head_dim / 2 angular frequencies in radians per position."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (np.float32(1.0) / np.power(np.float32(rope.theta), exponents)).astype(np.float32)
    if rope.type == "linear":
        frequencies = frequencies / np.float32(rope.factor)
    elif rope.type == "llama3":
        frequencies = _llama3(rope, frequencies)
    elif rope.type == "yarn":
        frequencies = _yarn(rope, frequencies, head_dim)
    return np.asarray(frequencies, np.float32)


def _llama3(rope: RopeConfig, frequencies: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    wavelengths = 2 * pi / frequencies
    low = rope.original_max_position_embeddings / rope.low_freq_factor
    high = rope.original_max_position_embeddings / rope.high_freq_factor
    smooth = (rope.original_max_position_embeddings / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    scaled = np.where(wavelengths > low, frequencies / rope.factor, between)
    return np.where(wavelengths < high, frequencies, scaled).astype(np.float32)


def _yarn(rope: RopeConfig, frequencies: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Section 3.2: a ramp over dimensions between interpolation (slow rotations) and extrapolation (fast ones)."""

    def dimension_of(num_rotations: float) -> float:
        positions = rope.original_max_position_embeddings
        return head_dim * log(positions / (num_rotations * 2 * pi)) / (2 * log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = floor(low), -floor(-high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # the ramp of a single dimension would divide by zero
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    return np.asarray(frequencies / rope.factor * ramp + frequencies * (1 - ramp), np.float32)


class RotaryTable:
    """cos and sin of every position below `num_positions`, each [num_positions, head_dim], the two halves equal."""

    def __init__(self, rope: RopeConfig, head_dim: int, num_positions: int, dtype: torch.dtype) -> None:
        positions = np.arange(num_positions, dtype=np.float32)
        angles = positions[:, None] * inverse_frequencies(rope, head_dim)[None, :]
        angles = np.concatenate((angles, angles), axis=1)
        factor = np.float32(rope.attention_factor)
        self._cos = torch.from_numpy(np.cos(angles) * factor).to(dtype)
        self._sin = torch.from_numpy(np.sin(angles) * factor).to(dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for int64 `positions` [tokens], each [tokens, 1, head_dim]; the caller owns them."""
        return self._cos.index_select(0, positions).unsqueeze(1), self._sin.index_select(0, positions).unsqueeze(1)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor, scratch: Tensor) -> None:
    """Rotate x [tokens, heads, head_dim] in place; `scratch` has x's shape and is overwritten.

    Plain multiplies and adds only: a fused multiply-add may round differently in the tail of a vector loop, and the
    result must not depend on where in a batch a token stands.
    """
    half = x.shape[-1] // 2
    torch.mul(x, sin, out=scratch)
    x.mul_(cos)
    x[..., :half].sub_(scratch[..., half:])
    x[..., half:].add_(scratch[..., :half])
