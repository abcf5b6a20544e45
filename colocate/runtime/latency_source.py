"""Where the engine's latency model comes from: a measured profile if there is one, else a prior.

1. `--latency-profile FILE`
2. `--profile FILE`
3. `profiles/<device>/<model>.json` under the current directory, where `colocate profile` writes by default
4. the roofline prior from the device's peak rates (CPU: measured, a fifth of a second, once per machine)

A file that was named must fit. One that was only found and does not is left out with a note. The emulated device has no
peak rates: without a profile it takes no time, and there is nothing to predict.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import structs

from colocate.config.profile import DeviceProfile, check_profile_fits, load_profile
from colocate.config.serve import DeviceSection
from colocate.core.latency import roofline_profile
from colocate.device.cpu.peaks import cpu_peaks
from colocate.device.resolve import DeviceFacts
from colocate.errors import ConfigError
from colocate.model.config import ModelConfig
from colocate.model.layout import WeightLayout
from colocate.model.native import cache_directory

PROFILES = Path("profiles")


def default_profile_path(device_name: str, model_name: str) -> Path:
    """Relative to the current directory: `profiles/amd-epyc/demo.json`."""
    return PROFILES / _slug(device_name) / f"{_slug(model_name)}.json"


def engine_latency(
    section: DeviceSection, device: DeviceFacts, model: ModelConfig, model_name: str, dtype: str, notes: list[str]
) -> DeviceProfile | None:
    """Without samples. Raises ConfigError where a profile that was named is of another device or model; what the
    operator should know goes to `notes`."""
    profile = _named(section, device, model_name) or _found(device, model_name, notes)
    if profile is not None:
        if profile.dtype and profile.dtype != dtype:
            notes.append(f"the latency profile was measured with {profile.dtype}, this run computes in {dtype}")
        return structs.replace(profile, samples=[])
    return _roofline(device, model, model_name, dtype, notes) if device.kind == "cpu" else None


def _named(section: DeviceSection, device: DeviceFacts, model_name: str) -> DeviceProfile | None:
    own = load_profile(Path(section.profile)) if section.profile else None
    if section.latency_profile:
        profile = load_profile(Path(section.latency_profile))
        _check_named(profile, "latency_profile", device, own, model_name)
        return profile
    if own is not None and device.kind != "emulated":
        _check_named(own, "profile", device, own, model_name)
    return own


def _check_named(
    profile: DeviceProfile, where: str, device: DeviceFacts, own: DeviceProfile | None, model_name: str
) -> None:
    """An emulated device is whatever its own profile says it is; the model it serves only brings the tokenizer."""
    if device.kind != "emulated":
        check_profile_fits(profile, where, device.total_units, device.name, model_name)
    elif own is None:
        check_profile_fits(profile, where, device.total_units, None, None)
    else:
        check_profile_fits(profile, where, own.units, own.name, own.model or None)


def _found(device: DeviceFacts, model_name: str, notes: list[str]) -> DeviceProfile | None:
    path = default_profile_path(device.name, model_name)
    if device.kind == "emulated" or not path.is_file():
        return None
    try:
        profile = load_profile(path)
        check_profile_fits(profile, str(path), device.total_units, device.name, model_name)
    except ConfigError as error:
        notes.append(f"{path} is not used: {error.problem}")
        return None
    return profile


def _roofline(
    device: DeviceFacts, model: ModelConfig, model_name: str, dtype: str, notes: list[str]
) -> DeviceProfile | None:
    peaks = cpu_peaks(device.name, device.unit_ids, cache_directory())
    if peaks is None:
        notes.append("latency: this machine's peak rates could not be measured; nothing is predicted")
        return None
    weight_bytes = WeightLayout.of(model, dtype).nbytes
    return roofline_profile(
        device=device.name,
        model=model_name,
        units=device.total_units,
        granularity=device.unit_granularity,
        num_layers=model.num_layers,
        hidden_size=model.q_size,
        num_parameters=model.num_params,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token(dtype),
        flops_per_s=peaks.flops_per_s,
        bytes_per_s=peaks.bytes_per_s,
        saturating_units=min(device.total_units, peaks.saturating_cores),
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"
