"""How to repeat it: commands, machine and versions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from colocate.bench.report.collect import Evidence
from colocate.bench.report.model import Cell, Column, Section, Table
from colocate.bench.report.words import listed, number

_MAX_COMMANDS = 12
_LISTED = 4


def reproduce_section(evidence: Evidence) -> Section:
    """The commands that made the runs, those of one server per arm, and what the manifests tell of the machine."""
    sweeps = [command_text(sweep.command) for sweep in evidence.sweeps if sweep.command]
    runs = dict.fromkeys(
        command_text(view.run.manifest.command) for view in evidence.views if view.run.manifest.command
    )
    started = [view.run.manifest for view in reversed(evidence.views) if view.run.manifest.target.command]
    servers = {manifest.arm: command_text(manifest.target.command) for manifest in started}
    lead = [
        "Each run folder holds manifest.json (versions, settings, seeds, hash of the workload) and requests.jsonl (one "
        "row per offered request), from which every figure here is made."
    ]
    if servers:
        lead.append("Below the commands that measured: one server of each arm, as it was started.")
    if not sweeps and len(runs) > _MAX_COMMANDS:
        lead.append(f"The first {_MAX_COMMANDS} of {len(runs)} commands; the others stand in the manifests.")
    rows = tuple((Cell(text=name), Cell(text=value)) for name, value in _facts(evidence).items())
    facts = Table("machine", "Machine of the client, as its manifests tell.", (Column("what"), Column("value")), rows)
    code = sweeps or list(runs)[:_MAX_COMMANDS]
    code += [servers[arm.name] for arm in evidence.arms if arm.name in servers][:_MAX_COMMANDS]
    return Section("reproduce", "How to reproduce", tuple(lead), (), (facts,), (), tuple(code))


def command_text(command: Sequence[str]) -> str:
    """As typed, but for the folder that the results went to: its place says nothing to a reader elsewhere."""
    words = list(command)
    for i, word in enumerate(words[:-1]):
        if word in ("--out", "-o"):
            words[i + 1] = words[i + 1].rstrip("/").rpartition("/")[2]
    return shlex.join(words)


def _facts(evidence: Evidence) -> dict[str, str]:
    found: dict[str, dict[object, None]] = {}

    def add(name: str, value: object) -> None:
        if value not in (None, "", (), {}):
            found.setdefault(name, {})[value] = None

    for view in evidence.views:
        manifest = view.run.manifest
        for source, prefix in ((manifest.host, ""), (manifest.git, "git ")):
            for name, value in source.items():
                if name.endswith("_bytes") and isinstance(value, int | float):
                    add(name.removesuffix("_bytes").replace("_", " "), f"{number(value / 2**30)} GiB")
                elif isinstance(value, str | int | float):
                    add(prefix + name.replace("_", " "), value)
        add(f"system {manifest.target.system}", manifest.target.version or "version not told")
        add("model", manifest.target.model)
        add("device", manifest.target.device)
        add("workload", f"{manifest.workload}, SLO {'; '.join(manifest.slo_classes) or 'none'}")
    return {_NAMES.get(name, name): _values(list(values)) for name, values in found.items()}


_NAMES = {
    "client cores": "cores busy with the client",
    "server cores": "cores busy with the server",
    "other cores": "cores busy with others",
}


def _values(values: list[object]) -> str:
    """Measured once per run: from least to most. What was told: each of them."""
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) == len(values) > 1:
        return f"{number(min(numbers))} to {number(max(numbers))}"
    return listed([("yes" if value else "no") if isinstance(value, bool) else str(value) for value in values], _LISTED)
