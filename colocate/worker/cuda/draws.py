"""Tokens of one forward on their way to the host: drawn on the device, or on the host from a copy of the logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from colocate.messages.sampling import SampleState, TokenLogprob
from colocate.model.sampler import SampledTokens
from colocate.worker.cuda.gpu_model import GpuModel


class DrawRoom:
    """Pinned memory for the tokens of one forward at a time, and for logits once a row needs the host."""

    def __init__(self, gpu: GpuModel, max_rows: int) -> None:
        self._gpu = gpu
        self._tokens = gpu.backend.pinned((max_rows,), torch.int32)
        self._logits: Tensor | None = None

    def launch(
        self, drawn: Tensor, logits: Tensor | None = None, on_host: Mapping[int, SampleState] | None = None
    ) -> Draws:
        """Copy tokens `drawn` int32 [rows], and the rows of `logits` that the host draws, on the current stream."""
        tokens = self._tokens[: len(drawn)]
        tokens.copy_(drawn, non_blocking=True)
        wanted = on_host or {}
        room = None
        if logits is not None and wanted:
            room = self._room(len(wanted))
            for mine, place in enumerate(wanted):
                room[mine].copy_(logits[place], non_blocking=True)
        return Draws(self._gpu, tokens, room, wanted)

    def _room(self, num_rows: int) -> Tensor:
        if self._logits is None or len(self._logits) < num_rows:
            self._logits = self._gpu.backend.pinned((num_rows, self._gpu.config.vocab_size), torch.float32)
        return self._logits[:num_rows]


class Draws:
    """One forward's. Its room is taken until `tokens` was asked for."""

    def __init__(
        self, gpu: GpuModel, tokens: Tensor, logits: Tensor | None, on_host: Mapping[int, SampleState]
    ) -> None:
        self._gpu = gpu
        self._tokens = tokens
        self._logits = logits
        self._on_host = on_host

    def tokens(self) -> SampledTokens:
        """Once the copies are done. Below 0 where the device drew nothing; raises InvariantError where a row's logits
        are no numbers and the host draws it."""
        token_ids: list[int] = self._tokens.tolist()
        if self._logits is None:
            return SampledTokens(token_ids)
        logprobs: list[TokenLogprob | None] = [None] * len(token_ids)
        drawn = self._gpu.sampler.sample(self._logits, list(self._on_host.values()))
        for mine, place in enumerate(self._on_host):
            token_ids[place] = drawn.token_ids[mine]
            logprobs[place] = drawn.logprobs[mine] if drawn.logprobs is not None else None
        return SampledTokens(token_ids, logprobs if drawn.logprobs is not None else None)
