"""From the operator's words to a policy with its guards."""

from __future__ import annotations

from typing import Any

from colocate.config.serve import Mode
from colocate.core.latency import LatencyModel
from colocate.core.plan import ALL_DECODE, ALL_PREFILL, SHARED, Plan, PlanTable
from colocate.core.policy.elastic import Elastic
from colocate.core.policy.forecast import Forecast
from colocate.core.policy.guards import DecodeFirst, Dwell, Fallback, Guard, Guarded, Hysteresis
from colocate.core.policy.on_demand import OnDemand
from colocate.core.policy.slo import Slo
from colocate.core.policy.static import Static
from colocate.core.policy.view import Policy
from colocate.core.settings import EngineSettings
from colocate.errors import ConfigError

DYNAMIC = ("slo", "on-demand")

# A decision is O(plans) with a budget of 20 microseconds: a device of many small units is thinned out to this many.
MAX_CANDIDATES = 16


def choose_policy(
    settings: EngineSettings, word: str, table: PlanTable, model: LatencyModel | None, option: str = "plan"
) -> Policy[Any]:
    """Resolve an operator's word: `elastic`, `elastic:SPLIT`, `static:PLAN`, `slo`, `on-demand`, or a plan.

    `slo` and `on-demand` come with the guards of the settings and need a latency model. A plan that gives a phase
    nothing cannot serve by itself, so `static` refuses it. A device with one unit has the plan `shared` only, and every
    policy becomes that; so does every policy of the modes without a partition. `option` is where the word was given.
    Raises ConfigError, which names it.
    """
    shared = table.by_name(SHARED)
    if settings.mode in ("shared", "chunked"):
        if word not in ("elastic", SHARED, f"static:{SHARED}"):
            problem = f"mode {settings.mode!r} runs no partition, so {word!r} cannot hold"
            raise ConfigError(option, problem, f"use --mode colocated, or drop --{option}")
        return Static(shared)
    kind, _, name = word.partition(":")
    if kind == "elastic":
        return _elastic(settings, word, name, table, option)
    if word in DYNAMIC:
        return Static(shared) if len(table.plans) == 1 else _dynamic(settings, word, table, model, option)
    plan = table.by_name(name if kind == "static" else word, option)
    if plan.prefill_units == 0 or plan.decode_units == 0:
        idle = "prefill" if plan.prefill_units == 0 else "decode"
        problem = f"static:{plan.name} would never run {idle}"
        raise ConfigError(option, problem, f"choose a split or 'shared', or use --{option} elastic")
    return Static(plan)


def policy_in_force(mode: Mode, word: str) -> str:
    """What to call the policy that serves: the operator's word, or `shared` where the mode runs no partition."""
    return word if mode == "colocated" else SHARED


def static_plan(settings: EngineSettings, table: PlanTable) -> Plan:
    """The plan to fall back to: the settings' best static one, or the table's default. Raises ConfigError."""
    plan = table.by_name(settings.best_static or table.default_split, "best_static")
    if plan.prefill_units == 0 or plan.decode_units == 0:
        raise ConfigError("best_static", f"{plan.name!r} serves one phase only", "name a split or 'shared'")
    return plan


def candidate_plans(settings: EngineSettings, table: PlanTable) -> tuple[Plan, ...]:
    """The plans a dynamic policy chooses from while both phases are busy.

    None named: every split, or MAX_CANDIDATES of them evenly over the device. `shared` must be named: how two phases
    disturb each other without a border is the hardest thing to predict. `all-prefill` and `all-decode` are for lending
    and need not be named. Raises ConfigError.
    """
    splits = [plan for plan in table.plans if plan.is_split]
    if settings.mode in ("shared", "chunked") or not splits:
        return (table.by_name(SHARED),)
    if not settings.candidates:
        stride = -(-len(splits) // MAX_CANDIDATES)
        return tuple(splits[stride // 2 :: stride])
    named = [table.by_name(name, "plans") for name in settings.candidates]
    plans = tuple(plan for plan in named if plan.name not in (ALL_PREFILL, ALL_DECODE))
    if not plans:
        problem = f"no plan of {', '.join(settings.candidates)} serves both phases"
        raise ConfigError("plans", problem, "add a split, or run `colocate plan` again")
    return plans


def _elastic(settings: EngineSettings, word: str, name: str, table: PlanTable, option: str) -> Policy[Any]:
    if len(table.plans) == 1:
        table.by_name(name or SHARED, option)
        return Static(table.plans[0])
    split = table.by_name(name, option) if name else static_plan(settings, table)
    if not name and not split.is_split:
        split = table.by_name(table.default_split)
    if not split.is_split:
        problem = f"elastic needs a split to start from, not {split.name!r}"
        raise ConfigError(option, problem, f"name a split, such as elastic:{table.default_split}")
    return Elastic(table, split, word)


def _dynamic(
    settings: EngineSettings, word: str, table: PlanTable, model: LatencyModel | None, option: str
) -> Policy[Any]:
    if model is None:
        remedy = "measure with colocate profile, or give --latency-profile"
        raise ConfigError(option, f"{word!r} predicts latencies and has no profile to do so", remedy)
    plans, static = candidate_plans(settings, table), static_plan(settings, table)
    forecast = Forecast(model, plans, static, settings.max_num_batched_tokens)
    if word == "slo":
        return _guard(settings, Slo(table, forecast), table, forecast)
    shared = table.by_name(SHARED)
    wider = Forecast(model, (*plans, shared), static, settings.max_num_batched_tokens)
    return _guard(settings, OnDemand(table, wider, Slo(table, forecast)), table, wider)


def _guard(settings: EngineSettings, policy: Policy[Any], table: PlanTable, forecast: Forecast) -> Policy[Any]:
    """In an order of our own: who comes later has the last word, however the operator lists them."""
    guards: tuple[Guard[Any], ...] = (
        Hysteresis(forecast),
        Fallback(table, forecast.static),
        Dwell(forecast),
        DecodeFirst(forecast),
    )
    return Guarded(policy, tuple(guard for guard in guards if guard.name in settings.guards), forecast, table)
