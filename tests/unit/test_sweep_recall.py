"""Recall after a sweep: what is asked of whom, and once. Servers are started for real; what answers is no model."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.bench.read import read_sweep
from colocate.bench.records import RecallRecord, SweepArm
from colocate.bench.sweep.arms import Grounds, resolve_arms
from colocate.bench.sweep.execute import SweepRunner
from colocate.bench.sweep.journal import Journal
from colocate.bench.sweep.plan import RecallPlan, SweepPlan
from colocate.bench.sweep.recall import RecallRound, check_recall, recall_plan, without, words_of_recall
from colocate.bench.systems.colocate import Colocate
from colocate.config.settings import SETTINGS
from colocate.errors import ConfigError
from tests.recall_server import recall_system
from tests.sweep_world import make_plan

GROUNDS = Grounds(static_plans=("p1d1",), max_num_seqs=64)
SERVE = ("--units", "2", "--max-model-len", "512", "--profile", "other.json", "--no-prefix-caching",
         "--dtype", "float32", "--deterministic", "--max-queue", "4", "--load-format", "dummy",
         "--revision", "main")  # fmt: skip


def test_the_embedded_model_is_asked_under_the_flags_of_the_arm() -> None:
    arms = resolve_arms(["static", "chunked:32", "slo+discipline=edf+latency-profile=other.json"], GROUNDS)
    peer = SweepArm("vllm", "peer", "vllm", ())
    plan = recall_plan(50, (*arms, peer), Colocate("models/other", SERVE, 60.0))
    assert plan is not None and plan.num_questions == 50
    assert [(arm.name, arm.flags) for arm in plan.arms] == [
        ("static:p1d1", ("--mode", "colocated", "--plan", "static:p1d1")),
        ("chunked:32", ("--mode", "chunked", "--max-num-batched-tokens", "32", "--max-num-seqs", "32")),
        (arms[2].name, ("--mode", "colocated", "--plan", "slo", "--discipline", "edf")),
    ]
    kept = ("--units", "2", "--no-prefix-caching", "--dtype", "float32", "--deterministic")
    assert plan.system == Colocate("demo", kept, 60.0)


def test_what_was_made_for_the_embedded_model_stays_with_it() -> None:
    arms = resolve_arms(["slo"], GROUNDS)
    plan = recall_plan(8, arms, Colocate("demo", SERVE))
    assert plan is not None and isinstance(plan.system, Colocate)
    kept = ("--units", "2", "--profile", "other.json", "--no-prefix-caching", "--dtype", "float32", "--deterministic")
    assert plan.system.flags == (*kept, "--revision", "main")


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_any_setting_may_be_left_out_or_stand_beside_one_that_is(name: str) -> None:
    flag = SETTINGS[name].flag
    if SETTINGS[name].kind is bool:
        assert without((flag, "--units", "2", f"--no-{flag[2:]}"), ("units",)) == (flag, f"--no-{flag[2:]}")
    else:
        assert without((flag, "--units", "--deterministic"), (name,)) == ("--deterministic",)


def test_refusals() -> None:
    arms, ours = resolve_arms(["shared"], GROUNDS), Colocate("models/other")
    check_recall(0, "demo", "emulated", {})
    assert recall_plan(0, arms, ours) is None
    with pytest.raises(ConfigError, match="emulated device draws its tokens from a formula"):
        check_recall(8, "demo", "emulated", {})
    with pytest.raises(ConfigError, match="cannot be -1"):
        check_recall(-1, "demo", "cpu", {})
    with pytest.raises(ConfigError, match=r"COLOCATE_PROFILE: would hold for the embedded model.*give it as --profile"):
        check_recall(8, "models/other", "cpu", {"COLOCATE_PROFILE": "other.json"})
    check_recall(8, "demo", "cpu", {"COLOCATE_PROFILE": "demo.json", "COLOCATE_UNITS": "2"})
    with pytest.raises(ConfigError, match=r"shared\+device=emulated: the emulated device"):
        recall_plan(8, resolve_arms(["shared+device=emulated"], GROUNDS), ours)
    with pytest.raises(ConfigError, match="has no arm to ask"):
        recall_plan(8, (SweepArm("vllm", "peer", "vllm", ()),), ours)


def _plan(out: Path, num_questions: int = 6, **flags: tuple[str, ...]) -> SweepPlan:
    arms = tuple(SweepArm(name.replace("_", ":"), "dynamic", "colocate", words) for name, words in flags.items())
    recall = RecallPlan(arms=arms, system=recall_system(), num_questions=num_questions)
    return make_plan(out, arms, recall=recall)


def _ask(
    plan: SweepPlan, left_s: float | None = None, *, retry: bool = False
) -> tuple[list[str], dict[str, int], bool]:
    """Lines that were said, right answers by arm, and whether all is done."""
    said: list[str] = []
    with Journal(plan.out, plan.manifest("2026-01-01T00:00:00Z", {}, {})):
        found = RecallRound(plan, said.append, retry=retry).ask(left_s)
    return said, {record.arm: record.right for record in found.records}, found.is_whole


def test_each_arm_is_asked_once_and_what_it_said_is_kept(tmp_path: Path) -> None:
    plan = _plan(tmp_path / "s", slo=(), chunked_32=("--wrong", "2"))
    said, right, is_whole = _ask(plan)
    assert right == {"slo": 6, "chunked:32": 4} and is_whole
    assert said[0].startswith("recall of slo: 6 of 6 right; ")
    assert said[1].startswith("recall of chunked:32: 4 of 6 right, not all: what it computes may be wrong; ")
    found = {record.arm: record for record in read_sweep(plan.out).recalls}
    assert set(found) == {"slo", "chunked:32"}
    record = found["chunked:32"]
    assert (record.model, record.right, record.asked, record.pairs, record.failure) == ("demo", 4, 6, 16, "")
    assert record.command[-2:] == ("--wrong", "2")
    names = sorted(path.name for path in (plan.out / "recall").iterdir())
    assert names == ["chunked-32.json", "chunked-32.log", "slo.json"]

    before = {path: path.stat().st_mtime_ns for path in (plan.out / "recall").iterdir()}
    assert _ask(plan) == ([], right, True)
    assert {path: path.stat().st_mtime_ns for path in (plan.out / "recall").iterdir()} == before
    fewer = _plan(plan.out, 5, slo=(), chunked_32=("--wrong", "2"))
    assert _ask(fewer) == ([], right, True)
    said, right, _ = _ask(_plan(plan.out, 7, slo=(), chunked_32=("--wrong", "2")))
    assert len(said) == 2 and right == {"slo": 7, "chunked:32": 5}


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1}', b'{"schema_version": 2}'])
def test_a_record_that_cannot_be_read_is_made_again(tmp_path: Path, content: bytes) -> None:
    plan = _plan(tmp_path / "s", slo=())
    (plan.out / "recall").mkdir(parents=True)
    (plan.out / "recall" / "slo.json").write_bytes(content)
    assert len(read_sweep_unreadable(plan)) == 1
    said, right, _ = _ask(plan)
    assert len(said) == 1 and right == {"slo": 6}
    assert read_sweep_unreadable(plan) == []


def read_sweep_unreadable(plan: SweepPlan) -> list[str]:
    with Journal(plan.out, plan.manifest("2026-01-01T00:00:00Z", {}, {})):
        return [lost.problem for lost in read_sweep(plan.out).unreadable]


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--broken", "ended with code 1 before it was ready:\nthere is no such plan"),
        ("--mute", "no question was answered: mute"),
        ("--dies", "was not ready any more after 6 questions, of which 1 "),
    ],
)
def test_a_server_that_fails_is_a_record_that_says_so(tmp_path: Path, flag: str, why: str) -> None:
    plan = _plan(tmp_path / "s", elastic=(flag,), slo=())
    said, right, is_whole = _ask(plan)
    assert right == {"elastic": 0, "slo": 6} and not is_whole
    assert said[0].startswith("recall of elastic: failed: ") and "slo: 6 of 6" in said[1]
    failed, _ = read_sweep(plan.out).recalls
    assert (failed.right, failed.asked) == (0, 0) and why in failed.failure
    assert (plan.out / "recall" / "elastic.log").exists()
    assert _ask(plan) == ([], right, False)
    mended = _plan(plan.out, elastic=(flag,), slo=())
    said, _, _ = _ask(mended, retry=True)
    assert len(said) == 1 and "elastic" in said[0]


def test_the_budget_leaves_arms_out_and_the_same_command_asks_them(tmp_path: Path) -> None:
    plan = _plan(tmp_path / "s", elastic=(), slo=())
    assert RecallRound(plan, print).words() == ", then recall of 2 arms, about 25 s"
    assert _ask(plan, 1.0) == ([], {}, False)
    assert not (plan.out / "recall").exists()
    _, right, is_whole = _ask(plan, 600.0)
    assert right == {"elastic": 6, "slo": 6} and is_whole
    assert RecallRound(plan, print).words() == ""


def test_runs_leave_time_for_what_comes_after_them(tmp_path: Path) -> None:
    """Nothing could be started here: the plan names no system."""
    plan = make_plan(tmp_path / "s", budget_s=200.0)
    with Journal(plan.out, plan.manifest("2026-01-01T00:00:00Z", {}, {})) as journal:
        runner = SweepRunner(plan, journal, print, reserve_s=199.0)
        assert runner.run().num_left == 18


def test_a_sweep_that_is_done_may_be_asked(tmp_path: Path) -> None:
    without_recall = make_plan(tmp_path / "s", ("elastic",))
    Journal(without_recall.out, without_recall.manifest("2026-01-01T00:00:00Z", {}, {})).close()
    plan = make_plan(tmp_path / "s", ("elastic",), recall=_plan(tmp_path / "s", elastic=()).recall)
    assert _ask(plan)[1] == {"elastic": 6}
    said: list[str] = []
    assert RecallRound(without_recall, said.append).ask().is_whole and not said


def test_a_disk_that_does_not_take_it_ends_the_sweep(tmp_path: Path) -> None:
    plan = _plan(tmp_path / "s", slo=())
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "recall").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        _ask(plan)


def test_words() -> None:
    record = RecallRecord(1, "slo", "demo", 0, 0, 16, 0, (), "2026", "ended with code 2:\n  at line 3\nno such plan")
    assert words_of_recall(record) == "recall of slo: failed: ended with code 2: no such plan"
