"""The rotation of every position as one table on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from colocate.model.config import ModelConfig
from colocate.model.rope import inverse_frequencies


def rotary_table(config: ModelConfig, num_positions: int, device: torch.device | str) -> Tensor:
    """float32 [num_positions, head_dim]: cosines in the first half of a row, sines in the second.

    The same float32 values as the CPU's `RotaryTable` has before it is cast to the model's type; here they stay
    float32. `activations.rotary_bytes` is its size.
    """
    frequencies = inverse_frequencies(config.rope, config.head_dim)
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies[None, :]
    both = np.concatenate((np.cos(angles), np.sin(angles)), axis=1) * np.float32(config.rope.attention_factor)
    return torch.from_numpy(both.astype(np.float32, copy=False)).to(device)
