"""What `colocate doctor` finds of the machine itself, measured where it can be, and what is missing for more."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from typing import Any

from colocate import __version__
from colocate.config.sizes import format_size
from colocate.core.plan import build_plan_table
from colocate.device.cpu.memory import available_bytes, total_bytes
from colocate.device.cpu.topology import usable_cores
from colocate.device.cpu.torch_facts import PASSIVE_OPENMP, probe_torch
from colocate.device.gpu_probe import probe_gpu


def examine() -> dict[str, Any]:
    """Everything found, as plain JSON values. `problems` stop a run, `advice` does not."""
    facts: dict[str, Any] = {
        "colocate": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": _cores(),
        "memory": {"total_bytes": total_bytes(), "available_bytes": available_bytes()},
        "torch": _torch(),
        "openmp": PASSIVE_OPENMP,
        "compiler": shutil.which("g++") or shutil.which("c++") or shutil.which("clang++"),
        "kernel": _kernel(),
        "gpu": _gpu(),
    }
    facts["plans"] = _plans(len(facts["cores"]["usable"]))
    facts["problems"] = _problems(facts)
    facts["advice"] = _advice(facts)
    return facts


def _cores() -> dict[str, Any]:
    topology = usable_cores()
    return {
        "usable": list(topology.core_ids),
        "allowed": sorted(os.sched_getaffinity(0)),
        "online": os.cpu_count(),
        "smt_siblings_left_out": list(topology.smt_siblings),
        "over_quota": list(topology.over_quota),
        "quota_cores": topology.quota_cores,
    }


def _torch() -> dict[str, Any] | None:
    facts = probe_torch()
    if facts is None:
        return None
    return {
        "version": facts.torch,
        "num_threads": facts.num_threads,
        "isa": facts.isa,
        "openmp": facts.openmp,
        "mkldnn": facts.mkldnn,
        "gflops": {name: round(rate, 1) for name, rate in facts.gflops.items()},
    }


def _kernel() -> dict[str, bool]:
    def works(probe: Any) -> bool:
        try:
            os.close(probe())
        except (OSError, AttributeError):
            return False
        return True

    return {
        "memfd": works(lambda: os.memfd_create("colocate-doctor", os.MFD_ALLOW_SEALING)),
        "pidfd": works(lambda: os.pidfd_open(os.getpid())),
    }


def _gpu() -> dict[str, Any]:
    report = probe_gpu()
    return {
        "usable": list(report.names),
        "driver": report.driver,
        "why_not": report.problem,
        "pci_devices": report.pci_devices,
        "device_files": report.has_device_files,
        "mps_binaries": list(report.mps_binaries),
    }


def _plans(num_units: int) -> dict[str, Any]:
    table = build_plan_table(num_units)
    return {"units": num_units, "names": [plan.name for plan in table.plans], "default_split": table.default_split}


def _problems(facts: dict[str, Any]) -> list[str]:
    problems = []
    if sys.platform != "linux":
        problems.append("only Linux has the shared memory and process handles this runtime is built on")
    if facts["torch"] is None:
        problems.append("torch cannot be imported: install it (`pip install torch`); the emulated device works without")
    for name, works in facts["kernel"].items():
        if not works:
            problems.append(
                f"the kernel refuses {name}: Linux 5.4 or newer is needed, and no seccomp filter against it"
            )
    return problems


def _advice(facts: dict[str, Any]) -> list[str]:
    advice = []
    cores = facts["cores"]
    if len(cores["usable"]) == 1:
        advice.append("one core cannot be split: prefill and decode will share it (plan `shared`)")
    if cores["over_quota"]:
        advice.append(f"the cgroup quota of {cores['quota_cores']:g} cores leaves {len(cores['over_quota'])} unused")
    if facts["torch"] is not None:
        rates = facts["torch"]["gflops"]
        faster = "bfloat16" if rates["bfloat16"] > rates["float32"] else "float32"
        advice.append(
            f"{faster} is the faster type here; `--dtype auto` measures before it keeps a bfloat16 checkpoint so"
        )
    if facts["compiler"] is None:
        advice.append("no C++ compiler: paths compiled at run time are replaced by slower ones")
    return advice


def lines_of(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of a table for people."""
    cores, memory, torch, gpu, plans = (facts[name] for name in ("cores", "memory", "torch", "gpu", "plans"))
    quota = "no quota" if cores["quota_cores"] is None else f"quota {cores['quota_cores']:g} cores"
    smt = len(cores["smt_siblings_left_out"])
    names = plans["names"] if len(plans["names"]) <= 10 else [*plans["names"][:6], "...", *plans["names"][-3:]]
    lines = [
        ("colocate", f"{facts['colocate']}, Python {facts['python']}, {facts['system']}"),
        (
            "cores",
            f"{len(cores['usable'])} usable of {cores['online']}: {cores['usable']}; {quota}; {smt} SMT siblings idle",
        ),
        ("memory", f"{format_size(memory['available_bytes'])} available of {format_size(memory['total_bytes'])}"),
    ]
    if torch is not None:
        rates = torch["gflops"]
        lines.append(("torch", f"{torch['version']}, {torch['num_threads']} threads, {torch['isa']}"))
        lines.append(
            ("matmul", f"float32 {rates['float32']:g} GFLOP/s, bfloat16 {rates['bfloat16']:g} GFLOP/s, measured")
        )
    lines += [
        ("OpenMP", "passive wait in the workers: " + " ".join(f"{k}={v}" for k, v in facts["openmp"].items())),
        ("compiler", facts["compiler"] or "none found"),
        ("kernel", ", ".join(f"{name} {'works' if works else 'REFUSED'}" for name, works in facts["kernel"].items())),
        ("GPU", ", ".join(gpu["usable"]) + f", driver {gpu['driver']}" if gpu["usable"] else f"none: {gpu['why_not']}"),
        ("MPS", ", ".join(gpu["mps_binaries"]) or "no nvidia-cuda-mps-control found"),
        ("plans", f"{', '.join(names)}; default split {plans['default_split']}"),
    ]
    return lines
