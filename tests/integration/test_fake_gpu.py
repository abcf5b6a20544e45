"""Every process of a run on the fake GPU: keeper, MPS, green contexts, executors, graphs; the text of a CPU's run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.daemon import Daemon, start_daemon
from tests.limits import START_LIMIT_S
from tests.streams import Stream, finished, wait_mid_stream

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


def test_a_driver_that_does_not_share_memory_is_a_refusal() -> None:
    """Not a crash loop: under MPS it is unproven that this transport works."""
    with start_daemon(
        *_GPU, environment={"COLOCATE_FAKE_CUDA": "1", "COLOCATE_FAKE_CUDA_BREAK": "no-import"}, wait=False
    ) as daemon:
        assert daemon.wait_exit(START_LIMIT_S) == 2
        assert "--memory-transport ipc" in daemon.output and "CUDA_ERROR_NOT_SUPPORTED" in daemon.output
        daemon.assert_nothing_left()


_FAKE = {"COLOCATE_FAKE_CUDA": "1", "OMP_NUM_THREADS": "1"}
_SERVED = (*_GPU, "--dtype", "float32", "--max-num-batched-tokens", "16")
_LIMIT_S = 2 * START_LIMIT_S  # the interpreter warms up after every restart


def _streams(daemon: Daemon) -> list[Stream]:
    return [Stream(daemon, number, max_tokens=10, temperature=0) for number in range(2)]


def _tokens(streams: Sequence[Stream]) -> list[list[int]]:
    return [finished(stream, _LIMIT_S) for stream in streams]


@pytest.fixture(scope="module")
def on_a_cpu() -> list[list[int]]:
    with start_daemon("--device", "cpu", "--dtype", "float32") as daemon:
        return _tokens(_streams(daemon))


def _serve(*arguments: str) -> Daemon:
    daemon = start_daemon(*_SERVED, *arguments, environment=_FAKE, wait=False)
    try:
        return daemon.wait_ready(_LIMIT_S)
    except BaseException as error:
        daemon.__exit__(type(error), error, None)
        raise


@pytest.mark.timeout(900)
def test_streams_go_on_whoever_dies(on_a_cpu: list[list[int]]) -> None:
    """The keeper's memory is mapped again by its workers' successors, under the same MPS daemon."""
    with _serve() as daemon:
        for role in ("prefill", "decode", "engine", "keeper"):
            streams = _streams(daemon)
            wait_mid_stream(streams, 2, _LIMIT_S)
            old = daemon.kill(role)
            assert _tokens(streams) == on_a_cpu, role
            daemon.wait_replaced(role, old, _LIMIT_S)
        daemon.wait_pool_whole()


@pytest.mark.timeout(900)
def test_two_threads_of_one_process_serve_the_same(on_a_cpu: list[list[int]]) -> None:
    with _serve("--single-process") as daemon:
        assert "mps" not in daemon.pids().values()
        streams = _streams(daemon)
        wait_mid_stream(streams, 2, _LIMIT_S)
        old = daemon.kill("gpu-owner")
        assert _tokens(streams) == on_a_cpu
        daemon.wait_replaced("gpu-owner", old, _LIMIT_S)
        assert _tokens(_streams(daemon)) == on_a_cpu
