"""`--load-format dummy`: a model of random numbers is served, repeatably, from a directory without a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.daemon import Daemon, start_daemon

DEMO = Path(__file__).parents[2] / "colocate" / "model" / "demo"


@pytest.fixture
def without_weights(tmp_path: Path) -> Path:
    for path in DEMO.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    return tmp_path


def tokens(daemon: Daemon) -> list[int]:
    reply = daemon.complete([5, 9, 200, 31], temperature=0, ignore_eos=True, return_token_ids=True)
    assert reply.status_code == 200, reply.text
    found: list[int] = reply.json()["choices"][0]["token_ids"]
    return found


def test_the_same_seed_serves_the_same_model(without_weights: Path) -> None:
    arguments = ("--device", "cpu", "--kv-memory", "16MiB", "--deterministic")
    with start_daemon(str(without_weights), *arguments, "--load-format", "dummy", "--seed", "5") as daemon:
        first = tokens(daemon)
        assert "texts are noise" in daemon.output
    with start_daemon(str(without_weights), *arguments, "--load-format", "dummy", "--seed", "5") as daemon:
        assert tokens(daemon) == first
