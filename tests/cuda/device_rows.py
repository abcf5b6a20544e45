"""Rows of sampling parameters on a device, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from colocate.messages.sampling import SampleState
from colocate.model.cuda.activations import MAX_SPLITS
from colocate.model.cuda.sampling import table_row
from colocate.model.cuda.state import SamplingTable


def fill_table(table: SamplingTable, slots: Sequence[int], states: Sequence[SampleState], vocab_size: int) -> None:
    """What the host sends for rows that join."""
    for slot, state in zip(slots, states, strict=True):
        row = table_row(state, vocab_size)
        for field in fields(table):
            column = getattr(table, field.name)
            column[slot] = torch.tensor(np.asarray(row[field.name]), dtype=column.dtype)


def sampler_buffers(max_rows: int) -> dict[str, Tensor]:
    """The sampler's part of the arena, filled with rubbish."""
    return {
        "piece_max": torch.full((2, max_rows, MAX_SPLITS), 1e30),
        "piece_token": torch.full((2, max_rows, MAX_SPLITS), 7, dtype=torch.int32),
        "row_peak": torch.full((max_rows,), float("nan")),
        "row_floor": torch.full((max_rows,), float("nan")),
        "row_verdict": torch.full((max_rows,), 12345, dtype=torch.int32),
    }
