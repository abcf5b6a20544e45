"""Matrix products of the decoder. Weights keep the checkpoint's [out, in] order and are never repacked: two worker
processes read one copy."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from colocate.model.config import ModelConfig


class Linear(Protocol):
    """x [tokens, in] (unit stride along `in`), weight [out, in], bias [out]. Results go to tensors of the caller."""

    def project(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out [tokens, out] = x @ weight.T + bias."""
        ...

    def add_project(self, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """residual [tokens, out] += x @ weight.T + bias, in place."""
        ...


class FastLinear:
    """One product over all tokens, the residual added by the product itself."""

    def project(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        if bias is None:
            torch.mm(x, weight.t(), out=out)
        else:
            torch.addmm(bias, x, weight.t(), out=out)

    def add_project(self, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        residual.addmm_(x, weight.t())
        if bias is not None:
            residual.add_(bias)


def linear_for(config: ModelConfig, deterministic: bool) -> Linear:
    return FastLinear()
