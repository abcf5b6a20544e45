"""Activations that are reused from layer to layer."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Reused activations, by name. A buffer grows to the largest forward seen and is valid until its next `take`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, num_tokens: int, width: int) -> Tensor:
        """[num_tokens, width], uninitialised."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < num_tokens * width:
            buffer = self._buffers[name] = torch.empty(num_tokens * width, dtype=self._dtype)
        return buffer[: num_tokens * width].view(num_tokens, width)
