"""Guards around a dynamic policy, because an unguarded one loses to the best static plan.

A guard takes what the policy wishes and returns what may happen. The **border** is the last plan under which both
phases worked: an idle phase lends its units and gets them back without the border having moved, so guards look at the
border and let lending pass. They run in this order: who comes later has the last word.

| guard | the failure without it |
|---|---|
| hysteresis | the load sits between two plans, and the border moves at every request for no gain |
| fallback | the model is wrong about this device, and the policy acts on it with full confidence |
| dwell | the load alternates faster than a switch pays back |
| decode-first | decode starves, its batch does not drain, admission blocks, first tokens are late, it loses more |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from colocate.core.plan import Plan, PlanTable
from colocate.core.policy.forecast import Forecast
from colocate.core.policy.lending import Lending
from colocate.core.policy.view import LoadView, Policy

# A move of the border must make a phase faster by this part, or it is not worth it ...
MIN_GAIN = 0.05
# ... nor is any while that phase is at most at this part of what is allowed.
CALM = 0.5
# One that takes from decode must leave it this far under what is allowed.
SHRINK_LIMIT = 0.95
MIN_DWELL_NS = 100_000_000
# Mean relative error of the predictions at which they are no longer believed, and at which they are again.
DISTRUST_ERROR = 0.3
TRUST_ERROR = 0.18
HOLD_NS = 2_000_000_000
MAX_HOLD_NS = 60_000_000_000

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Border:
    """The last plan that served both phases, and since when."""

    plan: Plan
    since_ns: int


class Guard(Protocol[State]):
    """A pure function with a state value."""

    name: str

    def start(self) -> State: ...

    def check(self, state: State, view: LoadView, wish: Plan, border: Border) -> tuple[Plan, State]:
        """The plan instead of `wish` (or `wish`), and the state for the next call. Changes nothing, never raises."""
        ...


class Hysteresis:
    """Implements `Guard[None]`: the border moves only for a predicted gain.

    A border under which both phases are CALM gains nothing by moving. Decode grows at once where the border misses its
    target; otherwise the phase that wins must win MIN_GAIN. Decode gives units away only while it keeps a reserve
    without them, so the load at which it grows is above the one at which it shrinks again.
    """

    name = "hysteresis"

    def __init__(self, forecast: Forecast) -> None:
        self._forecast = forecast

    def start(self) -> None:
        return None

    def check(self, state: None, view: LoadView, wish: Plan, border: Border) -> tuple[Plan, None]:
        forecast = self._forecast
        if wish is border.plan or not (forecast.covers(wish) and forecast.covers(border.plan)):
            return wish, None
        step_s, wish_step_s = forecast.step_s(border.plan, view), forecast.step_s(wish, view)
        allowed_s = forecast.allowed_s(view)
        if wish_step_s < step_s:
            pays = step_s > allowed_s or (step_s > CALM * allowed_s and wish_step_s <= (1.0 - MIN_GAIN) * step_s)
            return (wish if pays else border.plan), None
        drain_s, limit_s = forecast.drain_s(border.plan, view), forecast.drain_limit_s(view)
        if limit_s is not None and drain_s <= CALM * limit_s:
            return border.plan, None
        if wish_step_s > SHRINK_LIMIT * allowed_s:
            wish = forecast.smallest_meeting(view, SHRINK_LIMIT * allowed_s)
        return (wish if forecast.drain_s(wish, view) <= (1.0 - MIN_GAIN) * drain_s else border.plan), None


@dataclass(frozen=True, slots=True)
class Trust:
    """Whether the predictions are distrusted, since when they are or are not, and how long distrust has to hold."""

    is_lost: bool = False
    since_ns: int = 0
    hold_ns: int = 0


class Fallback:
    """Implements `Guard[Trust]`: while predictions are distrusted the static plan serves two busy phases; lending needs
    no prediction and goes on.

    Predictions may be good under the static plan and bad elsewhere, so good ones do not prove much: distrust holds for
    a while, and twice as long each time the trust given back did not last as long as it was withheld.
    """

    name = "fallback"

    def __init__(self, table: PlanTable, static: Plan) -> None:
        self._static = static
        self._lending = Lending(table)

    def start(self) -> Trust:
        return Trust()

    def check(self, state: Trust, view: LoadView, wish: Plan, border: Border) -> tuple[Plan, Trust]:
        lasted_ns = view.now_ns - state.since_ns
        if not state.is_lost:
            if view.prediction_error <= DISTRUST_ERROR:
                return wish, state
            again = state.hold_ns and lasted_ns < state.hold_ns
            hold_ns = min(2 * state.hold_ns, MAX_HOLD_NS) if again else HOLD_NS
            state = Trust(True, view.now_ns, hold_ns)
        elif view.prediction_error <= TRUST_ERROR and lasted_ns >= state.hold_ns:
            return wish, Trust(False, view.now_ns, state.hold_ns)
        return self._lending.plan(view) or self._static, state


class Dwell:
    """Implements `Guard[None]`: the border stays for MIN_DWELL_NS once it was moved."""

    name = "dwell"

    def __init__(self, forecast: Forecast) -> None:
        self._forecast = forecast

    def start(self) -> None:
        return None

    def check(self, state: None, view: LoadView, wish: Plan, border: Border) -> tuple[Plan, None]:
        moves = wish is not border.plan and self._forecast.covers(wish)
        return (border.plan if moves and view.now_ns - border.since_ns < MIN_DWELL_NS else wish), None


class DecodeFirst:
    """Implements `Guard[None]`: while admission is blocked, or the border is predicted to miss decode's target, decode
    is not slowed, and gets at least the plan that meets the target."""

    name = "decode-first"

    def __init__(self, forecast: Forecast) -> None:
        self._forecast = forecast

    def start(self) -> None:
        return None

    def check(self, state: None, view: LoadView, wish: Plan, border: Border) -> tuple[Plan, None]:
        if not view.decode_busy:
            return wish, None
        forecast = self._forecast
        if wish.decode_units == 0:
            wish = border.plan  # a batch that does not step never drains
        if wish.prefill_units == 0 or not (forecast.covers(wish) and forecast.covers(border.plan)):
            return wish, None
        allowed_s = forecast.allowed_s(view)
        wish_step_s, border_step_s = forecast.step_s(wish, view), forecast.step_s(border.plan, view)
        if wish_step_s <= allowed_s and not view.admission_blocked:
            return wish, None
        if wish_step_s > border_step_s:
            wish, wish_step_s = border.plan, border_step_s
        if wish_step_s > allowed_s:
            floor = forecast.smallest_meeting(view, allowed_s)
            if forecast.step_s(floor, view) < wish_step_s:
                wish = floor
        return wish, None


@dataclass(frozen=True, slots=True)
class GuardedState:
    policy: Any
    guards: tuple[Any, ...]
    border: Border
    num_changed: tuple[int, ...]  # per guard, how many times it began to change the wish of those before it
    changing: int  # bit i: guard i changes it now


class Guarded:
    """Implements `Policy[GuardedState]`: a policy with guards around it."""

    def __init__(
        self, policy: Policy[Any], guards: tuple[Guard[Any], ...], forecast: Forecast, table: PlanTable
    ) -> None:
        self.name = policy.name
        self.first = policy.first
        self.policy = policy
        self.guards = guards
        self._forecast = forecast
        self._lending = Lending(table)

    def start(self) -> GuardedState:
        states = tuple(guard.start() for guard in self.guards)
        border = Border(self.first, -MIN_DWELL_NS)
        return GuardedState(self.policy.start(), states, border, (0,) * len(states), 0)

    def decide(self, state: GuardedState, view: LoadView) -> tuple[Plan, GuardedState]:
        wish, policy_state = self.policy.decide(state.policy, view)
        border = state.border
        states, num_changed, changing = list(state.guards), state.num_changed, 0
        for index, guard in enumerate(self.guards):
            allowed, states[index] = guard.check(states[index], view, wish, border)
            if allowed is not wish:
                wish = allowed
                changing |= 1 << index
                if not state.changing >> index & 1:
                    num_changed = (*num_changed[:index], num_changed[index] + 1, *num_changed[index + 1 :])
        if changing and wish.is_split:
            wish = self._lending.plan(view) or wish  # whoever holds the border has no say in what an idle phase lends
        if wish is not border.plan and self._forecast.covers(wish):
            border = Border(wish, view.now_ns)
        return wish, GuardedState(policy_state, tuple(states), border, num_changed, changing)

    def counts(self, state: GuardedState) -> dict[str, int]:
        """How often each guard changed what the policy wanted."""
        return {guard.name: count for guard, count in zip(self.guards, state.num_changed, strict=True)}

    def changing(self, state: GuardedState) -> list[str]:
        """The guards that change it now."""
        return [guard.name for index, guard in enumerate(self.guards) if state.changing >> index & 1]
