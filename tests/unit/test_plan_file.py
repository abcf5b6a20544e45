"""Plan files: what is read, what is refused and with which remedy, and that what is written can be read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.config.plan_file import (
    PLAN_FILE_VERSION,
    SHARED_PLAN,
    FilePlan,
    Load,
    PlanFile,
    Predicted,
    load_plan_file,
    plan_file_text,
)
from colocate.core.plan import SHARED
from colocate.errors import ConfigError

HEAD = "version: 1\nunits: 132\ngranularity: 8\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plans.yaml"
    path.write_text(text)
    return path


def plans(*entries: str) -> str:
    return HEAD + "plans:\n" + "".join(f"  - {{{entry}}}\n" for entry in entries)


def split(name: str, prefill: int, decode: int) -> str:
    return f"name: {name}, prefill_units: {prefill}, decode_units: {decode}"


def test_a_file_written_by_hand_needs_little(tmp_path: Path) -> None:
    path = written(tmp_path, plans(split("p84d48", 84, 48), split("shared", 132, 132)) + "best_static: p84d48\n")
    file = load_plan_file(path)
    assert [plan.name for plan in file.plans] == ["p84d48", "shared"]
    assert (file.best_static, file.device, file.prediction, file.load) == ("p84d48", "", "none", None)


def test_the_shared_plan_has_the_name_the_core_gives_it() -> None:
    assert SHARED_PLAN == SHARED


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    file = PlanFile(
        version=PLAN_FILE_VERSION,
        units=132,
        granularity=8,
        best_static="p84d48",
        device="h200",
        model="org/model",
        prediction="measured",
        slo="ttft 300 ms, tpot 50 ms",
        load=Load(10.0, 1000.0, 2.0e6, 200.0, 8.0e4, 1.5),
        plans=[FilePlan("p84d48", 84, 48, Predicted(0.0708, None, 0.00827, 0.009, 0.5, 1.25, True))],
    )
    text = plan_file_text(file, ["one", "two"])
    assert text.startswith("# one\n# two\nversion: 1\n")
    assert load_plan_file(written(tmp_path, text)) == file


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        (plans(split("p92d48", 92, 48)), "plans[0]", "oversubscribes: 92 + 48 = 140 units, the device has 132"),
        (plans(split("p84d48", 84, 48), split("x", 132, 132)), "plans[1]", "take 132 away from one phase"),
        (plans(split("p87d45", 87, 45)), "plans[0].decode_units", "45 is not a multiple of the granularity 8"),
        (plans(split("p87d45", 87, 45)), "plans[0].decode_units", "give 40 or 48"),
        (plans(split("p83d48", 83, 48)), "plans[0].prefill_units", "83 is not a multiple of the granularity 8"),
        (plans(split("p3d4", 80, 4)), "plans[0].decode_units", "give 8"),
        (plans(split("all-prefill", 132, 0)), "plans[0].decode_units", "need no entry"),
        (plans(split("all-decode", 0, 132)), "plans[0].prefill_units", "gives this phase nothing"),
        (plans(split("a", 84, 48), split("a", 84, 48)), "plans[1].name", "'a' is the name of plans[0] already"),
        (plans(split("shared", 84, 48)), "plans[0].prefill_units", "means the whole device for both phases"),
        (plans(split("a", 84, 48)) + "best_static: b\n", "best_static", "name one of: a"),
        (HEAD + "plans: []\n", "plans", "length >= 1"),
        (HEAD, "", "required field `plans`"),
        (plans("name: a, prefill_units: many, decode_units: 8"), "plans[0].prefill_units", "Expected `int`"),
        (plans("name: a, prefill_units: -8, decode_units: 8"), "plans[0].prefill_units", "`int` >= 0"),
        (plans("name: '', prefill_units: 8, decode_units: 8"), "plans[0].name", "length >= 1"),
        (plans(split("a", 84, 48)) + "color: red\n", "", "unknown field `color`"),
        (plans(split("a", 84, 48)) + "load: {rate_per_s: 0}\n", "load", "Expected"),
        (plans(split("a", 84, 48)).replace("version: 1", "version: 9"), "version", "this program reads 1"),
        ("plans: [", "", "is not YAML"),
        ("- 1\n", "", "Expected `object`"),
    ],
)
def test_a_file_that_cannot_be_served_is_refused(tmp_path: Path, text: str, where: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        load_plan_file(path)
    error = refusal.value
    if where == "load":
        assert error.where.startswith(f"{path}: load")
    else:
        assert error.where == (f"{path}: {where}" if where else str(path))
    assert says in f"{error.problem} ({error.remedy})"
    assert error.remedy


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the plan file: No such file"):
        load_plan_file(tmp_path / "nowhere.yaml")
