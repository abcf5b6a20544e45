"""Runs every file of `interpreted/` in a pytest of its own, under Triton's interpreter (see conftest.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parent / "interpreted"
_ROOT = Path(__file__).parents[2]
_FILES = sorted(path.name for path in _FOLDER.glob("test_*.py"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", _FILES)
def test_kernels_in_the_interpreter(name: str) -> None:
    # What the outer pytest and its plugins export must not reach the inner one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", str(_FOLDER / name)]
    result = subprocess.run(
        command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode != 0:
        pytest.fail(f"{name}, exit code {result.returncode}:\n{result.stdout[-20_000:]}", pytrace=False)


def test_there_are_kernels_to_interpret() -> None:
    assert _FILES
