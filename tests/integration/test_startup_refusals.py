"""What cannot work is refused at start: exit code 2, what is wrong and how to mend it, nothing left running."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.daemon import start_daemon
from tests.limits import START_LIMIT_S

WEIGHTS = "model.safetensors"
H200 = "configs/profiles/emulated-h200-roofline.yaml"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A copy of the demo model to damage."""
    target = tmp_path / "model"
    shutil.copytree(str(files("colocate.model") / "demo"), target)
    return target


def _refused(*arguments: str) -> str:
    """Start on the real CPU device, expect a refusal, return what was printed."""
    with start_daemon("--device", "cpu", "--kv-memory", "16MiB", *arguments, wait=False) as daemon:
        code = daemon.wait_exit(START_LIMIT_S)
        daemon.assert_nothing_left()
        output = daemon.output
    assert code == 2, output
    assert "Traceback" not in output
    assert "to mend it:" in output
    return output


def _truncate(directory: Path) -> None:
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def _cut_header(directory: Path) -> None:
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:100])


def _remove_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()


def _lose_a_shard(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    names = sorted(tensors)
    (directory / WEIGHTS).unlink()
    save_file({name: tensors[name] for name in names[::2]}, directory / "model-00001-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _change_tensor(directory: Path, change: Callable[[Any], Any]) -> None:
    tensors = load_file(directory / WEIGHTS)
    tensors["model.norm.weight"] = change(tensors["model.norm.weight"])
    save_file(tensors, directory / WEIGHTS)


def _wrong_shape(directory: Path) -> None:
    _change_tensor(directory, lambda tensor: tensor[:-1].copy())


def _wrong_dtype(directory: Path) -> None:
    _change_tensor(directory, lambda tensor: tensor.astype(np.int64))


def _remove_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def _break_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")


def _remove_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _other_architecture(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["MambaForCausalLM"]
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncate, "truncated"),
        (_cut_header, "truncated"),
        (_remove_weights, "safetensors"),
        (_lose_a_shard, "model-00002-of-00002.safetensors: shard is missing"),
        (_wrong_shape, "does not match config.json"),
        (_wrong_dtype, "dtype I64 is not supported"),
        (_remove_tokenizer, "tokenizer.json"),
        (_break_tokenizer, "tokenizer.json"),
        (_remove_config, "config.json"),
        (_other_architecture, "MambaForCausalLM is not supported"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_damaged_model_is_refused(model_dir: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(model_dir)
    assert says in _refused(str(model_dir))


def test_a_missing_directory_is_refused() -> None:
    assert "there is no directory ./nowhere" in _refused("./nowhere")


def test_a_model_that_the_hub_does_not_give_is_refused() -> None:
    with start_daemon("--device", "cpu", "nobody/nothing", environment={"HF_HUB_OFFLINE": "1"}, wait=False) as daemon:
        assert daemon.wait_exit(START_LIMIT_S) == 2
        daemon.assert_nothing_left()
        assert "nobody/nothing is neither here nor could it be downloaded" in daemon.output


def test_a_taken_port_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        output = _refused("--port", str(port))
    assert f"127.0.0.1:{port} is in use" in output
    assert "keeper" not in output, "refused before anything was started"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--kv-memory", "900TiB"), "do not fit into"),
        (("--kv-memory", "1KiB"), "kv_memory"),
        (("--kv-memory", "1MiB", "--max-model-len", "2048"), "a request of max_model_len 2048 tokens does not fit"),
        (("--max-model-len", "1000000"), "over the model's own limit"),
        (("--plan", "static:p99999d1"), "no plan named 'p99999d1'"),
        (("--shadow", "slo", "--mode", "shared"), "shadow: mode 'shared' runs no partition"),
        (("--units", "4000"), "cannot use 4000"),
        (("--device", "cuda"), "use --device cpu, or --device auto"),
        (("--event-log", "pyproject.toml"), "event_log: pyproject.toml cannot hold an event log: File exists"),
        (("--event-log", "/proc/1/log"), "event_log: /proc/1/log cannot hold an event log"),
        (("--metrics-compat", "vlm"), "--metrics-compat: 'vlm' is not one of vllm"),
        (("--metrics-compat", "vlm"), "did you mean 'vllm'?"),
        (("--profile", "x.yaml"), "x.yaml: cannot read the device profile: No such file"),
        (("--profile", H200), "profile: is for a device of 132 units, this one has"),
        (("--latency-profile", "x.json"), "x.json: cannot read the device profile: No such file"),
        (("--device", "emulated", "--profile", "nowhere.yaml"), "nowhere.yaml"),
        (("--device", "emulated", "--fault", "decode:explode@step=1"), "explode"),
        (("--host", "203.0.113.7"), "is not an address of this machine"),
        (("--mode", "chunked", "--chunk-size", "32"), "32 tokens a forward leave no room for prompts beside 64 rows"),
        (("--max-num-seqs", "none"), "'none' is not a whole number"),
        (("--slo-class", "interactive: ttft 0 ms"), "--slo-class: class 'interactive': a target must be above zero"),
        (("--slo-class", "a: none", "--default-slo-class", "b"), "default_slo_class: there is no SLO class 'b'"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: tuple[str, ...], says: str) -> None:
    with start_daemon("--device", "cpu", *arguments, wait=False) as daemon:
        assert daemon.wait_exit(START_LIMIT_S) == 2, daemon.output
        daemon.assert_nothing_left()
        assert says in daemon.output
        assert "Traceback" not in daemon.output


def test_a_short_pool_shortens_the_longest_request_and_says_so() -> None:
    with start_daemon("--kv-memory", "1MiB") as daemon:
        assert "max-model-len" in daemon.output and "the KV pool holds no more" in daemon.output
        assert daemon.complete().status_code == 200


def test_a_worker_that_dies_at_every_start_ends_the_daemon_with_code_1() -> None:
    with start_daemon("--fault", "decode:exit@start", "--max-restarts", "2", wait=False) as daemon:
        assert daemon.wait_exit(START_LIMIT_S) == 1, daemon.output
        daemon.assert_nothing_left()
        assert "giving up" in daemon.output


_WITHOUT_UVICORN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "uvicorn":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Hidden())
"""


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WITHOUT_UVICORN)
    with start_daemon(environment={"PYTHONPATH": str(tmp_path)}, wait=False) as daemon:
        assert daemon.wait_exit() == 2
        assert "the module uvicorn is not installed" in daemon.output
        assert "Traceback" not in daemon.output
        daemon.assert_nothing_left()
