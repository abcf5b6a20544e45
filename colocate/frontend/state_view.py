"""`/state` and `/server_info`: what the engine and the supervisor say, as JSON for people and tools."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import colocate
from colocate.config.roles import WORKER_PROCESSES
from colocate.config.serve import ServeConfig
from colocate.config.slo import SloClass
from colocate.frontend.slo import SloCounts, SloTable
from colocate.frontend.status import DaemonStatus
from colocate.messages.client import EngineState, PlanInfo, ShadowRecord, SwitchRecord
from colocate.messages.spec import RuntimeFacts
from colocate.types import Role

_PACKAGES = ("torch", "fastapi", "uvicorn", "tokenizers", "pyzmq", "msgspec")


def percentile(values: Sequence[float], fraction: float) -> float | None:
    """Nearest rank; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def state_view(
    state: EngineState, age_s: float, status: DaemonStatus, facts: RuntimeFacts, slo: SloTable, counts: SloCounts
) -> dict[str, Any]:
    latencies_ms = [latency_ns / 1e6 for latency_ns in state.switch_latency_ns]
    return {
        "status": status.phase,
        "age_s": round(age_s, 3),
        "mode": state.mode,
        "policy": state.policy,
        "discipline": state.discipline,
        "device": {
            "kind": facts.device_kind,
            "name": facts.device_name,
            "units": facts.total_units,
            "granularity": facts.unit_granularity,
            "unit_ids": list(facts.unit_ids),
        },
        "plan": {**_plan(state.plan), "seq": state.plan_seq},
        "plans": [_plan(plan) for plan in state.plans],
        "candidates": _candidates(state),
        "best_static": state.best_static or None,
        "pinned": state.pinned,
        "guards": state.guards,
        "shadow": _shadow(state.shadow),
        "slo": {
            "classes": [{**class_view(known), "requests": counts.of_class(known.name)} for known in slo.classes],
            "default": slo.default or None,
        },
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
            "blocks_cached": state.blocks_cached,
            "blocks_draining": state.blocks_draining,
            "block_size": state.block_size,
        },
        "prefix_cache": {
            "queries": state.prefix_queries_total,
            "hits": state.prefix_hits_total,
            "hit_rate": hit_rate(state),
            "evictions": state.prefix_evictions_total,
        },
        "latency_model": {
            "source": state.latency_source,
            "error": {phase: round(error, 4) for phase, error in state.prediction_error.items()},
        },
        "switches": {
            "count": state.switch_count,
            "last": None if state.switch_last is None else _switch(state.switch_last),
            "recent": [_switch(switch) for switch in state.switch_recent],
            "latency_ms": {"p50": percentile(latencies_ms, 0.50), "p99": percentile(latencies_ms, 0.99)},
        },
        "residency": _residency(state.residency_ns),
        "preemptions": state.num_preemptions,
        "set_aside": state.set_aside_count,
        "ignored_commands": state.num_ignored_commands,
    }


def hit_rate(state: EngineState) -> float | None:
    """Share of the prompt tokens looked up that were found; None before the first."""
    if not state.prefix_queries_total:
        return None
    return round(state.prefix_hits_total / state.prefix_queries_total, 6)


def class_view(known: SloClass) -> dict[str, Any]:
    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else round(seconds * 1e3, 6)

    return {
        "name": known.name,
        "ttft_ms": ms(known.ttft_s),
        "tpot_ms": ms(known.tpot_s),
        "itl_ms": ms(known.itl_s),
        "ttft_per_token_ms": ms(known.ttft_per_token_s),
    }


def plans_view(state: EngineState) -> dict[str, Any]:
    """`/control/plans`: every plan of the device, and what decides among them."""
    residency = _residency(state.residency_ns)
    candidates = _candidates(state)
    return {
        "mode": state.mode,
        "policy": state.policy,
        "plan": {**_plan(state.plan), "seq": state.plan_seq},
        "pinned": state.pinned,
        "best_static": state.best_static or None,
        "plans": [
            {
                **_plan(plan),
                "in_force": plan.name == state.plan.name,
                "candidate": plan.name in candidates,
                "residency": residency.get(plan.name, 0.0),
            }
            for plan in state.plans
        ],
        "switches": state.switch_count,
        "guards": state.guards,
        "shadow": _shadow(state.shadow),
    }


def _candidates(state: EngineState) -> list[str]:
    """None named means that the policy may choose any."""
    return state.candidates or [plan.name for plan in state.plans]


def _shadow(shadow: ShadowRecord | None) -> dict[str, Any] | None:
    if shadow is None:
        return None
    return {
        "policy": shadow.policy,
        "wants": shadow.wants,
        "agreement": round(shadow.agreement, 6),
        "switches": shadow.switch_count,
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
        if process.role in WORKER_PROCESSES
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
    status: DaemonStatus, facts: RuntimeFacts, config: ServeConfig, state: EngineState | None, slo: SloTable
) -> dict[str, Any]:
    settings = asdict(config)
    for keys in ("api_key", "admin_key"):
        settings["http"][keys] = len(settings["http"][keys])  # how many, never which
    return {
        "version": colocate.__version__,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "status": status.phase,
        "startup_s": status.startup_s,
        "plan": None if state is None else _plan(state.plan),
        "controller": None if state is None else _controller(state),
        "slo": {"classes": [class_view(known) for known in slo.classes], "default": slo.default or None},
        "model": {
            "name": facts.model_name,
            "dtype": facts.dtype,
            "vocab_size": facts.vocab_size,
            "max_model_len": facts.max_model_len,
        },
        "device": {"kind": facts.device_kind, "name": facts.device_name, "units": facts.total_units},
        "kv": {"blocks": facts.num_blocks, "block_size": facts.block_size},
        "gpu_memory": status.gpu_memory or None,
        "config": settings,
    }


def _controller(state: EngineState) -> dict[str, Any]:
    return {
        "mode": state.mode,
        "policy": state.policy,
        "discipline": state.discipline,
        "candidates": _candidates(state),
        "best_static": state.best_static or None,
        "pinned": state.pinned,
        "guards": state.guards,
        "shadow": _shadow(state.shadow),
        "latency_source": state.latency_source,
        "prefix_hit_rate": hit_rate(state),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
