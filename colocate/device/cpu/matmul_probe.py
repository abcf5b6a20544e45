"""Run as a process: prints what torch can do on this CPU as one line of JSON.

`gflops` are rates of float32 and bfloat16 matrix products: each the geometric mean of a prefill-like product (256 rows)
and a decode-like one (4 rows), best of several runs, so that a busy moment does not decide the dtype of a whole run.
"""

from __future__ import annotations

import json
import math
import time

import torch

_WIDTH = 2048
_ROWS = (256, 4)
_BUDGET_S = 0.25


def gflops(dtype: torch.dtype, num_rows: int) -> float:
    """Best rate of `[num_rows, W] @ [W, W]` within the time budget, three repetitions at least."""
    left = torch.randn(num_rows, _WIDTH).to(dtype)
    # As a model has it: [out, in], applied transposed.
    right = torch.randn(_WIDTH, _WIDTH).to(dtype)
    best_s, repetitions, started_s = math.inf, 0, time.perf_counter()
    while repetitions < 3 or time.perf_counter() - started_s < _BUDGET_S:
        begun_s = time.perf_counter()
        torch.nn.functional.linear(left, right)
        best_s = min(best_s, time.perf_counter() - begun_s)
        repetitions += 1
    return 2.0 * num_rows * _WIDTH * _WIDTH / best_s / 1e9


def measure() -> dict[str, float]:
    """GFLOP/s per dtype."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    rates: dict[str, float] = {}
    for name, dtype in dtypes.items():
        product = math.prod(gflops(dtype, num_rows) for num_rows in _ROWS)
        rates[name] = product ** (1 / len(_ROWS))
    return rates


def main() -> None:
    facts = {
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "openmp": bool(torch.backends.openmp.is_available()),  # type: ignore[no-untyped-call]
        "mkldnn": bool(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
        "gflops": measure(),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
