"""Which profile the engine predicts from, and which are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from colocate.config.profile import DeviceProfile, Sample
from colocate.config.serve import DeviceSection, ModelConfigSection, SchedulerSection, ServeConfig
from colocate.core.latency import LatencyModel
from colocate.device.cpu.peaks import cpu_peaks
from colocate.device.resolve import DeviceFacts, resolve_device
from colocate.errors import ConfigError
from colocate.model.config import load_model_config
from colocate.runtime.latency_source import default_profile_path, engine_latency
from colocate.runtime.model_source import locate_model
from colocate.runtime.startup import prepare
from tests.profiling_world import TRUTH

CPU = DeviceFacts("cpu", "Some CPU (R) 9", 2, 1, (0, 1))
MODEL = load_model_config(locate_model("demo"))
FITTING = structs.replace(
    TRUTH, name=CPU.name, units=2, shares=TRUTH.shares[:1], model="demo", kind="measured", contention=[]
)


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLOCATE_CACHE_DIR", str(tmp_path / "cache"))


def write(path: Path, profile: DeviceProfile) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(profile))
    return str(path)


def latency_of(section: DeviceSection, device: DeviceFacts = CPU) -> tuple[DeviceProfile | None, list[str]]:
    notes: list[str] = []
    return engine_latency(section, device, MODEL, "demo", "float32", notes), notes


def test_the_latency_profile_comes_before_the_profile_and_that_before_the_file_found() -> None:
    found = write(default_profile_path(CPU.name, "demo"), structs.replace(FITTING, source="found"))
    assert found == "profiles/some-cpu-r-9/demo.json"
    named = write(Path("named.json"), structs.replace(FITTING, source="profile"))
    believed = write(Path("believed.json"), structs.replace(FITTING, source="latency profile"))
    for section, source in (
        (DeviceSection(profile=named, latency_profile=believed), "latency profile"),
        (DeviceSection(profile=named), "profile"),
        (DeviceSection(), "found"),
    ):
        profile, notes = latency_of(section)
        assert profile is not None and profile.source == source and not notes


@pytest.mark.parametrize(
    ("settings", "is_said"),
    [
        ({}, False),
        ({"plan": "slo"}, True),
        ({"plan": "on-demand"}, True),
        ({"shadow": "slo"}, True),
        ({"plan": "static:p2d2"}, False),
        ({"slo_class": ("chat: ttft 300 ms",)}, True),
        ({"slo_class": ("chat: itl 90 ms",)}, True),
        ({"slo_class": ("batch: none",)}, False),
        ({"mode": "shared", "slo_class": ("chat: ttft 300 ms",)}, False),
        ({"mode": "chunked", "slo_class": ("chat: ttft 300 ms",)}, False),
    ],
)
def test_a_prior_is_told_where_something_rests_on_it(settings: dict[str, Any], is_said: bool) -> None:
    for kind in ("roofline", "measured"):
        path = write(Path("p.json"), structs.replace(TRUTH, kind=kind))
        section = DeviceSection(device="emulated", profile=path)
        config = ServeConfig(device=section, scheduler=SchedulerSection(**settings))
        told = [note for note in prepare(config).notes if "roofline prior" in note]
        assert len(told) == (is_said and kind == "roofline")
        assert all("`colocate profile` measures" in note for note in told)


def test_samples_do_not_travel_to_the_processes() -> None:
    path = write(Path("p.json"), structs.replace(FITTING, samples=[Sample("decode", 1, 0, 1, 1, 1.0)]))
    profile, _ = latency_of(DeviceSection(profile=path))
    assert profile is not None and profile.samples == []


@pytest.mark.parametrize("option", ["profile", "latency_profile"])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "Other CPU"}, "is for device 'Other CPU', this is 'Some CPU"),
        ({"model": "llama"}, "is for model 'llama', this run serves 'demo'"),
        ({"units": 4}, "is for a device of 4 units, this one has 2"),
    ],
)
def test_a_named_profile_of_something_else_is_refused(option: str, change: dict[str, object], problem: str) -> None:
    path = write(Path("p.json"), structs.replace(FITTING, **change))
    with pytest.raises(ConfigError) as caught:
        latency_of(DeviceSection(**{option: path}))
    assert caught.value.where == option and problem in caught.value.problem
    assert "colocate profile" in caught.value.remedy


@pytest.mark.parametrize("content", [b"{", msgspec.json.encode(structs.replace(FITTING, model="llama"))])
def test_a_file_found_that_does_not_fit_is_left_out_with_a_note(content: bytes) -> None:
    path = default_profile_path(CPU.name, "demo")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    profile, notes = latency_of(DeviceSection())
    assert profile is not None and profile.kind == "roofline"
    assert len(notes) == 1 and str(path) in notes[0]


def test_another_dtype_is_said() -> None:
    path = write(Path("p.json"), structs.replace(FITTING, dtype="bfloat16"))
    profile, notes = latency_of(DeviceSection(profile=path))
    assert profile is not None and "bfloat16" in notes[0]


def test_the_emulated_device_believes_its_own_profile_whatever_model_it_serves() -> None:
    path = write(Path("truth.json"), structs.replace(TRUTH, model="llama-8b"))
    section = DeviceSection(device="emulated", profile=path)
    profile, _ = latency_of(section, resolve_device(section))
    assert profile is not None and (profile.name, profile.model) == (TRUTH.name, "llama-8b")


def test_the_emulated_device_can_believe_wrongly_but_not_of_another_device() -> None:
    truth = write(Path("truth.json"), TRUTH)
    wrong = write(Path("wrong.json"), structs.replace(TRUTH, source="wrong"))
    section = DeviceSection(device="emulated", profile=truth, latency_profile=wrong)
    profile, _ = latency_of(section, resolve_device(section))
    assert profile is not None and profile.source == "wrong"
    other = write(Path("other.json"), structs.replace(TRUTH, name="other"))
    section = DeviceSection(device="emulated", profile=truth, latency_profile=other)
    with pytest.raises(ConfigError, match=r"latency_profile.*'other'"):
        latency_of(section, resolve_device(section))


def test_an_emulated_device_without_a_profile_has_nothing_to_predict() -> None:
    section = DeviceSection(device="emulated")
    assert latency_of(section, resolve_device(section)) == (None, [])


def test_more_units_than_the_profile_knows_are_refused() -> None:
    truth = write(Path("truth.json"), TRUTH)
    with pytest.raises(ConfigError, match="the profile knows 4"):
        resolve_device(DeviceSection(device="emulated", profile=truth, units=5))


def test_faults_are_for_the_emulated_device_and_a_profile_is_not() -> None:
    with pytest.raises(ConfigError, match="emulated"):
        resolve_device(DeviceSection(device="cpu", faults=("decode:exit@step=1",)))
    assert resolve_device(DeviceSection(device="cpu", profile="mine.json")).kind == "cpu"


def test_without_a_profile_the_cpu_gets_a_roofline_that_says_so() -> None:
    profile, _ = latency_of(DeviceSection())
    assert profile is not None and not profile.is_measured and "not measured" in profile.source
    assert (profile.name, profile.model, profile.units) == (CPU.name, "demo", 2)
    model = LatencyModel(profile)
    assert model.prefill_s(2, 512, 512 * 256) < model.prefill_s(1, 512, 512 * 256)
    assert model.decode_s(1, 100, 1) < model.decode_s(1, 100_000, 64)


def test_peak_rates_are_measured_once(tmp_path: Path) -> None:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    peaks = cpu_peaks("cpu", cores, tmp_path)
    assert peaks is not None and peaks.flops_per_s > 1e8 and peaks.bytes_per_s > 1e8
    assert peaks.saturating_cores >= 1
    assert cpu_peaks("cpu", cores, tmp_path) == peaks  # two measurements are never equal to the last digit


def test_a_spoilt_cache_and_one_that_cannot_be_written_are_no_reason_to_stop(tmp_path: Path) -> None:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    (tmp_path / "file").write_text("in the way")
    assert cpu_peaks("cpu", cores, tmp_path / "file") is not None
    cpu_peaks("cpu", cores, tmp_path)
    (cached,) = tmp_path.glob("peaks-*.json")
    cached.write_text("{")
    assert cpu_peaks("cpu", cores, tmp_path) is not None
    assert cached.read_text() != "{"


def test_startup_hands_the_latency_model_to_every_process() -> None:
    truth = write(Path("truth.json"), TRUTH)
    config = ServeConfig(device=DeviceSection(device="emulated", profile=truth), model=ModelConfigSection())
    assert prepare(config).facts.latency == TRUTH
