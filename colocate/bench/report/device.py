"""What was measured, in words: CPU cores, an emulated device, a simulated one, or a GPU. It stands in the first
sentence of every report, because a figure of one says nothing of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from colocate.bench.records import RunManifest
from colocate.bench.report.words import listed


def device_words(manifests: Sequence[RunManifest]) -> str:
    """Of all runs, each kind once. Servers that do not tell count as on the device of those that do, if the client's
    machine is the same; if nobody tells, that is what it says."""
    told = dict.fromkeys(words for manifest in manifests if (words := _told(manifest)))
    if told:
        return listed(list(told))
    hosts = dict.fromkeys(_host(manifest) for manifest in manifests)
    return f"a device that the server did not name; the client ran on {listed(list(hosts))}"


def is_emulated(manifest: RunManifest) -> bool:
    """Whether device times come from a profile and tokens from a formula."""
    facts = manifest.target.settings.get("device")
    return isinstance(facts, Mapping) and facts.get("kind") in ("emulated", "simulated")


def _told(manifest: RunManifest) -> str:
    target = manifest.target
    facts = target.settings.get("device")
    kind, name, units = "", target.device, None
    if isinstance(facts, Mapping):
        kind, name, units = str(facts.get("kind") or ""), str(facts.get("name") or name), facts.get("units")
    if not kind and not name:
        return ""
    text = f"{kind} {name}".lower()
    if "simulat" in text:
        return f"a simulated device ({name}): no process ran"
    if "emulat" in text:
        return f"an emulated device ({_with_units(name, units, 'units')}): times come from a profile, not from hardware"
    if "fake" in text:
        return f"a fake CUDA driver ({name}): no GPU was there"
    if kind == "cuda" or any(word in text for word in ("nvidia", "cuda", "gpu")):
        return f"a GPU ({_with_units(name, units, 'SMs')})"
    if kind == "cpu" or "cpu" in text:
        return f"{units} CPU cores ({name})" if units else f"CPU cores ({name})"
    return f"a device named {name}"


def _with_units(name: str, units: object, word: str) -> str:
    return f"{name}, {units} {word}" if units else name


def _host(manifest: RunManifest) -> str:
    cores, processor = manifest.host.get("cores", "an unknown number of"), manifest.host.get("processor", "unknown")
    return f"{cores} cores of {processor}"
