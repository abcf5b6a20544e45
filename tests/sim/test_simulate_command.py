"""`colocate simulate` and `colocate replay --policy`: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from colocate.cli.app import app
from colocate.cli.plan_table import PRIOR
from colocate.errors import ConfigError
from tests.sim.devices import profile_file

LOAD = ["--rate", "30", "--lengths", "lognormal:150,0.8/25,0.6", "--duration", "2"]


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def simulate(tmp_path: Path, *arguments: str | Path, **profile: object) -> str:
    return run("simulate", "--profile", profile_file(tmp_path / "device.json", **profile), *LOAD, *arguments)


def test_figures_as_table_json_and_records(tmp_path: Path) -> None:
    out, records = tmp_path / "out.json", tmp_path / "records.jsonl"
    slo = ["--slo", "ttft 500 ms, tpot 20 ms"]
    printed = simulate(tmp_path, *slo, "--plan", "slo", "--json", out, "--records", records)
    assert "ROOFLINE" not in printed
    assert "attainment" in printed
    document = json.loads(out.read_text())
    (only,) = document["runs"]
    assert document["warning"] == ""
    assert document["settings"]["plan"] == "slo"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert len(lines) == only["summary"]["num_offered"] == only["load"]["requests"]
    good = [
        line
        for line in lines
        if line["first_token_s"] - line["arrival_s"] <= 0.5
        and (line["finished_s"] - line["first_token_s"]) / max(line["output_tokens"] - 1, 1) <= 0.02
    ]
    assert only["summary"]["num_good"] == len(good)
    assert only["summary"]["attainment"] == len(good) / len(lines)


def test_several_seeds_show_their_range_and_a_prior_says_what_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    printed = simulate(tmp_path, "--seeds", "2", "--jobs", "1", "--json", out, kind="roofline")
    assert PRIOR.split(":")[0] in printed
    assert ".." in printed
    document = json.loads(out.read_text())
    assert [each["seed"] for each in document["runs"]] == [0, 1]
    assert document["warning"] == PRIOR
    assert document["runs"][0]["summary"] != document["runs"][1]["summary"]


def test_replay_takes_the_log_and_answers_what_if(tmp_path: Path) -> None:
    log, out = tmp_path / "run.log", tmp_path / "what_if.json"
    simulate(tmp_path, "--slo", "ttft 500 ms", "--plan", "static:p4d4", "--truth-error", "0", "--event-log", log)
    assert "every invariant held" in run("replay", log, "--check")
    printed = run("replay", log, "--policy", "static:p2d6", "--json", out)
    assert "logged: static:p4d4" in printed
    assert "what if: static:p2d6" in printed
    logged, again, other = json.loads(out.read_text())["arms"]
    assert again["summary"]["ttft_s"]["p50"] == pytest.approx(logged["summary"]["ttft_s"]["p50"], rel=1e-6)
    assert other["summary"]["ttft_s"]["p50"] > again["summary"]["ttft_s"]["p50"]
    chunked = run("replay", log, "--mode", "chunked")
    assert "what if: mode chunked" in chunked
    for arguments, where in (
        (("--mode", "chunky"), "--mode"),
        (("--mode", "chunked", "--policy", "slo"), "policy"),
        (("--policy", "p9d9"), "policy"),
        (("--mode", "chunked", "--plans", log), "--plans"),
        (("--policy", "elastic", "--check"), "--check"),
        (("--policy", "elastic", "--profile", profile_file(tmp_path / "other.json", name="other")), "--profile"),
    ):
        with pytest.raises(ConfigError) as refused:
            run("replay", log, *arguments)
        assert refused.value.where == where and refused.value.remedy
        assert "--plan " not in f"{refused.value.remedy} "
    log.write_bytes(log.read_bytes()[:-1])
    assert "was cut off" in run("replay", log) and "was cut off" in run("replay", log, "--policy", "elastic")


def test_a_mode_without_a_partition_can_be_asked_of_a_log_with_a_shadow(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    simulate(tmp_path, "--plan", "slo", "--slo", "tpot 50 ms", "--shadow", "on-demand", "--event-log", log)
    assert "mode chunked" in run("replay", log, "--mode", "chunked")


def test_plans_of_a_file_are_the_ones_used(tmp_path: Path) -> None:
    plans = tmp_path / "plans.yaml"
    plans.write_text(
        "version: 1\nunits: 8\ngranularity: 2\nbest_static: p4d4\n"
        "plans:\n  - {name: p4d4, prefill_units: 4, decode_units: 4}\n"
    )
    out = tmp_path / "out.json"
    simulate(tmp_path, "--slo", "ttft 500 ms, tpot 20 ms", "--plan", "slo", "--plans", plans, "--json", out)
    document = json.loads(out.read_text())
    assert document["settings"]["candidates"] == ["p4d4"]
    assert set(document["runs"][0]["residency"]) <= {"p4d4", "all-prefill", "all-decode", "(switching)"}


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["simulate", *LOAD], "--profile"),
        (["simulate", "--profile", "DEVICE"], "--rate"),
        (["simulate", "--profile", "DEVICE", *LOAD, "--router", "dice"], "--router"),
        (["simulate", "--profile", "DEVICE", *LOAD, "--slo", "ttft 0 ms"], "--slo"),
        (["simulate", "--profile", "DEVICE", *LOAD, "--slo", "ttft 1 s", "--slo-class", "a: ttft 1 s"], "--slo"),
        (["simulate", "--profile", "DEVICE", *LOAD, "--seeds", "2", "--event-log", "x.log"], "--seeds"),
        (["simulate", "--profile", "DEVICE", *LOAD, "--plan", "p9d9"], "plan"),
        (["simulate", "--profile", "DEVICE", *LOAD, "--shadow", "p9d9"], "shadow"),
        (["simulate", "--profile", "DEVICE", *LOAD, "--kv-tokens", "3"], "kv_tokens"),
        (["replay", "DEVICE", "--plans", "DEVICE"], "replay"),
        (["replay", "DEVICE", "--policy", "slo"], "DEVICE"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_a_remedy(tmp_path: Path, arguments: list[str], where: str) -> None:
    device = profile_file(tmp_path / "device.json")
    named = [str(device) if word == "DEVICE" else word for word in arguments]
    with pytest.raises(ConfigError) as refused:
        run(*named)
    assert refused.value.where == (str(device) if where == "DEVICE" else where)
    assert refused.value.remedy


@pytest.mark.parametrize("mode", ["shared", "chunked"])
def test_a_mode_without_a_partition_shows_the_plan_in_force(tmp_path: Path, mode: str) -> None:
    assert f"mode {mode}, plan shared," in simulate(tmp_path, "--mode", mode)
    with pytest.raises(ConfigError, match="runs no partition") as refused:
        simulate(tmp_path, "--mode", mode, "--plans", tmp_path / "plans.yaml")
    assert refused.value.where == "plans"


def test_a_profile_without_a_pool_size_needs_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--kv-tokens"):
        simulate(tmp_path, kv_tokens=0)
    assert "attainment" in simulate(tmp_path, "--kv-tokens", "5000", kv_tokens=0)
    assert msgspec.json.decode((tmp_path / "device.json").read_bytes())["kv_tokens"] == 0
