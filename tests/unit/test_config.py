"""Settings from file, environment and flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.cli.options import HELP
from colocate.config.load import load_config
from colocate.config.profile import load_profile
from colocate.config.serve import GIB, ServeConfig
from colocate.config.settings import SETTINGS
from colocate.config.sizes import format_size, parse_size
from colocate.config.slo import slo_classes
from colocate.core.latency import LatencyModel
from colocate.core.plan import build_plan_table
from colocate.core.policy import Controller
from colocate.core.settings import EngineSettings
from colocate.errors import ConfigError
from colocate.runtime.plan_source import PlanSource


def _file(directory: Path, text: str) -> Path:
    path = directory / "serve.yaml"
    path.write_text(text)
    return path


def test_nothing_given_is_the_defaults() -> None:
    assert load_config() == ServeConfig()


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "port: 1001\nmax-queue: 1\nblock_size: 8\n")
    environ = {"COLOCATE_PORT": "1002", "COLOCATE_MAX_QUEUE": "2"}
    config = load_config(path, environ, {"port": "1003"})
    assert (config.http.port, config.scheduler.max_queue, config.memory.block_size) == (1003, 2, 8)


def test_every_type_of_value(tmp_path: Path) -> None:
    text = """
    kv-memory: 2GiB
    deterministic: true
    drain-timeout-s: 3
    api-key: [one, two]
    served-model-name: solo
    max-model-len: null
    mode: shared
    """
    config = load_config(_file(tmp_path, text))
    assert config.memory.kv_memory == 2 * GIB
    assert config.model.deterministic is True
    assert config.http.drain_timeout_s == 3.0
    assert config.http.api_key == ("one", "two")
    assert config.model.served_model_name == ("solo",)
    assert config.model.max_model_len is None
    assert config.scheduler.mode == "shared"


def test_lists_in_the_environment_are_comma_separated() -> None:
    assert load_config(None, {"COLOCATE_API_KEY": "one, two"}).http.api_key == ("one", "two")


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("max-num-seq: 4", "max-num-seq", "did you mean 'max_num_seqs'"),
        ("zzz: 4", "zzz", "see `colocate serve --help`"),
        ("port: eight", "port", "is not a whole number"),
        ("port: '8000'", "port", "is not a whole number"),
        ("port: true", "port", "is not a whole number"),
        ("port: 8000.5", "port", "is not a whole number"),
        ("port: 70000", "port", "too large"),
        ("port: null", "port", "has no value"),
        ("block-size: 0", "block-size", "too small"),
        ("device: gpu", "device", "is not one of auto, cpu, cuda, emulated"),
        ("mode: colocate", "mode", "did you mean 'colocated'"),
        ("deterministic: 'yes'", "deterministic", "true or false"),
        ("kv-memory: lots", "kv-memory", "size such as"),
        ("kv-memory: -1", "kv-memory", "too small"),
        ("drain-timeout-s: .nan", "drain-timeout-s", "is not a number"),
        ("api-key: [1]", "api-key", "quote numbers"),
        ("http:\n  port: 1", "http", "unknown key"),
        ("max-queue: 1\nmax_queue: 2", "max_queue", "given twice"),
    ],
)
def test_a_bad_key_is_refused_with_its_place(tmp_path: Path, text: str, where: str, says: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert refusal.value.where == f"{path}: {where}"
    assert says in str(refusal.value)


@pytest.mark.parametrize("text", ["- a\n- b", "just text", "a: [", "\x00"])
def test_a_file_that_holds_no_keys_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert refusal.value.where == str(path)


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "binary.yaml")


def test_a_bad_variable_or_flag_is_refused_by_its_own_name() -> None:
    with pytest.raises(ConfigError, match=r"environment: COLOCATE_PORT: 'x' is not a whole number"):
        load_config(None, {"COLOCATE_PORT": "x"})
    with pytest.raises(ConfigError, match=r"environment: COLOCATE_MAX_NUM_SEQ: .*COLOCATE_MAX_NUM_SEQS"):
        load_config(None, {"COLOCATE_MAX_NUM_SEQ": "4"})
    with pytest.raises(ConfigError, match=r"--max-queue: 'many' is not a whole number"):
        load_config(None, {}, {"max_queue": "many"})


def test_service_links_of_a_cluster_are_not_settings() -> None:
    links = {
        "COLOCATE_PORT": "tcp://10.0.0.1:80",
        "COLOCATE_PORT_80_TCP_ADDR": "10.0.0.1",
        "COLOCATE_SERVICE_HOST": "10.0.0.1",
        "COLOCATE_SERVICE_PORT": "80",
    }
    assert load_config(None, links) == ServeConfig()


def test_every_setting_has_a_flag_with_help() -> None:
    assert set(HELP) == set(SETTINGS) - {"model"}  # the model is the positional argument


@pytest.mark.parametrize("name", sorted(path.name for path in Path("configs/serve").glob("*.yaml")))
def test_the_examples_load(name: str) -> None:
    config = load_config(Path("configs/serve") / name)
    slo_classes(config.scheduler)
    if config.scheduler.plans is None:
        return
    assert config.device.profile is not None
    profile = load_profile(Path(config.device.profile))
    table = build_plan_table(profile.units, profile.granularity)
    choice, _ = PlanSource(Path(config.scheduler.plans), table, profile.name, profile.model).read()
    settings = EngineSettings(
        num_blocks=64,
        block_size=config.memory.block_size,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        max_queue=config.scheduler.max_queue,
        total_units=profile.units,
        unit_granularity=profile.granularity,
        mode=config.scheduler.mode,
        plan=config.scheduler.plan,
        shadow=config.scheduler.shadow,
        candidates=choice.candidates,
        best_static=choice.best_static,
    )
    controller = Controller(settings, table, LatencyModel(profile))
    assert controller.policy_name == config.scheduler.plan
    assert set(controller.candidates) == set(choice.candidates)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("0", 0), ("4096", 4096), ("1KiB", 1024), ("1k", 1000), ("1.5MiB", 3 << 19), ("2 GiB", 2 << 30), ("1TB", 10**12)],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "1XB", "1 2", "-1", "1e9", "0x10"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_sizes_read_back() -> None:
    assert [format_size(n) for n in (12, 1536, 1 << 30, 1 << 41)] == ["12 B", "1.5 KiB", "1 GiB", "2.0 TiB"]
