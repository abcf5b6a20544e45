"""Every process of a run on the fake GPU: keeper, MPS, green contexts, executors, graphs; the text of a CPU's run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.limits import START_LIMIT_S

_PROMPT = ("--dtype", "float32", "--max-tokens", "8", "--temperature", "0", "--raw", "The quick")
_GPU = (
    "--device", "cuda", "--max-num-seqs", "2", "--max-num-batched-tokens", "64", "--max-model-len", "256",
    "--arm", "p92d40", "--kv-memory", "8MiB",
)  # fmt: skip


def _generate(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "colocate", "generate", *arguments, *_PROMPT],
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_the_text_is_that_of_a_cpu() -> None:
    wanted = _generate("--device", "cpu")
    assert len(wanted.strip()) > 8
    assert _generate(*_GPU, COLOCATE_FAKE_CUDA="1") == wanted
