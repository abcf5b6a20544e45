"""What each candidate plan would do to the load of a view: seconds of a decode step, seconds to drain the prompts.

Everything that does not depend on the load (curves of the shares, contention of the pair) is folded into six numbers
per plan when the forecast is made, so that judging a plan costs two dot products.
"""

from __future__ import annotations

from dataclasses import dataclass

from colocate.core.latency import LatencyModel
from colocate.core.plan import Plan
from colocate.core.policy.view import LoadView

# Aimed at, as a share of the per-token target: what a step longer than predicted may take without a miss.
TPOT_MARGIN = 0.9
# The same for the 99th percentile of gaps: steps that jitter by some percent must still be within it.
ITL_MARGIN = 0.9
# Slack of the standing batch against its schedule is spent (or earned back) over this time ...
SLACK_HORIZON_S = 1.0
# ... and bends the target by at most this part: decode may be slowed, never starved.
MAX_SLACK_BEND = 0.3
# A row later than this is lost, or nearly so; working for it alone would lose the others as well.
LOST_S = 2.0
# Decode of a batch that nobody gave a target may take this much longer than under the static plan if prompts are late.
BEST_EFFORT_STRETCH = 2.0

# Prompts count as a full load when draining them takes this part of the time to the earliest deadline: the rest is for
# those that arrive meanwhile.
FULL_PREFILL = 0.25
# Steps this close to the shortest count as equally short.
KNEE = 1.05

_PROBE = 1e6  # tokens, pairs or rows of the two predictions whose difference is a coefficient


@dataclass(frozen=True, slots=True)
class Curve:
    """One plan under contention, both phases busy. Seconds, before the model's online correction."""

    plan: Plan
    prefill_token_s: float
    prefill_pair_s: float
    forward_s: float
    context_token_s: float
    row_s: float
    step_s: float


class Forecast:
    """Reads the model's online correction; changes nothing. `curves` is in order of prefill speed, fastest first, so
    that for splits the smallest decode share comes first."""

    def __init__(self, model: LatencyModel, plans: tuple[Plan, ...], static: Plan, batch_tokens: int) -> None:
        self._model = model
        self._batch_tokens = max(batch_tokens, 1)
        members = {plan.name: plan for plan in (*plans, static)}
        curves = [_curve(model, plan) for plan in members.values()]
        self.curves = sorted(curves, key=lambda curve: (curve.prefill_token_s, curve.step_s))
        self.static = static
        self._by_name = {curve.plan.name: curve for curve in self.curves}
        # Plain tuples: a loop over them takes half the time of one over attributes.
        self._steps = [(curve.plan, curve.context_token_s, curve.row_s, curve.step_s) for curve in self.curves]
        self._judged = [
            (c.plan, c.prefill_token_s, c.prefill_pair_s, c.forward_s, c.context_token_s, c.row_s, c.step_s)
            for c in self.curves
        ]

    def covers(self, plan: Plan) -> bool:
        """Whether both phases run under it and it is one of the candidates."""
        return plan.name in self._by_name

    def step_s(self, plan: Plan, view: LoadView) -> float:
        """One decode step of the standing batch while prefill works. `plan` must be covered."""
        curve = self._by_name[plan.name]
        seconds = curve.context_token_s * view.sum_context + curve.row_s * view.num_rows + curve.step_s
        return seconds * self._model.correction("decode")

    def drain_s(self, plan: Plan, view: LoadView) -> float:
        """Until the last prompt token of the view is computed, in full forwards, while decode works."""
        curve = self._by_name[plan.name]
        num_forwards = 1 + view.prefill_tokens // self._batch_tokens
        seconds = (
            curve.prefill_token_s * view.prefill_tokens
            + curve.prefill_pair_s * view.prefill_pairs
            + curve.forward_s * num_forwards
        )
        return seconds * self._model.correction("prefill")

    def allowed_s(self, view: LoadView) -> float:
        """The longest step that keeps both per-token targets, with margin.

        Slack bends the mean alone: a gap that was too long once cannot be made good.
        """
        itl_s = view.itl_target_s
        if itl_s is None:
            return self._allowed_mean_s(view)
        if view.tpot_target_s is None:
            return ITL_MARGIN * itl_s
        return min(ITL_MARGIN * itl_s, self._allowed_mean_s(view))

    def _allowed_mean_s(self, view: LoadView) -> float:
        """The longest step that keeps the standing batch on its per-token target, with margin.

        A batch that is ahead of its schedule may be a little slower for a while, one that is behind must be faster.
        Nobody's target: what the static plan takes, or more while a first token would be late under it.
        """
        target_s = view.tpot_target_s
        if target_s is None:
            step_s = self.step_s(self.static, view)
            slack_s = view.ttft_slack_s
            is_late = slack_s is not None and self.drain_s(self.static, view) > slack_s
            return step_s * BEST_EFFORT_STRETCH if is_late else step_s
        slack_s = view.tpot_slack_s
        if slack_s is None or slack_s < -LOST_S:
            return TPOT_MARGIN * target_s
        bend = max(-MAX_SLACK_BEND, min(slack_s / SLACK_HORIZON_S, MAX_SLACK_BEND))
        return TPOT_MARGIN * target_s * (1.0 + bend)

    def drain_limit_s(self, view: LoadView) -> float | None:
        """How long draining the prompts may take; None where no first token has a deadline, or the earliest is missed
        already: then faster is better."""
        slack_s = view.ttft_slack_s
        return None if slack_s is None or slack_s <= 0.0 else FULL_PREFILL * slack_s

    def smallest_meeting(self, view: LoadView, allowed_s: float) -> Plan:
        """The plan with the fastest prefill whose step takes at most `allowed_s`; where none does, `knee`. O(plans)."""
        limit_s = allowed_s / self._model.correction("decode")
        sum_context, num_rows = view.sum_context, view.num_rows
        for plan, context_token_s, row_s, step_s in self._steps:
            if context_token_s * sum_context + row_s * num_rows + step_s <= limit_s:
                return plan
        return self.knee(view)

    def knee(self, view: LoadView) -> Plan:
        """The fastest prefill among the plans whose step is within KNEE of the shortest: more units would be wasted on
        a memory bus that is full. O(plans)."""
        sum_context, num_rows = view.sum_context, view.num_rows
        seconds = [
            context_token_s * sum_context + row_s * num_rows + step_s
            for _, context_token_s, row_s, step_s in self._steps
        ]
        limit_s = min(seconds) * KNEE
        return next(step[0] for step, taken_s in zip(self._steps, seconds, strict=True) if taken_s <= limit_s)

    def most_balanced(self, view: LoadView, allowed_s: float, drain_limit_s: float) -> Plan:
        """Where the larger of both loads, step over `allowed_s` and drain over `drain_limit_s`, is smallest, among the
        plans whose step is allowed; where none is, `knee`. O(plans)."""
        step_scale = self._model.correction("decode") / allowed_s
        drain_scale = self._model.correction("prefill") / drain_limit_s
        sum_context, num_rows = view.sum_context * step_scale, view.num_rows * step_scale
        tokens, pairs = view.prefill_tokens * drain_scale, view.prefill_pairs * drain_scale
        forwards = (1 + view.prefill_tokens // self._batch_tokens) * drain_scale
        best, found = float("inf"), None
        for plan, token_s, pair_s, forward_s, context_token_s, row_s, step_s in self._judged:
            step = context_token_s * sum_context + row_s * num_rows + step_s * step_scale
            if step > 1.0:
                continue
            drain = token_s * tokens + pair_s * pairs + forward_s * forwards
            worst = step if step > drain else drain
            if worst < best:
                best, found = worst, plan
        return found or self.knee(view)


def _curve(model: LatencyModel, plan: Plan) -> Curve:
    prefill, decode = plan.prefill_units, plan.decode_units
    of_prefill, of_decode = model.contention(prefill, decode)
    of_prefill /= model.correction("prefill")
    of_decode /= model.correction("decode")
    forward_s, step_s = model.prefill_s(prefill, 0, 0), model.decode_s(decode, 0, 0)
    return Curve(
        plan,
        of_prefill * (model.prefill_s(prefill, _PROBE, 0) - forward_s) / _PROBE,
        of_prefill * (model.prefill_s(prefill, 0, _PROBE) - forward_s) / _PROBE,
        of_prefill * forward_s,
        of_decode * (model.decode_s(decode, _PROBE, 0) - step_s) / _PROBE,
        of_decode * (model.decode_s(decode, 0, _PROBE) - step_s) / _PROBE,
        of_decode * step_s,
    )
