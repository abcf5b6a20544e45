"""`--deterministic` on torch's own kernels: a token's numbers do not depend on what was computed beside it.

Matrix products run in row tiles of a few fixed sizes, the last one padded. Within one tile shape a library computes
every row alike; that all tile sizes, thread counts and row places agree bit for bit is a property of the library, so it
is checked at start on this machine with this model's shapes. A tile size that disagrees is not used; if even the
smallest is not stable, the start is refused. Element-wise steps use plain adds, multiplies, divisions and exp: `silu`
rounds differently in the tail of a vector loop (seen with torch 2.13), and where that falls depends on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from colocate.errors import ConfigError
from colocate.model.scratch import Scratch

TILE_ROWS = 8  # the smallest tile: what a decode step of one row is padded to
_TILES = (512, 128, 32, TILE_ROWS)
_MAX_PROBE_FLOPS = 50e9  # a larger product is not probed, and so not used: the start would take seconds per matrix

Product = Callable[[Tensor], Tensor]


class DeterministicLinear:
    """Implements `linear.Linear` independently of batch and threads. Probes each weight shape it is given."""

    def __init__(self, weights: Sequence[Tensor], thread_counts: Sequence[int]) -> None:
        self._tiles: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._scratch = Scratch(weights[0].dtype)
        check_elementwise(thread_counts)
        for weight in weights:
            shape = tuple(weight.shape)
            if shape not in self._tiles:
                self._tiles[shape] = stable_tiles(_product_with(weight), weight, thread_counts)

    def project(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        x = x.contiguous()
        num_tokens, tiles, first = x.shape[0], self._tiles[tuple(weight.shape)], 0
        while num_tokens - first >= TILE_ROWS:
            tile = next(size for size in tiles if size <= num_tokens - first)
            torch.mm(x[first : first + tile], weight.t(), out=out[first : first + tile])
            first += tile
        rest = num_tokens - first
        if rest:
            padded = self._scratch.take("padded", TILE_ROWS, x.shape[1])
            padded[:rest] = x[first:]
            padded[rest:] = 0
            result = self._scratch.take("result", TILE_ROWS, weight.shape[0])
            torch.mm(padded, weight.t(), out=result)
            out[first:] = result[:rest]
        if bias is not None:
            out.add_(bias)

    def add_project(self, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        out = self._scratch.take("projected", x.shape[0], weight.shape[0])
        self.project(x, weight, bias, out)
        residual.add_(out)

    def gate(self, gate: Tensor, up: Tensor) -> None:
        divisor = gate.neg().exp_().add_(1)
        gate.div_(divisor).mul_(up)


def _product_with(weight: Tensor) -> Product:
    return lambda x: torch.mm(x, weight.t())


def stable_tiles(product: Product, weight: Tensor, thread_counts: Sequence[int]) -> tuple[int, ...]:
    """Tile sizes, largest first, whose rows equal those of the smallest tile bit by bit, on every thread count.

    Raises ConfigError where the smallest tile itself depends on threads or on the place of a row.
    """
    num_outputs, num_inputs = weight.shape
    sizes = [size for size in _TILES if 2 * size * num_outputs * num_inputs <= _MAX_PROBE_FLOPS or size == TILE_ROWS]
    x = torch.randn(sizes[0], num_inputs, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    with restored_threads():
        torch.set_num_threads(1)
        places = [slice(first, first + TILE_ROWS) for first in range(0, sizes[0], TILE_ROWS)]
        wanted = torch.cat([product(x[place]) for place in places])
        stable = [size for size in sizes if all(_agrees(product, x, wanted, size, n) for n in thread_counts)]
        turned = torch.arange(TILE_ROWS).roll(3)
        if TILE_ROWS not in stable or not torch.equal(product(x[:TILE_ROWS][turned]), wanted[:TILE_ROWS][turned]):
            raise _unstable(f"the matrix product {num_inputs} -> {num_outputs}")
    return tuple(stable)


def _agrees(product: Product, x: Tensor, wanted: Tensor, size: int, num_threads: int) -> bool:
    torch.set_num_threads(num_threads)
    return torch.equal(product(x[:size]), wanted[:size])


def check_elementwise(thread_counts: Sequence[int]) -> None:
    """Refuse a library whose exp or row sums depend on length, place or threads."""
    values = torch.randn(70001, generator=torch.Generator().manual_seed(1))
    rows = values[:66048].view(129, 512)
    with restored_threads():
        torch.set_num_threads(1)
        exps = torch.cat([part.exp() for part in torch.split(values, 37)])
        sums = torch.stack([row.sum() for row in rows])
        for num_threads in thread_counts:
            torch.set_num_threads(num_threads)
            if not torch.equal(values.exp(), exps):
                raise _unstable("exp")
            if not torch.equal(rows.sum(-1), sums):
                raise _unstable("a row sum")


@contextmanager
def restored_threads() -> Iterator[None]:
    """Run with any thread counts, then put back the one found."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _unstable(what: str) -> ConfigError:
    return ConfigError(
        "model.deterministic",
        f"on this machine {what} of torch depends on batch or threads",
        "start without --deterministic, or install a C++ compiler for the native kernels",
    )
