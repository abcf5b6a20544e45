"""Which GPU, how many SMs, and between which splits: on the fake device, which is asked as a real one is."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.config.serve import DeviceSection
from colocate.core.plan import build_plan_table, shares_named, spread_shares
from colocate.device.cuda.facts_probe import main as probe
from colocate.device.gpu_probe import probe_gpu
from colocate.device.resolve import resolve_device
from colocate.errors import ConfigError
from tests.limits import LIMIT_S


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("COLOCATE_FAKE_CUDA", "1")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    return monkeypatch


def test_the_device_is_described_by_a_process_that_ends(fake: pytest.MonkeyPatch) -> None:
    fake.setenv("COLOCATE_FAKE_CUDA_BYTES", str(8 << 30))
    facts = resolve_device(DeviceSection(device="cuda"))
    assert (facts.kind, facts.total_units, facts.unit_granularity, facts.unit_ids) == ("cuda", 132, 8, ())
    assert facts.decode_shares == (16, 24, 32, 40, 48, 64, 80, 96)
    assert (facts.total_bytes, facts.free_bytes, facts.index) == (8 << 30, 8 << 30, 0)


def test_other_sizes_get_shares_of_their_own(fake: pytest.MonkeyPatch) -> None:
    fake.setenv("COLOCATE_FAKE_CUDA_SMS", "66")
    facts = resolve_device(DeviceSection(device="cuda"))
    assert facts.decode_shares == (8, 16, 24, 32, 40, 48)
    table = build_plan_table(facts.total_units, facts.unit_granularity, facts.decode_shares)
    assert [plan.name for plan in table.plans][:2] == ["p58d8", "p50d16"]


@given(st.integers(1, 300), st.sampled_from([1, 2, 4, 8]))
def test_spread_shares_are_legal_on_any_device(total_units: int, granularity: int) -> None:
    shares = spread_shares(total_units, granularity)
    assert len(shares) <= 8 and list(shares) == sorted(set(shares))
    assert bool(shares) == (total_units // granularity > 1)
    table = build_plan_table(total_units, granularity, shares)
    assert tuple(plan.decode_units for plan in table.plans if plan.is_split) == shares
    assert table.by_name(table.default_split).is_split == bool(shares)


def test_armed_splits_are_named_and_a_wrong_name_is_told_the_right_ones(fake: pytest.MonkeyPatch) -> None:
    assert resolve_device(DeviceSection(device="cuda", arm=("p92d40", "p116d16", "p92d40"))).decode_shares == (16, 40)
    for wrong in ("p90d42", "shared", "p92d41", "d40"):
        with pytest.raises(ConfigError, match=rf"no split named '{wrong}' \(choose among: p124d8, .*p12d120\)"):
            resolve_device(DeviceSection(device="cuda", arm=(wrong,)))


def test_every_kind_of_device_can_be_armed() -> None:
    assert resolve_device(DeviceSection(device="emulated", arm=("p92d40",))).decode_shares == (40,)
    assert resolve_device(DeviceSection(device="emulated")).decode_shares == ()
    with pytest.raises(ConfigError, match="cannot be split at all"):
        shares_named(("p0d1",), 1, 1)


def test_armed_tables_keep_only_what_was_armed() -> None:
    table = build_plan_table(132, 8, (40, 16, 40))
    assert [plan.name for plan in table.plans] == ["p116d16", "p92d40", "all-prefill", "all-decode", "shared"]
    assert table.default_split == "p92d40"
    assert build_plan_table(132, 8, (96,)).default_split == "p36d96"
    with pytest.raises(ConfigError, match="42 units cannot be a decode share of 132 in steps of 8"):
        build_plan_table(132, 8, (40, 42))


def test_units_and_faults_are_refused_for_a_gpu(fake: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="always partitioned as a whole"):
        resolve_device(DeviceSection(device="cuda", units=64))
    with pytest.raises(ConfigError, match="emulated"):
        resolve_device(DeviceSection(device="cuda", faults=("decode:exit@step=1",)))


def test_a_gpu_that_is_not_there_is_told_with_the_driver_s_code(fake: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"CUDA_ERROR_INVALID_DEVICE \(101\) \(see colocate doctor"):
        resolve_device(DeviceSection(device="cuda", gpu=3))
    assert probe(3).facts is None


def test_auto_never_takes_the_fake_device(fake: pytest.MonkeyPatch) -> None:
    assert resolve_device(DeviceSection()).kind != "cuda" or probe_gpu().names


def test_without_a_gpu_the_reason_is_told() -> None:
    if not probe_gpu().problem:
        pytest.skip("this machine has a GPU")
    notes: list[str] = []
    assert resolve_device(DeviceSection(), notes).kind == "cpu"
    assert notes == [], "there is nothing to explain where there is no GPU"
    with pytest.raises(ConfigError) as caught:
        resolve_device(DeviceSection(device="cuda"))
    assert caught.value.problem == probe_gpu().problem
    assert caught.value.remedy == "use --device cpu, or --device auto"


def test_resolving_the_cpu_loads_nothing_of_a_gpu() -> None:
    code = (
        "import sys\n"
        "from colocate.config.serve import DeviceSection\n"
        "from colocate.device.resolve import resolve_device\n"
        "resolve_device(DeviceSection(device='cpu'))\n"
        "print([name for name in ('torch', 'triton', 'cuda', 'pynvml') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert done.stdout.strip() == "[]"
