"""Each guard against the failure it is there for: the same closed loop without it and with it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from colocate.core.latency import LatencyModel
from colocate.core.plan import Plan
from colocate.core.policy.choose import choose_policy
from colocate.core.policy.forecast import Forecast
from colocate.core.policy.guards import Border, DecodeFirst, Fallback, Guarded
from colocate.core.policy.view import LoadView
from tests.unit.policy_plant import PROFILE, Job, Plant, h200_settings, h200_table, jobs_every

TABLE = h200_table()
SPLITS = tuple(plan for plan in TABLE.plans if plan.is_split)


def slo(*guards: str, model: LatencyModel | None = None, best_static: str = "") -> Guarded:
    settings = h200_settings(guards=guards, best_static=best_static)
    policy = choose_policy(settings, "slo", TABLE, model or LatencyModel(PROFILE))
    assert isinstance(policy, Guarded)
    return policy


def steady() -> list[Job]:
    return jobs_every(0.1, 4.0, 2000, 150)


def test_without_hysteresis_the_border_flaps_under_a_steady_load() -> None:
    loose = Plant(steady()).run(slo(), 4.0)
    assert len(loose.borders) > 200
    held = Plant(steady()).run(slo("hysteresis"), 4.0)
    assert len(held.borders) <= 2
    assert held.num_good == len(held.done) >= 0.9 * len(loose.done)


def test_without_dwell_switches_eat_the_device() -> None:
    def plant() -> Plant:
        return Plant(jobs_every(0.12, 5.0, 2000, 100), ttft_s=0.3, switch_s=0.01)

    thrashing = plant().run(slo(), 5.0)
    dwelling = plant().run(slo("dwell"), 5.0)
    gaps_ns = [late[0] - early[0] for early, late in pairwise(dwelling.borders)]
    assert min(gaps_ns) >= 100_000_000
    assert len(thrashing.borders) > 5 * len(dwelling.borders)
    assert dwelling.num_good > 3 * thrashing.num_good


@dataclass(frozen=True)
class Reactive:
    """What a controller without a model does: while first tokens are late, a step towards prefill every 50 ms; while
    nobody waits, a step back. Its state is (place in SPLITS, when it last moved)."""

    name: str = "reactive"
    first: Plan = SPLITS[6]
    late_s: float = 0.7

    def start(self) -> tuple[int, int]:
        return 6, 0

    def decide(self, state: tuple[int, int], view: LoadView) -> tuple[Plan, tuple[int, int]]:
        place, moved_ns = state
        if view.now_ns - moved_ns >= 50_000_000:
            if view.ttft_slack_s is not None and view.ttft_slack_s < self.late_s:
                place, moved_ns = max(place - 1, 0), view.now_ns
            elif not view.num_waiting:
                place, moved_ns = min(place + 1, 6), view.now_ns
        return SPLITS[place], (place, moved_ns)


def test_without_decode_first_a_starved_decode_blocks_admission() -> None:
    """A clump of prompts is late once, decode pays for it, rows do not leave, and everybody behind is late too."""
    jobs = sorted(
        jobs_every(0.04, 8.0, 400, 150) + [Job(1_000_000_000, 3000, 20) for _ in range(16)],
        key=lambda job: job.arrival_ns,
    )

    def plant() -> Plant:
        fresh = [Job(job.arrival_ns, job.num_prompt_tokens, job.num_output_tokens) for job in jobs]
        return Plant(fresh, max_rows=96, tpot_s=0.03)

    forecast = Forecast(LatencyModel(PROFILE), SPLITS, TABLE.by_name(TABLE.default_split), 8192)
    trapped = plant().run(Reactive(), 8.0)
    guarded = plant().run(Guarded(Reactive(), (DecodeFirst(forecast),), forecast, TABLE), 8.0)
    assert len(trapped.waiting) > 60
    assert not guarded.waiting
    assert guarded.num_good > 3 * trapped.num_good


def test_without_fallback_a_wrong_model_starves_decode() -> None:
    """Small shares decode four times slower than the profile says, beyond what online correction may bend."""

    def bias(plan: Plan) -> float:
        return 4.0 if plan.decode_units <= 40 else 1.0

    def run(*guards: str) -> Plant:
        model = LatencyModel(PROFILE)
        plant = Plant(jobs_every(0.065, 8.0, 1500, 120), ttft_s=0.6, decode_bias=bias, learns=model)
        return plant.run(slo(*guards, model=model, best_static="p84d48"), 8.0)

    believed = run("hysteresis", "dwell", "decode-first")
    doubted = run("hysteresis", "dwell", "decode-first", "fallback")
    assert len(doubted.rows) < len(believed.rows) / 2  # decode keeps up
    assert doubted.num_good > 1.3 * believed.num_good
    assert "p84d48" in [plan.name for _, plan in doubted.borders]


def test_distrust_holds_longer_each_time_it_comes_back() -> None:
    guard = Fallback(TABLE, TABLE.by_name("p84d48"))
    state, lost_s = guard.start(), []
    border = Border(SPLITS[0], 0)
    was_lost = False
    for now_s in range(1, 60):
        # right under the static plan, wrong again as soon as the predictions are acted on
        view = LoadView(now_s * 10**9, SPLITS[0], 0, True, True, prediction_error=0.0 if state.is_lost else 0.5)
        plan, state = guard.check(state, view, SPLITS[0], border)
        assert plan.name == ("p84d48" if state.is_lost else SPLITS[0].name)
        if state.is_lost and not was_lost:
            lost_s.append(now_s)
        was_lost = state.is_lost
    gaps = [late - early for early, late in pairwise(lost_s)]
    assert gaps == sorted(set(gaps))
    assert len(gaps) >= 3
