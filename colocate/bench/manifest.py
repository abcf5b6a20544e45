"""What a manifest says beside the load: this machine, the state of the sources, and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_PACKAGES = ("colocate", "uvloop", "httptools", "orjson", "msgspec", "rich")
_GIT_TIMEOUT_S = 10.0
# Options whose value is nobody's business but the server's.
_SECRET = ("--api-key", "--admin-key", "--header")
HIDDEN = "***"


def written_command(arguments: Sequence[str] | None = None) -> tuple[str, ...]:
    """The command line as it can be published: without keys, and without the path of the interpreter."""
    given = list(sys.argv if arguments is None else arguments)
    written = [Path(given[0]).name if given else "colocate"]
    if written[0] == "__main__.py":
        written = ["colocate"]
    hide = False
    for argument in given[1:]:
        name, equals, value = argument.partition("=")
        if hide:
            written.append(_hidden(argument))
        elif name in _SECRET and equals:
            written.append(f"{name}={_hidden(value)}")
        else:
            written.append(argument)
        hide = argument in _SECRET
    return tuple(written)


def _hidden(value: str) -> str:
    """Of a header its name stays."""
    name, equals, _ = value.partition("=")
    return f"{name}={HIDDEN}" if equals else HIDDEN


@dataclass(frozen=True, slots=True)
class MachineTimes:
    """Processor seconds so far: of the whole machine while it was not idle, and of this process."""

    busy_s: float
    own_s: float

    @classmethod
    def now(cls) -> MachineTimes:
        all_times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle_s = all_times.idle + getattr(all_times, "iowait", 0.0)
        # Guests are counted in user and nice already.
        guests_s = getattr(all_times, "guest", 0.0) + getattr(all_times, "guest_nice", 0.0)
        return cls(sum(all_times) - idle_s - guests_s, own.user + own.system)


def host_facts() -> dict[str, object]:
    """Of the machine the client runs on, and so of a server's that runs there. No names."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "usable_cores": len(cores) or psutil.cpu_count(logical=True),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        **_gpu_facts(),
    }


def _gpu_facts() -> dict[str, object]:
    """Models and driver, by NVML; empty without a GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # a missing package, library or driver, each with an error of its own
        return {}
    return {"gpus": names, "gpu_driver": driver} if names else {}


def _text(told: str | bytes) -> str:
    """Older bindings tell bytes."""
    return told.decode() if isinstance(told, bytes) else told


def load_of_others(
    before: MachineTimes, after: MachineTimes, elapsed_s: float, server_s: float | None
) -> dict[str, object]:
    """In cores, over the run: what this client took, and what neither it nor the server (where it is here) took."""
    elapsed_s = max(elapsed_s, 1e-9)
    own_s = after.own_s - before.own_s
    facts: dict[str, object] = {"client_cores": round(own_s / elapsed_s, 3)}
    if server_s is not None:
        facts["server_cores"] = round(server_s / elapsed_s, 3)
        others_s = after.busy_s - before.busy_s - own_s - server_s
        facts["other_cores"] = round(max(others_s, 0.0) / elapsed_s, 3)
    else:
        facts["other_cores"] = round(max(after.busy_s - before.busy_s - own_s, 0.0) / elapsed_s, 3)
    return facts


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def git_facts(root: Path = Path(__file__).parents[2]) -> dict[str, object]:
    """Commit and whether the tree differs from it; empty outside a checkout."""
    if not (root / ".git").exists():
        return {}
    commit, changed = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return {} if commit is None else {"commit": commit, "dirty": bool(changed)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            # `status` would write the index: a measurement leaves a checkout alone, also where it is cut off.
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
