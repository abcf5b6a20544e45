"""The closed-form forecast of a plan against the simulator, on a device that is exactly as its profile says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from colocate.config.plan_file import Load
from colocate.config.profile import NoiseProfile, load_profile
from colocate.config.slo import SloClass
from colocate.core.forecast import Limits, PlanForecast, forecast_plans
from colocate.core.latency import LatencyModel
from colocate.core.plan import build_plan_table
from colocate.sim.records import RequestRecord
from colocate.sim.run import simulate
from colocate.sim.settings import SimSettings
from colocate.workload.lengths import LognormalLengths
from colocate.workload.rows import Workload
from colocate.workload.segments import Segment, synthetic

PROFILE = load_profile(Path("configs/profiles/emulated-h200-roofline.yaml"))
LIMITS = Limits(max_num_seqs=256, max_num_batched_tokens=2048, kv_tokens=400_000)
SLO = SloClass("target", ttft_s=0.3, tpot_s=0.05)


def workload_of(rate: float, duration_s: float) -> Workload:
    """Prompts of about 1,000 tokens and answers of about 200, both with a coefficient of variation of 1."""
    sigma = math.sqrt(math.log(2.0))
    medians = 1000 / math.exp(sigma**2 / 2), 200 / math.exp(sigma**2 / 2)
    lengths = LognormalLengths(medians[0], sigma, medians[1], sigma)
    return synthetic("steady", [Segment(duration_s, rate, lengths)], seed=1)


def load_of(workload: Workload) -> Load:
    """The moments of what was drawn, so that the draw itself is no difference."""
    prompts = [row.prompt_tokens for row in workload.rows]
    outputs = [row.output_tokens for row in workload.rows]
    n = len(workload.rows)
    return Load(
        workload.rate,
        sum(prompts) / n,
        sum(length**2 for length in prompts) / n,
        sum(outputs) / n,
        sum(length**2 for length in outputs) / n,
    )


def forecast_of(plan: str, workload: Workload) -> PlanForecast:
    table = build_plan_table(PROFILE.units, PROFILE.granularity)
    forecasts = forecast_plans(LatencyModel(PROFILE), table, load_of(workload), SLO, LIMITS)
    return next(each for each in forecasts if each.plan.name == plan)


def simulated(plan: str, workload: Workload) -> tuple[RequestRecord, ...]:
    settings = SimSettings(
        profile=PROFILE,
        noise=NoiseProfile(),
        truth_error=0.0,
        kv_tokens=LIMITS.kv_tokens,
        plan=f"static:{plan}",
        prefix_caching=False,
        max_num_seqs=LIMITS.max_num_seqs,
        max_num_batched_tokens=LIMITS.max_num_batched_tokens,
    )
    return simulate(workload, settings).records


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


@pytest.mark.parametrize("plan", ["p108d24", "p84d48", "shared"])
def test_the_forecast_is_near_what_the_simulator_does(plan: str) -> None:
    workload = workload_of(rate=10.0, duration_s=60.0)
    forecast = forecast_of(plan, workload)
    records = simulated(plan, workload)
    ttfts_s = [record.ttft_s for record in records if record.ttft_s is not None]
    answers = [(record.tpot_s, record.output_tokens - 1) for record in records if record.tpot_s is not None]
    mean_tpot_s = sum(tpot_s * steps for tpot_s, steps in answers) / sum(steps for _, steps in answers)
    assert forecast.ttft_p50_s == pytest.approx(quantile(ttfts_s, 0.5), rel=0.15)
    assert forecast.ttft_p90_s == pytest.approx(quantile(ttfts_s, 0.9), rel=0.2)
    assert forecast.tpot_s == pytest.approx(mean_tpot_s, rel=0.1)


def test_a_load_called_too_much_does_pile_up() -> None:
    """Prefill of p44d88 keeps up with 10 requests a second and not with 14."""
    for rate, is_too_much in ((10.0, False), (14.0, True)):
        workload = workload_of(rate, duration_s=60.0)
        assert forecast_of("p44d88", workload).is_saturated is is_too_much
        ttfts_s = [record.ttft_s or math.inf for record in simulated("p44d88", workload)]
        first, last = ttfts_s[: len(ttfts_s) // 4], ttfts_s[-len(ttfts_s) // 4 :]
        assert (quantile(last, 0.5) > 3 * quantile(first, 0.5) + 2.0) is is_too_much
