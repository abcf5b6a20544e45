"""Random weights: of the right shapes, sane numbers, and the same ones for the same seed. And their checksum."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
import torch

from colocate.model.checksum import PIECE_BYTES, checksum
from colocate.model.config import load_model_config
from colocate.model.dummy import STANDARD_DEVIATION, draw_weights
from colocate.model.layout import WeightLayout
from colocate.model.llama import bytes_tensor, map_weights
from colocate.model.loader import HostMemory
from colocate.worker.cuda.loader import draw_on_device

CONFIG = load_model_config(Path(__file__).parents[2] / "colocate" / "model" / "demo")


def drawn(how: str, dtype: str, seed: int) -> dict[str, torch.Tensor]:
    layout = WeightLayout.of(CONFIG, dtype)
    buffer = memoryview(bytearray(layout.nbytes))
    steps: list[int] = []
    if how == "numpy":
        draw_weights(layout, seed, HostMemory(buffer), lambda done, total: steps.append(done))
    else:
        draw_on_device(layout, bytes_tensor(buffer), seed, lambda done, total: steps.append(done))
    assert steps == sorted(steps) and steps[-1] <= layout.nbytes
    return map_weights(layout, bytes_tensor(buffer))


@pytest.mark.parametrize("how", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices_are_normal_and_norms_are_one(how: str, dtype: str) -> None:
    weights = drawn(how, dtype, seed=0)
    for name, tensor in weights.items():
        if name.endswith("norm"):
            assert torch.equal(tensor, torch.ones_like(tensor))
        elif tensor.numel() > 10_000:
            values = tensor.float()
            # of n draws the mean is within sd/sqrt(n), the deviation within sd/sqrt(2n); five times that
            slack = 5 * STANDARD_DEVIATION / tensor.numel() ** 0.5
            assert abs(float(values.mean())) < slack + 1e-5
            assert abs(float(values.std()) - STANDARD_DEVIATION) < slack + 1e-4


@pytest.mark.parametrize("how", ["numpy", "torch"])
def test_the_seed_decides_and_no_two_entries_are_alike(how: str) -> None:
    first, again, other = drawn(how, "float32", 1), drawn(how, "float32", 1), drawn(how, "float32", 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    matrices = [name for name in first if not name.endswith("norm")]
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    heads = [tuple(first[name].flatten()[:4].tolist()) for name in matrices]
    assert len(set(heads)) == len(heads)


@pytest.mark.parametrize("num_bytes", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 4097])
def test_a_checksum_in_pieces_is_the_one_of_zlib(num_bytes: int) -> None:
    data = memoryview(os.urandom(num_bytes))
    assert checksum(num_bytes, lambda start, stop: data[start:stop]) == zlib.crc32(data)
