"""Kernel tests are of two kinds, which cannot share a process.

`interpreted/` holds tests that run kernels on CPU tensors in Triton's interpreter. It needs `TRITON_INTERPRET=1` before
triton is imported, and replaces what `triton.jit` makes. `test_interpreted.py` runs each of those files in a pytest of
its own, so that one `pytest tests` holds everything. By hand:

    TRITON_INTERPRET=1 python -m pytest tests/cuda/interpreted -k decode

The tests beside it compile kernels for sm_90 (`aot.py`), which the interpreter would make impossible.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore = [] if INTERPRETED else ["interpreted"]
collect_ignore_glob = ["test_*.py"] if INTERPRETED else []


@pytest.fixture(scope="session", autouse=True)
def _compiled_kernels_leave_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Triton's cache goes to a folder of the session, so every check compiles what is in the tree."""
    from triton import knobs

    directory = tmp_path_factory.mktemp("triton")
    with knobs.cache.scope():
        knobs.cache.dir = str(directory)
        yield directory
