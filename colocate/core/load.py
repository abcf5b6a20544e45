"""What the engine's load is at this event, for policies; and what a finished step teaches the latency model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colocate.core.policy.view import LoadView
from colocate.core.request import NEVER
from colocate.messages.decode import StepReport

if TYPE_CHECKING:
    from colocate.core.engine import Engine


def load_view(engine: Engine) -> LoadView:
    """O(1), but for deadlines that passed since the last call."""
    books, prefill, decode = engine.books, engine.prefill, engine.decode
    now_ns = books.now_ns
    first_due_ns = min(books.queue.earliest_deadline_ns(now_ns) or NEVER, prefill.earliest_deadline_ns(now_ns) or NEVER)
    target_ns, itl_ns, token_due_ns = decode.tpot_target_ns, decode.itl_target_ns, decode.next_due_ns
    has_token_due = target_ns != NEVER and token_due_ns != NEVER
    model = books.model
    return LoadView(
        now_ns=now_ns,
        current=engine.plan,
        current_since_ns=engine.plan_since_ns,
        prefill_busy=prefill.busy,
        decode_busy=decode.busy,
        num_rows=len(decode.rows),
        sum_context=decode.sum_context,
        num_waiting=len(books.queue),
        prefill_tokens=books.queue.num_tokens + prefill.num_remaining,
        prefill_pairs=books.queue.num_pairs + prefill.remaining_pairs,
        ttft_slack_s=None if first_due_ns == NEVER else (first_due_ns - now_ns) / 1e9,
        tpot_target_s=None if target_ns == NEVER else target_ns / 1e9,
        itl_target_s=None if itl_ns == NEVER else itl_ns / 1e9,
        tpot_slack_s=(token_due_ns - now_ns) / 1e9 if has_token_due else None,
        kv_free=books.memory.available_share,
        admission_blocked=engine.scheduler.is_blocked,
        prediction_error=max(model.mean_error.values()) if model is not None else 0.0,
    )


def learn_from_step(engine: Engine, report: StepReport) -> None:
    """Correct the latency model by a step that ran under the plan asked for now, over the rows known now."""
    model, plan, decode = engine.books.model, engine.plan, engine.decode
    is_clean = report.plan_seq == engine.ledger.seq and len(report.rows) == len(decode.rows) > 0
    if model is None or not is_clean or engine.settings.mode == "chunked":
        return
    peer_units = plan.prefill_units if engine.prefill.busy else 0
    predicted_s = model.decode_s(plan.decode_units, decode.sum_context, len(report.rows), peer_units)
    model.observe("decode", predicted_s, (report.finished_ns - report.started_ns) / 1e9)
