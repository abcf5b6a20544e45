"""`serve --plans`: the file is in force, a change is picked up, a broken one is not, and SIGHUP reads it again."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.daemon import Daemon, eventually, start_daemon
from tests.limits import LIMIT_S

PROFILE = "configs/profiles/emulated-h200-roofline.yaml"
EXAMPLE = Path("configs/plans/emulated-h200.yaml")
ADMIN = "mellon"
DEVICE = ("--device", "emulated", "--profile", PROFILE, "--admin-key", ADMIN)


def plans_of(daemon: Daemon) -> dict[str, Any]:
    reply = httpx.get(f"{daemon.base_url}/control/plans", headers={"authorization": f"Bearer {ADMIN}"}, timeout=LIMIT_S)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def candidates_of(daemon: Daemon) -> list[str]:
    return [plan["name"] for plan in plans_of(daemon)["plans"] if plan["candidate"]]


def replace_file(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def only(path: Path, name: str) -> str:
    """The file with one of its plans, which is the best one as well."""
    lines = EXAMPLE.read_text().splitlines(keepends=True)
    start = next(index for index, line in enumerate(lines) if line.startswith(f"- name: {name}"))
    end = next(index for index in range(start + 1, len(lines)) if lines[index].startswith("- name"))
    head = [line for line in lines[: lines.index("plans:\n") + 1] if not line.startswith("best_static")]
    return "".join([*head, *lines[start:end]]) + f"best_static: {name}\n"


def test_a_plan_file_is_in_force_and_changes_are_picked_up(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    shutil.copy(EXAMPLE, path)
    with start_daemon(*DEVICE, "--plan", "slo", "--slo-class", "all: ttft 1 s, tpot 50 ms", "--plans", str(path)) as d:
        assert "roofline prior, not from a measurement: no verdict" in d.output
        shown = plans_of(d)
        assert shown["best_static"] == "p108d24"
        assert [plan["name"] for plan in shown["plans"] if plan["candidate"]] == [
            "p116d16", "p108d24", "p100d32", "p92d40", "p84d48", "p76d56", "p68d64", "p60d72",
        ]  # fmt: skip
        replace_file(path, only(path, "p84d48"))
        eventually(lambda: candidates_of(d) == ["p84d48"], what="the changed plans")
        assert plans_of(d)["best_static"] == "p84d48"
        replace_file(path, only(path, "p84d48").replace("decode_units: 48", "decode_units: 96"))
        eventually(lambda: "the plan file is broken" in d.output, what="the refusal in the log")
        assert "oversubscribes" in d.output
        assert candidates_of(d) == ["p84d48"]
        assert d.complete().status_code == 200
        # A successor starts from the file as it was at the start, and then finds the one that is there.
        replace_file(path, only(path, "p92d40"))
        d.wait_replaced("engine", d.kill("engine"))
        eventually(lambda: candidates_of(d) == ["p92d40"], what="the plans of the successor")


def test_a_hang_up_reads_the_file_again(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    shutil.copy(EXAMPLE, path)
    with start_daemon(*DEVICE, "--plan", "elastic", "--plans", str(path)) as daemon:
        said = daemon.output.count("; fall back to p108d24")
        os.kill(daemon.process.pid, signal.SIGHUP)
        eventually(lambda: daemon.output.count("; fall back to p108d24") > said, what="the plans read again")
        assert daemon.complete().status_code == 200


def test_without_a_plan_file_a_hang_up_ends_the_run() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and children inherit that
    try:
        with start_daemon() as daemon:
            os.kill(daemon.process.pid, signal.SIGHUP)
            assert daemon.wait_exit(LIMIT_S) == -signal.SIGHUP
            daemon.assert_nothing_left()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--plans", "nowhere.yaml"), "nowhere.yaml: cannot read the plan file"),
        (("--plans", str(EXAMPLE)), "device: is for h200-8b-roofline, this run has emulated device"),
        (("--profile", PROFILE, "--plans", str(EXAMPLE), "--mode", "shared"), "mode 'shared' runs no partition"),
        (("--profile", PROFILE, "--units", "64", "--plans", str(EXAMPLE)), "units: is for 132, this run has 64"),
        (("--plan", "p7d9"), "this device has no plan named 'p7d9'"),
        (("--profile", PROFILE, "--shadow", "elastc"), "this device has no plan named 'elastc'"),
    ],
)
def test_plans_that_cannot_be_served_are_refused(arguments: tuple[str, ...], says: str) -> None:
    with start_daemon("--device", "emulated", *arguments, wait=False) as daemon:
        assert daemon.wait_exit(LIMIT_S) == 2, daemon.output
        daemon.assert_nothing_left()
        assert says in daemon.output
        assert "to mend it:" in daemon.output and "Traceback" not in daemon.output
