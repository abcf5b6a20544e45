"""`/state` and `/server_info`: what the engine and the supervisor say, as JSON for people and tools."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import colocate
from colocate.config.serve import ServeConfig
from colocate.frontend.status import DaemonStatus
from colocate.messages.client import EngineState, PlanInfo, SwitchRecord
from colocate.messages.spec import RuntimeFacts
from colocate.types import WORKER_ROLES, Role

_PACKAGES = ("torch", "fastapi", "uvicorn", "tokenizers", "pyzmq", "msgspec")


def percentile(values: Sequence[float], fraction: float) -> float | None:
    """Nearest rank; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def state_view(state: EngineState, age_s: float, status: DaemonStatus, facts: RuntimeFacts) -> dict[str, Any]:
    latencies_ms = [latency_ns / 1e6 for latency_ns in state.switch_latency_ns]
    return {
        "status": status.phase,
        "age_s": round(age_s, 3),
        "mode": state.mode,
        "policy": state.policy,
        "device": {
            "kind": facts.device_kind,
            "name": facts.device_name,
            "units": facts.total_units,
            "granularity": facts.unit_granularity,
            "unit_ids": list(facts.unit_ids),
        },
        "plan": {**_plan(state.plan), "seq": state.plan_seq},
        "plans": [_plan(plan) for plan in state.plans],
        "workers": _workers(status),
        "engine": {"pid": _pid(status, Role.ENGINE)},
        "keeper": {"pid": _pid(status, Role.KEEPER)},
        "queue": {
            "waiting": state.num_waiting,
            "prefill_running": state.num_prefill_running,
            "decode_running": state.num_decode_running,
        },
        "kv": {
            "blocks_total": state.blocks_total,
            "blocks_free": state.blocks_free,
            "blocks_draining": state.blocks_draining,
            "block_size": state.block_size,
        },
        "switches": {
            "count": state.switch_count,
            "last": None if state.switch_last is None else _switch(state.switch_last),
            "latency_ms": {"p50": percentile(latencies_ms, 0.50), "p99": percentile(latencies_ms, 0.99)},
        },
        "residency": _residency(state.residency_ns),
        "preemptions": state.num_preemptions,
        "ignored_commands": state.num_ignored_commands,
    }


def _plan(plan: PlanInfo) -> dict[str, Any]:
    return {"name": plan.name, "prefill_units": plan.prefill_units, "decode_units": plan.decode_units}


def _workers(status: DaemonStatus) -> list[dict[str, Any]]:
    return [
        {
            "role": process.role.value,
            "pid": process.pid,
            "state": process.state,
            "restarts": process.restarts,
            "uptime_s": round(process.uptime_s, 3),
        }
        for process in status.processes
        if process.role in WORKER_ROLES
    ]


def _pid(status: DaemonStatus, role: Role) -> int | None:
    process = status.process(role)
    return None if process is None else process.pid


def _switch(switch: SwitchRecord) -> dict[str, Any]:
    def after_ms(applied_ns: int) -> float | None:
        return round((applied_ns - switch.decided_ns) / 1e6, 4) if applied_ns else None

    return {
        "seq": switch.seq,
        "from": switch.from_plan,
        "to": switch.to_plan,
        "reason": switch.reason,
        "age_s": round((time.monotonic_ns() - switch.decided_ns) / 1e9, 3),
        "prefill_applied_ms": after_ms(switch.prefill_applied_ns),
        "decode_applied_ms": after_ms(switch.decode_applied_ns),
    }


def _residency(residency_ns: dict[str, int]) -> dict[str, float]:
    total_ns = sum(residency_ns.values())
    return {plan: round(spent_ns / total_ns, 6) for plan, spent_ns in residency_ns.items()} if total_ns else {}


def server_info(
    status: DaemonStatus, facts: RuntimeFacts, config: ServeConfig, state: EngineState | None
) -> dict[str, Any]:
    settings = asdict(config)
    settings["http"]["api_key"] = len(config.http.api_key)  # how many, never which
    return {
        "version": colocate.__version__,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "status": status.phase,
        "startup_s": status.startup_s,
        "plan": None if state is None else _plan(state.plan),
        "model": {
            "name": facts.model_name,
            "dtype": facts.dtype,
            "vocab_size": facts.vocab_size,
            "max_model_len": facts.max_model_len,
        },
        "device": {"kind": facts.device_kind, "name": facts.device_name, "units": facts.total_units},
        "kv": {"blocks": facts.num_blocks, "block_size": facts.block_size},
        "config": settings,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
