"""Cores this process may use, read from files as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colocate.device.cpu.topology import Topology, cpu_quota, parse_cpu_list, usable_cores
from colocate.errors import ConfigError


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_cpu_lists() -> None:
    assert parse_cpu_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_cpu_list("5") == {5}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "300000 100000",
            },
            2.0,  # the parent is tighter
        ),
        ({"proc/self/cgroup": "0::/not/mounted\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": "3:memory:/x\n2:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
    ],
)
def test_cgroup_quotas(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(tree(tmp_path, files)) == quota


def test_siblings_are_left_out(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("needs two cores to pretend that they are siblings")
    first, second = allowed[:2]
    place = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    pair = f"{first},{second}\n"
    topology = usable_cores(tree(tmp_path, {place.format(first): pair, place.format(second): pair}))
    assert first in topology.core_ids and topology.smt_siblings == (second,)


def test_a_quota_leaves_cores_out_but_never_all(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000"})
    topology = usable_cores(root)
    assert len(topology.core_ids) == 1 and topology.quota_cores == 0.5
    assert set(topology.core_ids) | set(topology.over_quota) == os.sched_getaffinity(0)


def test_this_machine_has_a_core() -> None:
    topology = usable_cores()
    assert topology.core_ids and set(topology.core_ids) <= os.sched_getaffinity(0)


def test_selecting_cores() -> None:
    topology = Topology((0, 2, 4), smt_siblings=(1, 3, 5), over_quota=(6,), quota_cores=3.5)
    assert topology.select(None) == (0, 2, 4)
    assert topology.select(2) == (0, 2)
    for wrong in (0, -1, 4):
        with pytest.raises(ConfigError, match=r"device\.units.*3 core\(s\): 0, 2, 4; 3 more are SMT.*quota of 3\.5"):
            topology.select(wrong)
