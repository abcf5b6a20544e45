"""Matrix products of the decoder. Weights keep the checkpoint's [out, in] order and are never repacked: two worker
processes read one copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import silu

from colocate.model.deterministic import DeterministicLinear


class Linear(Protocol):
    """x [tokens, in] (unit stride along `in`), weight [out, in], bias [out]. Results go to tensors of the caller."""

    def project(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out [tokens, out] = x @ weight.T + bias."""
        ...

    def add_project(self, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """residual [tokens, out] += x @ weight.T + bias, in place."""
        ...

    def gate(self, gate: Tensor, up: Tensor) -> None:
        """gate = silu(gate) * up, in place; both [tokens, intermediate]."""
        ...


class FastLinear:
    """One product over all tokens, the residual added by the product itself.

    The library behind `torch.mm` runs a skinny float32 product on one thread and packs the weight first. Measured on
    2 cores with 768 x 2304: one token 0.49 ms as a matrix-vector product and 0.23 ms as a batch of two half matrices,
    which it does spread; four tokens 0.69 ms, and 0.44 ms with the weight as the left operand.
    """

    def project(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        if _is_one_row(x, weight):
            torch.bmm(_halves(weight), _twice(x), out=out.view(2, -1, 1))
        elif _is_skinny(x, weight):
            out.copy_(torch.mm(weight, x.t()).t())
        elif bias is not None:
            torch.addmm(bias, x, weight.t(), out=out)
            return
        else:
            torch.mm(x, weight.t(), out=out)
        if bias is not None:
            out.add_(bias)

    def add_project(self, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        if _is_one_row(x, weight):
            residual.view(2, -1, 1).baddbmm_(_halves(weight), _twice(x))
        elif _is_skinny(x, weight):
            residual.add_(torch.mm(weight, x.t()).t())
        else:
            residual.addmm_(x, weight.t())
        if bias is not None:
            residual.add_(bias)

    def gate(self, gate: Tensor, up: Tensor) -> None:
        silu(gate, inplace=True).mul_(up)


def _is_one_row(x: Tensor, weight: Tensor) -> bool:
    return x.shape[0] == 1 and weight.shape[0] % 2 == 0 and x.dtype is torch.float32


def _is_skinny(x: Tensor, weight: Tensor) -> bool:
    num_tokens = x.shape[0]
    wide = weight.shape[0] >= weight.shape[1]
    return x.dtype is torch.float32 and (num_tokens == 2 or (num_tokens in (3, 4) and wide))


def _halves(weight: Tensor) -> Tensor:
    """[out, in] as [2, out / 2, in]."""
    return weight.view(2, -1, weight.shape[1])


def _twice(x: Tensor) -> Tensor:
    """[1, in] as [2, in, 1]. With another stride along the last dimension, `bmm` takes a path ten times slower."""
    return x.t().expand(2, -1, 1)


def linear_for(weights: Mapping[str, Tensor], deterministic: bool, thread_counts: Sequence[int]) -> Linear:
    """`weights` as `llama.map_weights` returns them; what is deterministic is so on each of `thread_counts`."""
    if not deterministic:
        return FastLinear()
    embed = weights["embed"]
    matrices = [weights[f"layers.0.{name}"] for name in ("qkv", "o", "gate_up", "down")]
    return DeterministicLinear([*matrices, weights.get("lm_head", embed)], thread_counts)
