"""The engine as others may see it: one consistent EngineState."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colocate.core.plan import Plan
from colocate.core.request import Stage
from colocate.messages.client import EngineState, PlanInfo

if TYPE_CHECKING:
    from colocate.core.engine import Engine

NUM_LATENCIES_REPORTED = 1024


def snapshot(engine: Engine, query_id: int) -> EngineState:
    books, ledger, decode, controller = engine.books, engine.ledger, engine.decode, engine.controller
    memory, model = books.memory, books.model
    return EngineState(
        query_id=query_id,
        now_ns=books.now_ns,
        mode=engine.settings.mode,
        policy=controller.policy_name,
        plan=_info(engine.plan),
        plan_seq=ledger.seq,
        plans=[_info(plan) for plan in engine.table.plans],
        num_waiting=len(books.queue),
        num_prefill_running=sum(request.stage is Stage.PREFILLING for request in engine.prefill.running.values()),
        num_decode_running=len(decode.ready) + sum(request.stage is Stage.DECODING for request in decode.rows.values()),
        blocks_total=books.pool.num_blocks,
        blocks_free=books.pool.num_free,
        blocks_draining=books.pool.num_draining,
        block_size=books.pool.block_size,
        switch_count=ledger.count,
        switch_counts=[(source, target, count) for (source, target), count in sorted(ledger.counts.items())],
        switch_last=ledger.last.record() if ledger.last is not None else None,
        switch_recent=[switch.record() for switch in ledger.recent],
        switch_latency_ns=list(ledger.latencies_ns)[-NUM_LATENCIES_REPORTED:],
        residency_ns=dict(ledger.residency_ns),
        num_preemptions=books.num_preemptions,
        num_ignored_commands=books.num_ignored,
        workers_ready={"prefill": engine.prefill.online, "decode": engine.decode.online},
        blocks_cached=memory.tree.num_evictable,
        prefix_queries_total=memory.tree.num_queries,
        prefix_hits_total=memory.tree.num_hits,
        prefix_evictions_total=memory.tree.num_evicted,
        discipline=engine.settings.discipline,
        candidates=list(controller.candidates),
        best_static=controller.best_static,
        pinned=controller.pinned.name if controller.pinned is not None else None,
        slo_classes=list(engine.slo.classes.values()),
        shadow=controller.shadow_record,
        guards=controller.guard_counts,
        prediction_error=dict(model.mean_error) if model is not None else {},
        latency_source=model.profile.source if model is not None else "",
        set_aside_count=engine.prefill.num_set_aside,
    )


def _info(plan: Plan) -> PlanInfo:
    return PlanInfo(plan.name, plan.prefill_units, plan.decode_units)
