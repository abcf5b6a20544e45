"""Executors whose step is computed by the time it returns, seen as ones that launch and collect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

from colocate.errors import InvariantError

P = ParamSpec("P")
T = TypeVar("T")


class AtOnce(Generic[P, T]):
    """Implements `DecodeExecutor` over a step of rows, or `HybridExecutor` over a step of a chunk and rows."""

    depth = 1

    def __init__(self, step: Callable[P, T], units_changed: Callable[[int], None]) -> None:
        self._step = step
        self._result: T | None = None
        self.units_changed = units_changed

    def may_run_ahead(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        return False

    def launch(self, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._result is not None:
            raise InvariantError("a step was launched before the one ahead of it was collected")
        self._result = self._step(*args, **kwargs)

    def collect(self) -> T:
        result, self._result = self._result, None
        if result is None:
            raise InvariantError("a step was collected that was never launched")
        return result

    def abandon(self) -> None:
        self._result = None
