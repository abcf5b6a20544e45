"""A small made-up device, quick to reason about: no noise unless a test asks for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from colocate.config.profile import Coefficients, ContentionProfile, DeviceProfile, ShareProfile
from colocate.config.slo import SloClass
from colocate.sim.settings import SimSettings
from colocate.workload.rows import Workload, WorkloadRow, make_workload

DEVICE = DeviceProfile(
    name="made-up",
    source="made up for tests",
    units=8,
    granularity=2,
    num_layers=4,
    shares=[
        ShareProfile(units, Coefficients(4e-4 / units, 1e-7 / units, 2e-3), Coefficients(1e-7, 1e-4, 4e-3))
        for units in (2, 4, 6, 8)
    ],
    contention=[ContentionProfile(4, 4, 1.1, 1.2), ContentionProfile(8, 8, 1.5, 2.0)],
    kv_tokens=20_000,
    kind="measured",
)
CHAT = SloClass("chat", ttft_s=0.5, tpot_s=0.02)


def exact(**changes: Any) -> SimSettings:
    """A device that is its formula."""
    return replace(SimSettings(profile=DEVICE, truth_error=0.0, slo_classes=(CHAT,), max_num_seqs=32), **changes)


def rows_of(*rows: tuple[float, int, int]) -> Workload:
    return make_workload("rows", [WorkloadRow(*row) for row in rows])


def profile_file(path: Path, **changes: Any) -> Path:
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(DEVICE, **changes)))
    return path
