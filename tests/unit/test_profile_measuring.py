"""From visits to a profile on a device whose truth is known, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.config.profile import Coefficients, DeviceProfile, NoiseProfile
from colocate.core.plan import build_plan_table
from colocate.errors import ConfigError
from colocate.runtime.profiling.fit import DeviceFacts, fit_profile
from colocate.runtime.profiling.journal import Journal, header_of, read_journal
from colocate.runtime.profiling.profiler import Profiler
from colocate.runtime.profiling.schedule import all_setups
from tests.profiling_world import CONFIG, FACTS, TRUTH, VirtualWorkers, job, spec_of

SETUPS = [setup.name for setup in all_setups(build_plan_table(TRUTH.units, TRUTH.granularity))]
NOISE = NoiseProfile(seed=3, sigma=0.03, tail_probability=0.02, tail_factor=4.0)


def measure(journal_path: Path, workers: VirtualWorkers, **changes: object) -> None:
    wanted = job(journal_path, **changes)
    journal = Journal(journal_path, header_of(CONFIG, FACTS, wanted))
    try:
        Profiler(spec_of(wanted), workers, journal, workers.clock_ns).run()
    finally:
        journal.close()


def fit(journal_path: Path) -> DeviceProfile:
    _, visits, _ = read_journal(journal_path)
    facts = DeviceFacts("known device", "test", 4, 2, 2, "demo", "float32", 1000, {"colocate": "0"}, "now")
    return fit_profile(visits, SETUPS, facts, seed=0)


def assert_close(found: Coefficients, expected: Coefficients, tolerance: float) -> None:
    assert (found.a, found.b, found.c) == pytest.approx((expected.a, expected.b, expected.c), rel=tolerance)


def test_the_truth_of_a_quiet_device_is_recovered(tmp_path: Path) -> None:
    measure(tmp_path / "j.jsonl", VirtualWorkers())
    profile = fit(tmp_path / "j.jsonl")
    assert [share.units for share in profile.shares] == [2, 4]
    for found, expected in zip(profile.shares, TRUTH.shares, strict=True):
        assert_close(found.prefill, expected.prefill, 1e-3)
        assert_close(found.decode, expected.decode, 1e-3)
    for pair, expected_pair in zip(profile.contention, TRUTH.contention, strict=True):
        assert (pair.prefill_units, pair.decode_units) == (expected_pair.prefill_units, expected_pair.decode_units)
        assert (pair.prefill, pair.decode) == pytest.approx((expected_pair.prefill, expected_pair.decode), rel=1e-3)
    assert all(error.max < 1e-3 for error in profile.errors) and len(profile.errors) == 4


def test_noise_and_tails_move_no_coefficient_by_more_than_two_percent(tmp_path: Path) -> None:
    measure(tmp_path / "j.jsonl", VirtualWorkers(NOISE), budget_s=600.0, visit_s=0.5)
    profile = fit(tmp_path / "j.jsonl")
    for found, expected in zip(profile.shares, TRUTH.shares, strict=True):
        assert_close(found.prefill, expected.prefill, 0.02)
        assert_close(found.decode, expected.decode, 0.02)
    for pair, expected_pair in zip(profile.contention, TRUTH.contention, strict=True):
        assert (pair.prefill, pair.decode) == pytest.approx((expected_pair.prefill, expected_pair.decode), rel=0.02)
    assert profile.noise.sigma == pytest.approx(NOISE.sigma, rel=0.25)
    assert profile.noise.tail_probability == pytest.approx(NOISE.tail_probability, rel=0.3)
    assert profile.noise.tail_factor == pytest.approx(NOISE.tail_factor, rel=0.1)


def test_a_killed_run_keeps_its_visits_and_the_next_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with pytest.raises(InterruptedError):
        measure(path, VirtualWorkers(dies_after=1000))
    first = read_journal(path)[1]
    with path.open("ab") as file:
        file.write(b'["Visit"')  # the kernel had half of a line when the power went
    measure(path, VirtualWorkers())
    visits = read_journal(path)[1]
    assert len(first) > 10 and visits[: len(first)] == first
    spent = [visit.spent_s for visit in visits]
    assert spent == sorted(spent) and 60.0 <= spent[-1] < 70.0  # the budget is that of both together
    points = [(visit.setup, visit.state) for visit in visits]
    counts = {point: points.count(point) for point in points}
    assert len(counts) == len(SETUPS) * 12 and max(counts.values()) - min(counts.values()) <= 1
    assert_close(fit(path).shares[0].prefill, TRUTH.shares[0].prefill, 1e-3)


def test_too_small_a_budget_is_said_and_kept(tmp_path: Path) -> None:
    measure(tmp_path / "j.jsonl", VirtualWorkers(), budget_s=2.0)
    with pytest.raises(ConfigError, match="larger --budget"):
        fit(tmp_path / "j.jsonl")


def test_every_plan_is_visited_and_set_only_where_it_changes(tmp_path: Path) -> None:
    workers = VirtualWorkers()
    measure(tmp_path / "j.jsonl", workers)
    assert set(workers.plans_set) == {"p2d2", "all-prefill", "all-decode", "shared"}
    assert all(one != other for one, other in zip(workers.plans_set, workers.plans_set[1:], strict=False))


def test_held_out_states_do_not_reach_the_fit(tmp_path: Path) -> None:
    measure(tmp_path / "j.jsonl", VirtualWorkers(NOISE))
    profile = fit(tmp_path / "j.jsonl")
    held_out = [sample for sample in profile.samples if sample.held_out]
    assert len(held_out) == 3 * (len(SETUPS) + 2)  # a quarter of 12; setups with both phases have two samples each
    path = tmp_path / "j.jsonl"
    header, visits, _ = read_journal(path)
    spoilt = {(s.phase, s.units, s.peer_units, round(s.linear), round(s.pairs)) for s in held_out}
    path.unlink()
    journal = Journal(path, header)
    for visit in visits:
        worse = [
            type(each)(each.phase, each.units, each.peer_units, each.linear, each.pairs, [9 * s for s in each.seconds])
            if (each.phase, each.units, each.peer_units, round(each.linear), round(each.pairs)) in spoilt
            else each
            for each in visit.measured
        ]
        journal.append(type(visit)(visit.setup, visit.state, visit.spent_s, visit.foreign, worse))
    journal.close()
    again = fit(path)
    assert again.shares == profile.shares
    assert min(error.within_15_percent for error in again.errors) < 1.0
