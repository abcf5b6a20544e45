"""`colocate doctor --device cuda --json`, whole, and the targets that it proves."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.targets import target_rows


def run(setting: Setting, sheet: Sheet) -> None:
    command = [sys.executable, "-m", "colocate", "doctor", "--device", "cuda", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sheet.put("exit_code", done.returncode)
    sheet.put("errors", done.stderr[-4000:])
    report = json.loads(done.stdout)
    sheet.put("report", report)
    checks = list(checks_of(report))
    for check in checks:
        print(f"{check['status']:11} {check.get('title') or check['name']}: {check.get('detail', '')}")
        if check.get("remedy"):
            print(f"{'':11} {check['remedy']}")
    sheet.put("targets", target_rows(measured(checks)))
    if done.returncode != 0:
        raise RuntimeError(f"co-location cannot be in force here: the doctor ended with {done.returncode}")


def checks_of(report: Any) -> Iterator[dict[str, Any]]:
    """Every check, wherever in the report it stands."""
    if isinstance(report, dict):
        if "status" in report and "name" in report:
            yield report
        for value in report.values():
            yield from checks_of(value)
    elif isinstance(report, list):
        for value in report:
            yield from checks_of(value)


def measured(checks: list[dict[str, Any]]) -> dict[str, tuple[float, float | None]]:
    """What the checks' figures say of the targets; a check that did not run says nothing.

    Switch and hand-over are of small probes here; sections that measure them under load come later and count instead.
    """
    data = {check["name"]: check.get("data", {}) for check in checks}
    found: dict[str, tuple[float, float | None]] = {}
    if plans := data.get("disjoint", {}).get("plans"):
        found["sm-overlap"] = (float(sum(len(plan["shared"]) for plan in plans.values())), 0.0)
    if splits := data.get("concurrent", {}).get("splits"):
        worst = min(statistics.median(run["concurrency"] for run in runs) for runs in splits.values())
        found["concurrency"] = (worst, 1.0)
    if switch := data.get("switch"):
        found["switch-host"] = (switch["host_us"]["p99"] / 1e6, 0.0)
        found["switch-device"] = (switch["device_us"]["p99"] / 1e6, 0.0)
    if hand_over := data.get("hand_over", {}).get("us"):
        found["hand-over"] = (hand_over["p99"] / 1e6, 0.0)
    return found
