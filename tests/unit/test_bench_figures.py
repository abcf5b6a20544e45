"""Figures of rows small enough to work out by hand, and what holds for any rows."""

from __future__ import annotations

import math
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.bench.figures import attainment_at_scales, run_figures, write_figures
from colocate.bench.metrics.attainment import Promises, is_good
from colocate.bench.metrics.denominators import DENOMINATORS, denominator
from colocate.bench.metrics.distribution import distribution
from colocate.bench.metrics.latency import itl_p99_s
from colocate.bench.read import Run, read_run
from colocate.bench.records import RequestRow, ServerSample, Stages
from colocate.bench.slo_library import published_definitions
from colocate.config.slo import SloClass
from colocate.errors import ConfigError
from tests.bench_rows import drawn_runs, row, run, write_run

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "recompute.py"
RECOMPUTE = runpy.run_path(str(SCRIPT))


def golden() -> Run:
    """Window 1 s to 9 s; promise: first token in 300 ms, 50 ms per token. Good: 0, 3 and 6."""
    return run(
        [
            row(0, 2.0, (2.2, 2.24, 2.28)),  # TTFT 200 ms, TPOT 40 ms
            row(1, 3.0, (3.4, 3.44)),  # TTFT 400 ms: misses
            row(2, 4.0, (4.1, 4.2, 4.2, 4.4)),  # TPOT 100 ms: misses
            row(3, 5.0, (5.25,)),  # one token has no TPOT
            row(4, 6.0, outcome="rejected", status=429, error_kind="http_429"),
            row(5, 7.0, outcome="not_sent", sent_s=None),
            row(6, 8.9, (8.98, 9.02)),  # its second token is outside the window
            row(7, 0.5, (0.9, 1.5), phase="warmup"),  # its second token is inside
        ]
    )


def test_figures_of_golden_rows() -> None:
    figures = run_figures(golden())
    assert figures.window_s == 8.0
    assert (figures.num_offered, figures.num_finished) == (7, 5)
    assert figures.outcomes == {"finished": 5, "not_sent": 1, "rejected": 1}
    assert figures.failures == {"not_sent": 1, "rejected: http_429": 1}
    assert (figures.rejected.good, figures.rejected.of) == (1, 7)
    assert (figures.attainment.good, figures.attainment.of) == (3, 7)
    assert (figures.attainment_ttft.good, figures.attainment_tpot.good) == (4, 4)
    assert figures.attainment_itl.value is None
    assert figures.goodput_per_s == 3 / 8
    assert figures.offered_per_s == 7 / 8
    assert figures.completed_per_s == 5 / 8  # 0 to 3, and the warm-up request
    assert figures.output_tokens_per_s == 12 / 8  # 3 + 2 + 4 + 1 + 1, and one of warm-up
    assert figures.input_tokens_per_s == 500 / 8
    ttft = figures.ttft_s  # 80, 100, 200, 250, 400 ms
    assert [ttft.count, ttft.mean, ttft.p50, ttft.p90, ttft.p99] == pytest.approx([5, 0.206, 0.2, 0.34, 0.394])
    tpot = figures.tpot_s  # 40, 40, 40, 100 ms
    assert [tpot.count, tpot.mean, tpot.p50, tpot.p90] == pytest.approx([4, 0.055, 0.04, 0.082])
    itl = figures.itl_s  # 0, 40, 40, 40, 40, 100, 200 ms
    assert [itl.count, itl.mean, itl.p50, itl.p99] == pytest.approx([7, 0.46 / 7, 0.04, 0.194])
    e2e = figures.e2e_s  # 120, 250, 280, 400, 440 ms
    assert [e2e.count, e2e.mean, e2e.p50, e2e.p75] == pytest.approx([5, 0.298, 0.28, 0.4])
    assert figures.itl_p99_s.max == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "good", "of"),
    [
        ("colocate", 3, 7),
        ("distserve", 3, 5),
        ("vllm", 3, 5),
        ("sglang", 3, 6),  # the one that was not sent is not in it
        ("guidellm", 2, 4),  # the answer of one token is not judged
        ("aiperf", 2, 6),  # the answer of one token is not good, the error is in it
        ("inference-perf", 3, 5),
    ],
)
def test_each_denominator_of_the_same_log(name: str, good: int, of: int) -> None:
    figures = run_figures(golden(), denominator_name=name)
    assert (figures.attainment.good, figures.attainment.of) == (good, of)
    assert figures.attainment == figures.attainment_by_denominator[name]
    assert figures.goodput_per_s == good / 8


def test_every_denominator_is_tested_and_an_unknown_one_refused() -> None:
    assert len(DENOMINATORS) == 7
    with pytest.raises(ConfigError, match="one of colocate, distserve"):
        denominator("mlperf")


def test_one_token_is_judged_where_nothing_is_promised_about_gaps() -> None:
    figures = run_figures(golden(), Promises((SloClass("first", ttft_s=0.3),)))
    assert figures.attainment_by_denominator["guidellm"].of == 5
    assert figures.attainment_by_denominator["aiperf"].good == figures.attainment.good == 4


def _recompute(folder: Path) -> list[tuple[float | None, float | None, str]]:
    """(what is in figures.json, what the script makes of the rows, name)."""
    facts, told = (msgspec.json.decode((folder / name).read_bytes()) for name in ("manifest.json", "figures.json"))
    rows = [msgspec.json.decode(line) for line in (folder / "requests.jsonl").read_bytes().splitlines()]
    found: list[tuple[float | None, float | None, str]] = list(RECOMPUTE["recompute"](facts, rows, told))
    return found


def test_recompute_agrees_with_the_golden_figures(tmp_path: Path) -> None:
    write_figures(write_run(tmp_path, golden()), run_figures(golden()))
    mine = {name: value for _, value, name in _recompute(tmp_path)}
    assert len(mine) == 5 + 4 * 3
    assert (mine["offered"], mine["attainment"], mine["goodput"]) == (7, 3 / 7, 0.375)
    assert (mine["output throughput"], mine["input throughput"]) == (1.5, 62.5)
    assert [mine["ttft_s p90"], mine["tpot_s p90"], mine["itl_s p99"]] == pytest.approx([0.34, 0.082, 0.194])
    assert mine["e2e_s p50"] == pytest.approx(0.28)


def test_recompute_names_a_figure_that_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_figures(write_run(tmp_path, golden()), run_figures(golden()))
    assert _recompute_exit(tmp_path) == 0
    told = msgspec.json.decode((tmp_path / "figures.json").read_bytes())
    told["tpot_s"]["p90"] *= 1 + 1e-6
    (tmp_path / "figures.json").write_bytes(msgspec.json.encode(told))
    assert _recompute_exit(tmp_path) == 1
    assert "tpot_s p90 is" in capfd.readouterr().out


@pytest.mark.parametrize(("status", "elapsed_s"), [("partial", 5.0), ("failed", 0.0)])
def test_recompute_leaves_a_run_that_was_cut(
    tmp_path: Path, status: str, elapsed_s: float, capfd: pytest.CaptureFixture[str]
) -> None:
    made = run(golden().rows, status=status, elapsed_s=elapsed_s)
    write_figures(write_run(tmp_path, made), run_figures(made))
    assert _recompute_exit(tmp_path) == 2
    assert "cut before its end" in capfd.readouterr().err


def _recompute_exit(folder: Path) -> int:
    return subprocess.run([sys.executable, str(SCRIPT), str(folder)], check=False).returncode


@settings(max_examples=60, deadline=None)
@given(made=drawn_runs())
def test_recompute_agrees_with_any_finished_run(made: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = replace(made, manifest=msgspec.structs.replace(made.manifest, status="valid", elapsed_s=10.5))
    folder = write_run(tmp_path_factory.mktemp("run"), whole)
    write_figures(folder, run_figures(read_run(folder)))
    for theirs, mine, name in _recompute(folder):
        assert RECOMPUTE["is_same"](theirs, mine), name


@settings(max_examples=60, deadline=None)
@given(made=drawn_runs(), seed=st.integers(0, 9))
def test_what_holds_for_any_run(made: Run, seed: int) -> None:
    figures = run_figures(made)
    shuffled = list(made.rows)
    Random(seed).shuffle(shuffled)
    assert run_figures(replace(made, rows=tuple(shuffled))) == figures
    assert sum(figures.outcomes.values()) == figures.num_offered == figures.attainment.of
    assert sum(figures.failures.values()) == figures.num_offered - figures.num_finished
    assert sum(part.of for part in figures.attainment_by_class.values()) == figures.num_offered
    assert sum(part.good for part in figures.attainment_by_class.values()) == figures.attainment.good
    for share in figures.attainment_by_denominator.values():
        if share.value is not None:
            assert 0.0 <= (share.low or 0.0) <= share.value <= (share.high or 0.0) <= 1.0
    by = figures.attainment_by_denominator
    assert by["colocate"].of >= by["sglang"].of >= by["vllm"].of >= by["guidellm"].of
    assert by["aiperf"].of >= by["vllm"].of
    assert by["colocate"].good == by["sglang"].good == by["vllm"].good >= by["aiperf"].good == by["guidellm"].good
    if by["vllm"].value is not None:
        assert (by["colocate"].value or 0) <= (by["sglang"].value or 0) <= by["vllm"].value
    for found in (figures.ttft_s, figures.tpot_s, figures.itl_s, figures.e2e_s):
        cuts = [cut for cut in (found.p50, found.p75, found.p90, found.p95, found.p99, found.max) if cut is not None]
        assert cuts == sorted(cuts)


@settings(max_examples=40, deadline=None)
@given(made=drawn_runs())
def test_easier_targets_keep_more(made: Run) -> None:
    shares = attainment_at_scales(made, (0.5, 1.0, 2.0, 1e6))
    assert [share.good for share in shares.values()] == sorted(share.good for share in shares.values())
    assert shares[1.0] == run_figures(made).attainment
    assert shares[1e6].good == run_figures(made).num_finished


def test_a_stall_fails_the_itl_target_that_tpot_forgives() -> None:
    times = [0.1 + 0.01 * i for i in range(60)]
    stalled = row(0, 0.0, [*times, times[-1] + 2.0])
    assert not is_good(stalled, SloClass("steady", itl_s=0.1))
    assert is_good(stalled, SloClass("mean", tpot_s=0.05))
    forgiven = row(0, 0.0, [*times, *(times[-1] + 2.0 + 0.01 * i for i in range(60))])  # 119 gaps: one may be late
    assert itl_p99_s(forgiven) == pytest.approx(0.01)


def test_what_failed_keeps_no_promise_but_shows_its_first_token() -> None:
    broken = row(0, 2.0, (2.1, 2.2), outcome="failed", error_kind="reset")
    figures = run_figures(run([broken]))
    assert figures.ttft_s.count == 1 and figures.tpot_s.count == figures.e2e_s.count == 0
    assert figures.attainment_ttft.good == figures.attainment.good == 0


def test_lateness_of_the_client_is_in_the_latency() -> None:
    figures = run_figures(run([row(0, 2.0, (2.5,), sent_s=2.3)]))
    assert figures.ttft_s.p50 == pytest.approx(0.5) and figures.lateness_s.p50 == pytest.approx(0.3)
    assert figures.attainment.good == 0


def test_what_nobody_offered_is_not_offered() -> None:
    unsent = [row(index, 4.0 + index, outcome="not_sent", sent_s=None) for index in range(3)]
    assert run_figures(run(unsent)).num_offered == 3
    cut = run_figures(run(unsent, elapsed_s=4.5, status="partial"))
    assert (cut.num_offered, cut.window_s) == (1, 3.5)
    assert run_figures(run(unsent, offered_rate=None, concurrency=2)).num_offered == 0


def test_a_class_that_nobody_defined_is_named_and_judged_by_the_default() -> None:
    figures = run_figures(run([row(0, 2.0, (2.1,), slo_class="vip")]))
    assert figures.unknown_classes == ("vip",) and figures.attainment_by_class["chat"].good == 1


def test_p99_9_is_withheld_of_few_values() -> None:
    few, enough = distribution([float(i) for i in range(999)]), distribution([float(i) for i in range(1001)])
    assert few.p99_9 is None and "999 of 1000" in few.withheld
    assert enough.p99_9 == pytest.approx(999.0) and enough.withheld == ""
    nothing = distribution([None])
    assert (nothing.count, nothing.mean, nothing.p50) == (0, None, None)


def test_figures_of_the_server_and_stages() -> None:
    samples = [
        ServerSample(0.5, kv_usage=0.9, preemptions=7, power_w=500.0),  # warm-up
        ServerSample(2.0, kv_usage=0.2, waiting=0, preemptions=3, switches=0, power_w=100.0, resident_bytes=10),
        ServerSample(4.0, kv_usage=0.4, waiting=4, preemptions=5, switches=2, power_w=200.0, resident_bytes=30),
        ServerSample(5.0, kv_usage=0.6, waiting=2, preemptions=1, switches=2, power_w=400.0, resident_bytes=20),
    ]
    rows: list[RequestRow] = [
        row(0, 1.5, (1.9, 2.0, 3.0, 5.0), cached_tokens=25, stages=Stages(queue_s=0.1)),
        row(1, 1.6, (4.9, 5.1), cached_tokens=75, stages=Stages(queue_s=0.3)),
        row(2, 1.7, (8.0,)),
    ]
    figures = run_figures(run(rows, samples))
    server = figures.server
    assert server.num_samples == 3
    assert (server.kv_usage_mean, server.kv_usage_peak) == (pytest.approx(0.4), 0.6)
    assert (server.waiting_mean, server.waiting_peak, server.memory_peak_bytes) == (2.0, 4, 30)
    assert (server.num_preemptions, server.num_switches) == (3, 2)  # 3 to 5, a restart, then 1
    assert server.energy_j == 2 * 150.0 + 1 * 300.0
    assert server.joules_per_output_token == 600.0 / 3  # tokens at 2.0, 3.0 and 4.9
    assert figures.cached_share == 0.5
    assert list(figures.stages) == ["queue_s"] and figures.stages["queue_s"].mean == pytest.approx(0.2)


def test_a_run_without_rows_has_figures_too() -> None:
    figures = run_figures(run([]))
    assert figures.attainment.value is None and figures.goodput_per_s == 0.0 and figures.ttft_s.count == 0
    assert math.isclose(figures.window_s, 8.0)


def test_the_documentation_names_every_denominator_and_definition() -> None:
    text = (SCRIPT.parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in DENOMINATORS:
        assert f"`{name}`" in text, name
    for definition in published_definitions():
        assert f"`{definition.name}`" in text, definition.name
