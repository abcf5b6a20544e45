"""A profile file as it is read and shown: what is refused and how to mend it, and what is not worth a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs
from rich.console import Console

from colocate.config.profile import NoiseProfile, ShareProfile, load_profile
from colocate.errors import ConfigError
from colocate.runtime.profiling.show import show_profile
from tests.sim.devices import DEVICE

FIRST, SECOND = DEVICE.shares[:2]


@pytest.mark.parametrize(
    ("changes", "where", "says", "remedy"),
    [
        ({"shares": [SECOND, FIRST]}, ": shares", "without repetition, are 4, 2", "sort them"),
        ({"shares": [FIRST, FIRST]}, ": shares", "without repetition, are 2, 2", "keep one of each"),
        (
            {"shares": [FIRST, ShareProfile(16, FIRST.prefill, FIRST.decode)]},
            ": shares",
            "name 16 units of a device that has 8",
            "drop the shares over 8",
        ),
        ({"version": 99}, ": version", "profile version 99", "colocate profile"),
    ],
)
def test_a_wrong_profile_is_refused_with_a_remedy(
    tmp_path: Path, changes: dict[str, Any], where: str, says: str, remedy: str
) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(msgspec.json.encode(structs.replace(DEVICE, **changes)))
    with pytest.raises(ConfigError, match=says) as refused:
        load_profile(path)
    assert refused.value.where == f"{path}{where}" and remedy in refused.value.remedy


@pytest.mark.parametrize(
    ("noise", "line"),
    [
        (NoiseProfile(sigma=0.02), "noise of repeats: sigma 2.0%"),
        (
            NoiseProfile(sigma=0.02, tail_probability=0.01, tail_factor=3),
            "noise of repeats: sigma 2.0%; 1.00% of the repeats take 3.0 times as long",
        ),
    ],
)
def test_a_tail_is_shown_where_there_is_one(noise: NoiseProfile, line: str) -> None:
    console = Console(width=120)
    with console.capture() as shown:
        show_profile(structs.replace(DEVICE, noise=noise), console)
    assert line in shown.get().splitlines()
