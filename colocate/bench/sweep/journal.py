"""The folder of a sweep: what it set out to do, which runs are done, and what was put aside.

    SWEEP/sweep.json             SweepManifest; written again only where higher rates are added
    SWEEP/runs/ID/               one run each; done if its manifest is complete
    SWEEP/aside/ID.partial-N/    a run that was cut off, or that `--retry` repeats; nothing reads it

There is no list of done runs that could disagree with the runs: a sweep that was killed at any moment looks at its
folder and goes on. One sweep at a time holds the folder, by a lock that ends with its process.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import structs

from colocate.bench.figures import promises_of
from colocate.bench.metrics.attainment import attainment
from colocate.bench.metrics.window import offered
from colocate.bench.read import MANIFEST_FILE, RUNS_FOLDER, SWEEP_FILE, read_run, read_sweep_manifest
from colocate.bench.records import RunManifest, RunStatus, SweepManifest
from colocate.bench.sweep.order import RunSpec
from colocate.errors import ConfigError

ASIDE_FOLDER = "aside"
DONE: tuple[RunStatus, ...] = ("valid", "invalid", "failed")


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that is done. `whole_s` is None where it was not told: from the start of its server to its end."""

    run_id: str
    status: RunStatus
    good: int
    offered: int
    reasons: tuple[str, ...] = ()
    whole_s: float | None = None


class Journal:
    """An open sweep folder. Use it as a context manager; it holds the lock."""

    def __init__(self, folder: Path, manifest: SweepManifest, *, resume: bool = True, retry: bool = False) -> None:
        """Create the folder, or go on with what is there. `retry`: runs that failed or are not valid are not done.

        Raises ConfigError: the folder holds another sweep (the text says what differs), a sweep where `resume` is
        false, something else; it cannot be written; another sweep is at work in it.
        """
        self.folder = folder
        self._counts: tuple[RunStatus, ...] = ("valid",) if retry else DONE
        self._results: dict[str, RunResult] = {}
        self._tried: set[str] = set()  # by this process: done whatever came of them
        try:
            (folder / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
        except OSError as error:
            raise cannot_write(folder, error) from None
        try:
            self.created = self._open(manifest, resume)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._lock)

    def run_folder(self, spec: RunSpec) -> Path:
        return self.folder / RUNS_FOLDER / spec.run_id

    def result(self, spec: RunSpec) -> RunResult | None:
        """None where the run is still to be made."""
        if spec.run_id not in self._results:
            found = self._look(spec)
            if found is None:
                return None
            self._results[spec.run_id] = found
        return self._results[spec.run_id]

    def begin(self, spec: RunSpec) -> Path:
        """The folder for a run, which does not exist: what was in its place has been put aside."""
        folder = self.run_folder(spec)
        self._tried.add(spec.run_id)
        if folder.exists():
            aside = self.folder / ASIDE_FOLDER
            number = 1
            while (kept := aside / f"{spec.run_id}.partial-{number}").exists():
                number += 1
            try:
                aside.mkdir(exist_ok=True)
                folder.rename(kept)
            except OSError as error:
                raise cannot_write(aside, error) from None
        return folder

    def _open(self, manifest: SweepManifest, resume: bool) -> str:
        path = self.folder / SWEEP_FILE
        if not path.exists():
            if any((self.folder / RUNS_FOLDER).iterdir()):
                raise ConfigError(str(self.folder), f"holds runs and no {SWEEP_FILE}", "name another --out")
            write_record(path, manifest)
            return manifest.created
        if not resume:
            raise ConfigError(str(self.folder), "holds a sweep already", "name another --out, or drop --no-resume")
        known = read_sweep_manifest(self.folder)
        if adds_rates(known, manifest):
            known = structs.replace(known, rates=manifest.rates)
            write_record(path, known)
        differing = differences(known, manifest)
        if differing:
            problem = f"holds another sweep: {'; '.join(differing)}"
            raise ConfigError(str(self.folder), problem, "give what it was made with, or name another --out")
        return known.created

    def _look(self, spec: RunSpec) -> RunResult | None:
        folder = self.run_folder(spec)
        if not (folder / MANIFEST_FILE).exists():
            return None
        try:
            run = read_run(folder)
            if run.status not in (DONE if spec.run_id in self._tried else self._counts):
                return None
            found = attainment(offered(run), promises_of(run))
        except ConfigError:
            return None  # damaged: it is made again
        whole_s = run.manifest.figures.get("whole_s")
        return RunResult(
            spec.run_id,
            run.status,
            found.good,
            found.of,
            run.reasons,
            float(whole_s) if isinstance(whole_s, int | float) else None,
        )


def adds_rates(known: SweepManifest, asked: SweepManifest) -> bool:
    """Whether `asked` only goes on to higher rates. They run one after the other, so the runs and their order are those
    that the longer list would have given from the start. Not so with `--keep-server`, which goes seed by seed."""
    num_known = len(known.rates)
    return (
        0 < num_known < len(asked.rates)
        and asked.rates[:num_known] == known.rates
        and not asked.recipe.get("keep_server")
        and not differences(structs.replace(known, rates=asked.rates), asked)
    )


def differences(known: SweepManifest, asked: SweepManifest) -> list[str]:
    """What keeps two sweeps from being one, in words. When and where they ran, and their budgets, may differ."""
    found: list[str] = []
    before, now = ({arm.name: arm for arm in each.arms} for each in (known, asked))
    if gone := [name for name in before if name not in now]:
        found.append(f"it has the arms {', '.join(gone)}")
    if new := [name for name in now if name not in before]:
        found.append(f"it lacks the arms {', '.join(new)}")
    found += [
        f"its arm {name} has the flags {' '.join(before[name].flags)!r}, not {' '.join(now[name].flags)!r}"
        for name in before
        if name in now and before[name] != now[name]
    ]
    for name in ("rates", "seeds", "slo_classes", "min_requests"):
        a, b = getattr(known, name), getattr(asked, name)
        if a != b:
            found.append(f"its {name} are {_text(a)}, not {_text(b)}")
    # As they would be read back: a tuple and a list are the same there.
    a_recipe, b_recipe = (msgspec.json.decode(msgspec.json.encode(each.recipe)) for each in (known, asked))
    found += [
        f"its {name} is {_text(a_recipe.get(name))}, not {_text(b_recipe.get(name))}"
        for name in sorted({*a_recipe, *b_recipe})
        if a_recipe.get(name) != b_recipe.get(name)
    ]
    return found


def write_manifest(folder: Path, manifest: RunManifest) -> None:
    """In place of the one that is there. Raises ConfigError."""
    write_record(folder / MANIFEST_FILE, manifest)


def write_record(path: Path, record: msgspec.Struct) -> None:
    """As JSON, on disk whole or not at all. Raises ConfigError."""
    data = msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> ConfigError:
    if error.errno == errno.ENOSPC:
        return ConfigError(str(path), "the disk is full", "make room; the same command goes on from what is there")
    return ConfigError(str(path), f"cannot be written: {error.strerror}", "name another --out")


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(str(folder), "another sweep is at work in it", "wait for it, or name another --out") from None
    return descriptor


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
