"""The folder of a sweep: what is done is not done again, what was cut off is put aside, another sweep is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from colocate.bench.folder import RunFolder
from colocate.bench.read import read_sweep
from colocate.bench.records import RequestRow, SweepArm
from colocate.bench.sweep.estimate import Estimate, duration, estimate_runs, estimate_search, pace_of, parse_duration
from colocate.bench.sweep.execute import estimate_left, learned_pace
from colocate.bench.sweep.failed import write_failed
from colocate.bench.sweep.journal import Journal
from colocate.bench.sweep.load import Load
from colocate.bench.sweep.order import RunSpec
from colocate.bench.sweep.plan import SweepPlan
from colocate.bench.sweep.search import Search, grid
from colocate.bench.sweep.table import sweep_table
from colocate.bench.sweep.wanted import wanted_runs
from colocate.errors import ConfigError
from colocate.workload.recipe import Recipe
from tests.bench_rows import row, run, write_run
from tests.sweep_world import make_plan

TRACE = Path(__file__).parents[2] / "benchmarks/traces/azure_llm_2023_conv.csv"


def _open(plan: SweepPlan, **how: bool) -> Journal:
    return Journal(plan.out, plan.manifest("2026-01-01T00:00:00Z", {}, {}), **how)


def _write(journal: Journal, spec: RunSpec, num_good: int, status: str = "valid", num_rows: int = 10) -> None:
    """`num_good` answers that keep the promise of a first token within a second; the others fail."""
    rows: list[RequestRow] = [row(index, 2.0 + index / 10, (2.1 + index / 10,)) for index in range(num_good)]
    rows += [row(index, 2.0 + index / 10, (), outcome="failed") for index in range(num_good, num_rows)]
    made = run(
        rows, arm=spec.arm, seed=spec.seed, offered_rate=spec.rate, status=status, run_id=spec.run_id,
        slo_classes=("chat: ttft 1 s",), figures={"whole_s": 30.0},
    )  # fmt: skip
    write_run(journal.begin(spec), made)


def test_what_is_done_is_not_wanted_again(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "s")
    with _open(plan) as journal:
        first, second, *rest = wanted_runs(plan, journal.result)
        _write(journal, first, 7)
    with _open(plan) as journal:
        assert wanted_runs(plan, journal.result) == [second, *rest]
        found = journal.result(first)
        assert found is not None and (found.status, found.good, found.offered, found.whole_s) == ("valid", 7, 10, 30.0)


@pytest.mark.parametrize("cut", ["no manifest", "half a manifest", "partial", "half a row", "a row twice"])
def test_a_run_that_was_cut_anywhere_is_put_aside_and_made_again(tmp_path: Path, cut: str) -> None:
    plan = make_plan(tmp_path / "s")
    with _open(plan) as journal:
        spec = wanted_runs(plan, journal.result)[0]
        _write(journal, spec, 7, "partial" if cut == "partial" else "valid")
        folder = journal.run_folder(spec)
        manifest, rows = folder / "manifest.json", folder / "requests.jsonl"
        if cut == "no manifest":
            manifest.unlink()
        elif cut == "half a manifest":
            manifest.write_bytes(manifest.read_bytes()[:100])
        elif cut == "half a row":
            rows.write_bytes(rows.read_bytes()[:-20])
        elif cut == "a row twice":
            rows.write_bytes(rows.read_bytes() + rows.read_bytes())
    for number in (1, 2):
        with _open(plan) as journal:
            assert wanted_runs(plan, journal.result)[0] == spec
            _write(journal, spec, 9, "partial" if number == 1 else "valid")
    assert sorted(path.name for path in (plan.out / "aside").iterdir()) == [
        f"{spec.run_id}.partial-1",
        f"{spec.run_id}.partial-2",
    ]
    with _open(plan) as journal:
        assert spec not in wanted_runs(plan, journal.result)
    assert [each.manifest.run_id for each in read_sweep(plan.out).runs] == [spec.run_id]


def test_failed_and_invalid_runs_are_done_unless_they_are_to_be_repeated(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "s")
    with _open(plan) as journal:
        first, second, third, *rest = wanted_runs(plan, journal.result)
        for spec, status in ((first, "failed"), (second, "invalid"), (third, "valid")):
            _write(journal, spec, 5, status)
    with _open(plan) as journal:
        assert wanted_runs(plan, journal.result) == rest
    with _open(plan, retry=True) as journal:
        assert wanted_runs(plan, journal.result) == [first, second, *rest]
        _write(journal, first, 5, "failed")  # once in this sitting is enough
        assert wanted_runs(plan, journal.result) == [second, *rest]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rates": (1.0, 3.0)}, "rates are 1.0, 2.0, 4.0, not 1.0, 3.0"),
        ({"rates": (1.0, 2.0, 3.0, 4.0)}, "rates are 1.0, 2.0, 4.0, not 1.0, 2.0, 3.0, 4.0"),
        ({"rates": (1.0, 2.0, 4.0, 8.0), "seeds": (0,)}, "rates are 1.0, 2.0, 4.0, not 1.0, 2.0, 4.0, 8.0; its seeds"),
        ({"seeds": (0,)}, "seeds are 0, 1, 2, not 0"),
        ({"slo_classes": ("chat: ttft 2 s",)}, "slo_classes are chat: ttft 1 s, not chat: ttft 2 s"),
        ({"model": "other"}, "model is demo, not other"),
        ({"keep_server": True}, "keep_server is False, not True"),
        ({"asked": {"serve": ["--units", "4"]}}, "serve is None, not --units, 4"),
        ({"arms": (SweepArm("shared", "dynamic", "colocate", ()),)}, "it has the arms elastic"),
        ({"load": Load(recipe=Recipe(lengths=("9/9",)), warmup_s=1.0)}, "workload is"),
    ],
)
def test_another_sweep_is_refused_with_what_differs(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    _open(make_plan(tmp_path)).close()
    with pytest.raises(ConfigError) as caught:
        _open(make_plan(tmp_path, **changes))
    assert said in str(caught.value)


def test_budget_command_and_time_may_differ(tmp_path: Path) -> None:
    _open(make_plan(tmp_path)).close()
    again = make_plan(tmp_path, budget_s=3.0, command=("colocate", "sweep", "--budget", "3"))
    Journal(tmp_path, again.manifest("2027-01-01T00:00:00Z", {"cores": 1}, {})).close()
    with pytest.raises(ConfigError, match="a sweep already"):
        _open(again, resume=False)


def test_higher_rates_go_on_where_the_others_ended(tmp_path: Path) -> None:
    plan, longer = make_plan(tmp_path), make_plan(tmp_path, rates=(1.0, 2.0, 4.0, 8.0))
    with _open(plan) as journal:
        for spec in wanted_runs(plan, journal.result):
            _write(journal, spec, 5, "valid")
    with _open(longer) as journal:
        added = wanted_runs(longer, journal.result)
    assert {spec.rate for spec in added} == {8.0}
    with _open(make_plan(tmp_path / "fresh", rates=longer.rates)) as journal:
        assert wanted_runs(longer, journal.result)[-len(added) :] == added
    with pytest.raises(ConfigError, match=r"rates are 1\.0, 2\.0, 4\.0, 8\.0, not 1\.0, 2\.0, 4\.0"):
        _open(plan)


def test_a_kept_server_takes_no_more_rates(tmp_path: Path) -> None:
    _open(make_plan(tmp_path, keep_server=True)).close()
    with pytest.raises(ConfigError, match="rates are"):
        _open(make_plan(tmp_path, keep_server=True, rates=(1.0, 2.0, 4.0, 8.0)))


def test_one_sweep_at_a_time_has_the_folder(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    with _open(plan), pytest.raises(ConfigError, match="another sweep is at work"):
        _open(plan)
    _open(plan).close()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs" / "x").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no sweep\.json"):
        _open(make_plan(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        _open(make_plan(tmp_path / "file"))


def test_a_server_that_did_not_start_is_a_failed_point_with_all_its_rows(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    with _open(plan) as journal:
        spec = wanted_runs(plan, journal.result)[0]
        workload = plan.load.at(spec.rate, spec.seed)
        write_failed(RunFolder(journal.begin(spec)), plan, spec, "colocate", workload, "ended with code 2")
        found = journal.result(spec)
    assert found is not None and (found.status, found.offered, found.reasons) == ("failed", 0, ("ended with code 2",))
    (made,) = read_sweep(plan.out).runs
    assert [each.scheduled_s for each in made.rows] == [each.arrival_s for each in workload.rows]
    assert sum(each.phase == "measured" for each in made.rows) >= 100
    assert msgspec.json.decode((made.folder / "manifest.json").read_bytes())["status"] == "failed"
    table = sweep_table(read_sweep(plan.out))
    assert str(list(table.columns[1].cells)[[arm.name for arm in plan.arms].index(spec.arm)]) == "failed"


def test_every_run_measures_its_requests() -> None:
    load = Load(recipe=Recipe(lengths=("8/8",)), min_requests=100, warmup_s=2.0, cooldown_s=1.0)
    for seed in range(5):
        made = load.at(3.0, seed)
        measured = [row for row in made.rows if 2.0 <= row.arrival_s < made.duration_s - 1.0]
        assert len(measured) >= 100 and made.duration_s >= load.duration_s(3.0)
        assert made == load.at(3.0, seed)


def test_patterns_keep_their_proportion_and_whole_periods() -> None:
    recipe = Recipe(pattern="phase-shifting", rates=(3.0, 1.0), lengths=("8/8", "16/4"), period_s=10.0)
    made = Load(recipe=recipe, min_requests=400, warmup_s=5.0).at(10.0, 0)
    assert made.duration_s % 10.0 == 0
    first = [row for row in made.rows if row.arrival_s % 10.0 < 5.0]
    assert len(first) / len(made.rows) == pytest.approx(0.75, abs=0.06)
    assert made.rate == pytest.approx(10.0, rel=0.15)


def test_a_trace_is_offered_at_each_rate_and_must_hold_enough() -> None:
    load = Load(recipe=Recipe(trace=TRACE), min_requests=50, warmup_s=1.0)
    slow, fast = load.at(2.0, 0), load.at(8.0, 0)
    assert [row.prompt_tokens for row in slow.rows[:40]] == [row.prompt_tokens for row in fast.rows[:40]]
    assert slow.rows[40].arrival_s == pytest.approx(4 * fast.rows[40].arrival_s)
    with pytest.raises(ConfigError, match="10000000 are needed"):
        Load(recipe=Recipe(trace=TRACE), min_requests=10_000_000).at(2.0, 0)


def test_the_estimate_adds_up_and_learns(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, rates=(1.0, 2.0))
    loads_s = 2 * 3 * (101.0 + 51.0)  # arms x seeds x (warm-up and a hundred requests)
    before = estimate_left(plan, lambda _: None)
    assert before == Estimate(12, loads_s + 12 * 12.0, loads_s + 12 * 12.0, loads_s + 12 * 12.0)
    with _open(plan) as journal:
        first, *rest = wanted_runs(plan, journal.result)
        write = plan.load.duration_s(first.rate)
        _write(journal, first, 5)  # it says that it took 30 s in all: less than its load, so nothing beside it
        pace = learned_pace(plan, journal.result)
        assert pace.run_s(first.arm, first.rate) == write
        assert estimate_left(plan, journal.result) == estimate_runs(pace, rest)


def test_the_estimate_of_a_search_brackets_what_it_takes(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, rates=grid(1, 8, 1.1), search=Search(0.9, 600))
    found = estimate_search(pace_of(plan), plan)
    assert found.least_s < found.likely_s < found.most_s
    assert "between" in found.words() and "between" not in estimate_left(make_plan(tmp_path), lambda _: None).words()


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("10 min", 600), ("1.5h", 5400)])
def test_times_are_read_and_written(text: str, seconds: float) -> None:
    assert parse_duration(text, "--budget") == seconds


def test_what_is_no_time_is_refused() -> None:
    for text in ("", "0", "-5", "2 days"):
        with pytest.raises(ConfigError, match="--budget"):
            parse_duration(text, "--budget")
    assert [duration(s) for s in (7.2, 89, 91, 3600, 7260)] == ["7 s", "89 s", "2 min", "60 min", "2 h 1 min"]
