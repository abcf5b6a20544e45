"""`colocate plan`: the load it reads, the table it prints, the file it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from colocate.cli.app import app
from colocate.cli.plan import load_of_workload
from colocate.config.plan_file import load_plan_file
from colocate.config.profile import load_profile
from colocate.core.plan import build_plan_table
from colocate.errors import ConfigError

PROFILE = Path("configs/profiles/emulated-h200-roofline.yaml")
EXAMPLE = Path("configs/plans/emulated-h200.yaml")
SLO = "ttft 300 ms, tpot 50 ms"
LOAD = ("--rate", "10", "--prompt-tokens", "1000", "--output-tokens", "200")


def run(*arguments: str, slo: str = SLO, profile: Path = PROFILE) -> Result:
    return CliRunner().invoke(app, ["plan", "--profile", str(profile), "--slo", slo, *arguments])


def answer(*arguments: str, slo: str = SLO, profile: Path = PROFILE) -> dict[str, object]:
    result = run(*arguments, "--json", slo=slo, profile=profile)
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout, type=dict[str, object])


def refusal(*arguments: str, slo: str = SLO, profile: Path = PROFILE) -> ConfigError:
    result = run(*arguments, slo=slo, profile=profile)
    assert isinstance(result.exception, ConfigError), result.output
    return result.exception


def test_every_plan_that_serves_both_phases_is_forecast_and_a_prior_says_so() -> None:
    shown = answer(*LOAD)
    names = [plan["name"] for plan in shown["plans"]]
    table = build_plan_table(132, 8)
    assert names == [plan.name for plan in table.plans if plan.prefill_units and plan.decode_units]
    assert shown["prediction"] == "roofline" and "no verdict" in shown["warnings"][0]
    assert shown["best_static"] in names
    overloaded = next(plan for plan in shown["plans"] if plan["name"] == "p12d120")
    assert overloaded["ttft_p50_s"] is None and overloaded["meets_slo"] is False
    assert shown["graphs"] == {"sets": 16, "bytes_on_cpu_or_emulated": 0, "bytes_on_gpu": None}


def test_the_table_names_the_best_plan_and_warns_before_and_after() -> None:
    result = run(*LOAD)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("ROOFLINE PRIOR: nothing was measured")
    assert lines[-1] == "no verdict: see the first line"
    assert sum("best static" in line for line in lines) == 2  # its row, and the sentence under the table
    assert "overloaded" in result.stdout and "not known without a GPU" in " ".join(lines)


def test_a_measured_profile_carries_no_warning(tmp_path: Path) -> None:
    profile = msgspec.structs.replace(load_profile(PROFILE), kind="measured")
    path = tmp_path / "measured.json"
    path.write_bytes(msgspec.json.encode(profile))
    result = run(*LOAD, profile=path)
    assert result.exit_code == 0
    assert "PRIOR" not in result.stdout and "verdict" not in result.stdout
    assert answer(*LOAD, profile=path)["warnings"] == []


def test_the_file_written_holds_the_plans_worth_having(tmp_path: Path) -> None:
    path = tmp_path / "made" / "plans.yaml"
    shown = answer(*LOAD, "--out", str(path))
    file = load_plan_file(path)
    assert file.best_static == shown["best_static"]
    assert file.device == "h200-8b-roofline" and file.units == 132 and file.slo == SLO
    names = [plan.name for plan in file.plans]
    assert file.best_static in names and "shared" not in names
    by_name = {plan["name"]: plan for plan in shown["plans"]}
    assert all(by_name[name]["dominated_by"] is None and by_name[name]["ttft_p50_s"] is not None for name in names)
    assert "carry no verdict" in path.read_text()


def test_the_example_in_configs_is_what_the_command_writes(tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    limits = ("--max-num-seqs", "256", "--max-num-batched-tokens", "2048", "--kv-tokens", "400000")
    answer(*LOAD, *limits, "--out", str(path))
    assert path.read_text() == EXAMPLE.read_text()


def test_a_workload_gives_its_moments_and_burstiness(tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    rows = [(0.0, 100, 10), (1.0, 300, 10), (4.0, 200, 40)]
    path.write_text(
        "".join(json.dumps({"arrival_s": a, "prompt_tokens": p, "output_tokens": o}) + "\n" for a, p, o in rows)
    )
    load = load_of_workload(path)
    assert (load.prompt_tokens, load.output_tokens) == (200, 20)
    assert load.prompt_tokens_square == pytest.approx((100**2 + 300**2 + 200**2) / 3)
    assert load.rate_per_s == pytest.approx(3 / 6)  # the last arrival plus a mean gap of 2 s
    assert load.arrival_cv2 == pytest.approx((1 + 9) / 2 / 4 - 1)
    assert load_of_workload(path, rate=7.0).rate_per_s == 7.0
    assert answer("--workload", str(path), "--rate", "7")["load"]["prompt_tokens"] == 200


def test_bursts_that_no_formula_covers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    arrivals_s = [0.01 * index for index in range(99)] + [60.0]
    row = '{"arrival_s": %s, "prompt_tokens": 100, "output_tokens": 10}'
    path.write_text("\n".join(row % arrival_s for arrival_s in arrivals_s))
    (_, warning) = answer("--workload", str(path))["warnings"]
    assert warning.startswith("BURSTS: gaps between arrivals vary with cv 9.")
    assert "BURSTS" in run("--workload", str(path)).stdout


def test_the_coefficients_of_variation_set_the_second_moments() -> None:
    default = answer(*LOAD)["load"]
    assert default["prompt_tokens_square"] == pytest.approx(2 * 1000**2)
    even = answer(*LOAD, "--prompt-cv", "0", "--output-cv", "0.5")["load"]
    assert even["prompt_tokens_square"] == pytest.approx(1000**2)
    assert even["output_tokens_square"] == pytest.approx(1.25 * 200**2)


@pytest.mark.parametrize(
    ("arguments", "slo", "where", "says"),
    [
        (LOAD, "ttft 0 ms, tpot 50 ms", "--slo", "must be above zero"),
        (LOAD, "ttft 300", "--slo", "needs a unit"),
        (LOAD, "a: ttft 1 s; b: tpot 1 s", "--slo", "names 2 classes"),
        (LOAD, "target: none", "slo", "promises nothing"),
        (LOAD[:-2], SLO, "--output-tokens", "is missing"),
        (("--rate", "0", *LOAD[2:]), SLO, "--rate", "0 is not a load"),
        (("--rate", "nan", *LOAD[2:]), SLO, "--rate", "nan is not a load"),
        ((*LOAD, "--prompt-cv", "-1"), SLO, "--prompt-cv", "-1 is not a coefficient"),
        ((*LOAD, "--workload", "x.jsonl"), SLO, "--workload", "drop the options about tokens"),
        (("--workload", "nowhere.jsonl"), SLO, "nowhere.jsonl", "cannot read the workload"),
        ((*LOAD, "--kv-tokens", "600"), SLO, "kv_tokens", "do not hold one request"),
        ((*LOAD, "--out", "/proc/plans.yaml"), SLO, "--out", "cannot write"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments: tuple[str, ...], slo: str, where: str, says: str) -> None:
    error = refusal(*arguments, slo=slo)
    assert error.where == where
    assert says in f"{error.problem} ({error.remedy})"
    assert error.remedy


def test_a_profile_that_is_not_there_is_refused() -> None:
    assert "cannot read the device profile" in refusal(*LOAD, profile=Path("nowhere.yaml")).problem
