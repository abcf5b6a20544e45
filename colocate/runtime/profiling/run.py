"""`colocate profile` from settings to exit code: measure, fit, write, say how good it is."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from colocate import __version__
from colocate.config.profile import DeviceProfile
from colocate.config.serve import ServeConfig
from colocate.core.plan import build_plan_table
from colocate.device.cpu.memory import available_bytes
from colocate.errors import ConfigError
from colocate.messages.spec import ProfilingJob
from colocate.model.config import load_model_config
from colocate.model.layout import KVLayout
from colocate.runtime.daemon import run_measuring
from colocate.runtime.latency_source import default_profile_path
from colocate.runtime.model_source import model_label
from colocate.runtime.profiling.journal import Visit, header_of, read_journal, refuse_other
from colocate.runtime.profiling.schedule import all_setups, size_states, size_visit_s
from colocate.runtime.startup import Startup


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """`out` None: `profiles/<device>/<model>.json` under the current directory. The seed of states, their order and the
    held-out ones is the configuration's."""

    budget_s: float
    out: Path | None = None
    resume: bool = True
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """`profile` is None where the run ended before its budget did; then `journal` holds what it has measured."""

    exit_code: int
    out: Path
    journal: Path
    profile: DeviceProfile | None
    spent_s: float = 0.0


def run_profile(config: ServeConfig, request: ProfileRequest) -> Outcome:
    """Raises ConfigError where a start is refused, where an interrupted run of other options is in the way, or where
    the budget was too small to fit anything."""
    out = Path()

    def job_for(startup: Startup) -> ProfilingJob:
        nonlocal out
        facts = startup.facts
        out = request.out or default_profile_path(facts.device_name, model_label(config.model.model))
        num_setups = len(all_setups(startup.plans))
        num_states = size_states(request.budget_s, num_setups)
        job = ProfilingJob(
            journal=str(journal_of(out).absolute()),
            budget_s=request.budget_s,
            num_states=num_states,
            visit_s=size_visit_s(request.budget_s, num_setups * num_states),
            seed=config.model.seed,
            temperature=request.temperature,
        )
        _clear_way(journal_of(out), out, config, startup, job, resume=request.resume)
        return job

    exit_code, startup = run_measuring(config, job_for)
    journal = journal_of(out)
    if exit_code != 0:
        spent_s = read_journal(journal)[1][-1].spent_s if _has_visits(journal) else 0.0
        return Outcome(exit_code, out, journal, None, spent_s)
    profile = fit_journal(journal, config, startup)
    write_profile(out, profile)
    journal.unlink()
    return Outcome(0, out, journal, profile, request.budget_s)


def journal_of(out: Path) -> Path:
    """Where a run keeps what it has measured, beside its output."""
    return out.with_name(out.stem + ".partial.jsonl")


def fit_journal(journal: Path, config: ServeConfig, startup: Startup) -> DeviceProfile:
    # Here and not above: it loads scipy, which the processes of a run go without.
    from colocate.runtime.profiling.fit import DeviceFacts, fit_profile

    header, visits, _ = read_journal(journal)
    model = load_model_config(Path(startup.facts.model_dir))
    spent_s = visits[-1].spent_s if visits else 0.0
    facts = DeviceFacts(
        name=header.device,
        source=f"measured by colocate profile in {spent_s:.0f} s, {len(visits)} visits{_others(visits)}",
        units=header.units,
        granularity=header.granularity,
        num_layers=model.num_layers,
        model=header.model,
        dtype=header.dtype,
        kv_tokens=_kv_tokens(startup, KVLayout(model, header.dtype, 1, 1).nbytes),
        versions=_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    table = build_plan_table(header.units, header.granularity, header.decode_shares)
    setups = [setup.name for setup in all_setups(table)]
    return fit_profile(visits, setups, facts, header.seed)


def write_profile(out: Path, profile: DeviceProfile) -> None:
    """Whole or not at all. One sample per line."""
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(_layout(profile))
        scratch.rename(out)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise ConfigError(str(out), f"cannot be written: {error.strerror}", "name another --out") from None


def _layout(profile: DeviceProfile) -> bytes:
    """JSON with one entry of a list per line: a profile is read by people, and compared by line."""
    lines = []
    for name, value in msgspec.to_builtins(profile).items():
        text = msgspec.json.encode(value).decode()
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(msgspec.json.encode(item).decode() for item in value) + "\n ]"
        lines.append(f' "{name}": {text}')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _clear_way(
    journal: Path, out: Path, config: ServeConfig, startup: Startup, job: ProfilingJob, *, resume: bool
) -> None:
    """Refuse before any process starts what would be refused after an hour."""
    if out.suffix != ".json":
        raise ConfigError("out", f"{out} does not end in .json", "give the profile a name such as mine.json")
    if not os.access(_existing_parent(out), os.W_OK):
        raise ConfigError("out", f"{_existing_parent(out)} cannot be written to", "name another --out")
    if not journal.exists():
        return
    if not resume:
        journal.unlink()
        return
    refuse_other(journal, read_journal(journal)[0], header_of(config, startup.facts, job))


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def _has_visits(journal: Path) -> bool:
    return journal.exists() and bool(read_journal(journal)[1])


def _kv_tokens(startup: Startup, bytes_per_token: int) -> int:
    """What memory could hold as KV beside the weights. On a GPU, and on the emulated device, which has none, that is
    the pool of this run."""
    facts = startup.facts
    if facts.device_kind != "cpu":
        return facts.num_blocks * facts.block_size
    return max(0, available_bytes() - startup.weights_bytes) // bytes_per_token


def _others(visits: list[Visit]) -> str:
    """How busy other programs kept the cores: what an error far above the target may come from."""
    if not visits:
        return ""
    return f"; other programs took {statistics.fmean(visit.foreign for visit in visits):.0%} of the cores meanwhile"


def _versions() -> dict[str, str]:
    versions = {"colocate": __version__, "python": platform.python_version(), "kernel": platform.release()}
    for package in ("torch", "numpy", "scipy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
