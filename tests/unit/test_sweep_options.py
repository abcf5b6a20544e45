"""Options of a sweep from a file and the command line, and the files that are shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.bench.sweep.arms import Grounds, as_flags, resolve_arms
from colocate.bench.sweep.execute import estimate_left
from colocate.bench.sweep.load import Load
from colocate.cli.sweep_options import SweepOptions, read_options
from colocate.config.load import load_config
from colocate.errors import ConfigError
from colocate.workload.recipe import Recipe
from tests.sweep_world import make_plan

CONFIGS = Path(__file__).parents[2] / "configs" / "bench"


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_command_line_wins_over_the_file_setting_by_setting(tmp_path: Path) -> None:
    file = _write(
        tmp_path / "s.yaml",
        "min-requests: 50\nrates: [1, 2]\nslo-class: {chat: ttft 1 s}\nserve: {units: 4, kv-memory: 1GiB}\n",
    )
    options = read_options(file, {"rates": [3.0]}, {"units": "8"})
    assert (options.min_requests, options.rates) == (50, (3.0,))
    assert options.serve == {"units": "8", "kv_memory": "1GiB", "slo_class": {"chat": "ttft 1 s"}}
    assert read_options(None, {}, {}) == SweepOptions()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min-request: 5", "min_request"),
        ("rates: fast", "rates"),
        ("serve: {unit: 4}", "unit: is no setting"),
        ("serve: {plan: slo}", "is set by the sweep"),
        ("serve: 4", "is not a mapping"),
        ("- 4", "must hold `key: value` lines"),
        ("{", "is not YAML"),
    ],
)
def test_what_a_file_cannot_say_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_options(_write(tmp_path / "s.yaml", text), {}, {})


def test_times_are_numbers_or_texts(tmp_path: Path) -> None:
    options = read_options(_write(tmp_path / "s.yaml", "budget: 2h\nwarmup: 7\ndrain: 1m"), {"cooldown": "2s"}, {})
    assert [options.seconds(name) for name in ("budget", "warmup", "drain", "cooldown")] == [7200, 7, 60, 2]


@pytest.mark.parametrize(
    ("name", "splits", "num_arms", "most_s"),
    [("cpu-demo", ("p1d1",), 7, 2 * 3600), ("emulated-h200", (), 10, 2 * 3600)],
)
def test_the_shipped_files_can_be_run_in_their_time(
    tmp_path: Path, name: str, splits: tuple[str, ...], num_arms: int, most_s: float
) -> None:
    """As far as loads and the usual overhead say."""
    options = read_options(CONFIGS / f"{name}.yaml", {}, {})
    config = load_config(flags=options.serve)
    assert config.scheduler.slo_class and options.min_requests >= 100 and options.seeds >= 3 and len(options.rates) >= 3
    arms = resolve_arms(options.arms, Grounds(splits, options.chunk_sizes, config.scheduler.max_num_seqs))
    assert len(arms) == num_arms
    for arm in arms:
        assert arm.flags == as_flags(dict(_pairs(arm.flags)))
    load = Load(
        recipe=Recipe(lengths=options.lengths, arrivals=options.arrivals), min_requests=options.min_requests,
        warmup_s=options.seconds("warmup"),
    )  # fmt: skip
    assert len(load.at(options.rates[0], 0).rows) > 100
    plan = make_plan(tmp_path, arms, rates=options.rates, seeds=tuple(range(options.seeds)), load=load)
    assert estimate_left(plan, lambda _: None).likely_s <= most_s


def _pairs(flags: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(flag[2:].replace("-", "_"), value) for flag, value in zip(flags[::2], flags[1::2], strict=True)]


def test_a_file_mixes_classes_and_says_how_much_is_shared(tmp_path: Path) -> None:
    options = read_options(
        _write(tmp_path / "s.yaml", "mix: {chat: 3, batch: 1}\nsharing: {shared-tokens: 512}\n"), {}, {}
    )
    recipe = Recipe(pattern="same-document", lengths=("64/8",), classes=options.mix, shape=options.sharing.shape)
    made = Load(recipe=recipe, min_requests=400, warmup_s=0.0).at(20.0, 0)
    share = sum(row.slo_class == "chat" for row in made.rows) / len(made.rows)
    assert share == pytest.approx(0.75, abs=0.08)
    assert all(row.prompt_tokens > 512 for row in made.rows)
    with pytest.raises(ConfigError, match="shared-token"):
        read_options(_write(tmp_path / "s.yaml", "sharing: {shared-token: 512}\n"), {}, {})
    flagged = {"sharing": {"num-uses": 3}}
    both = read_options(_write(tmp_path / "s.yaml", "sharing: {shared-tokens: 512}\n"), flagged, {})
    assert (both.sharing.shared_tokens, both.sharing.num_uses) == (512, 3)
