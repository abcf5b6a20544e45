"""Traces of simulated runs: every mode, preemption, refusals, and whoever leaves."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from colocate.cli.timeline import Ask, run_timeline
from colocate.core.engine import Engine
from colocate.messages.client import Abort, Submit
from colocate.messages.sampling import SamplingParams
from colocate.sim.run import simulate
from colocate.telemetry.event_log import EventLogWriter, LogRecord, read_event_log
from colocate.workload.recipe import Recipe, cook
from tests.sim.devices import exact
from tests.trace_reader import Trace, read_trace

LOAD = cook(Recipe(rates=(100.0,), lengths=("lognormal:100,0.8/70,0.3",), duration_s=1.0), 7)


def traced(log: Path) -> Trace:
    assert run_timeline(Ask((log,), log.with_suffix(".json"))) == 0
    return read_trace(log.with_suffix(".json"))


@pytest.mark.parametrize("mode", ["colocated", "shared", "chunked"])
def test_every_mode(tmp_path: Path, mode: str) -> None:
    log = tmp_path / "run.log"
    run = simulate(LOAD, exact(mode=mode, kv_tokens=1_500), event_log=log)
    trace = traced(log)
    shown = trace.roots_of("requests")
    assert len(shown) == run.summary.num_offered == len(LOAD.rows)
    assert sum(root.args["output_tokens"] for root in shown) == sum(row.output_tokens for row in LOAD.rows)
    assert sum(root.args["preemptions"] for root in shown) == run.summary.num_preemptions > 0
    workers = {name for name in trace.processes.values() if name.endswith("worker")}
    assert workers == ({"hybrid worker"} if mode == "chunked" else {"prefill worker", "decode worker"})
    for root in shown:  # the time of a request is the time of its stages
        assert sum(part.end_ns - part.start_ns for part in root.inside) == root.end_ns - root.start_ns
        stages = [part.name for part in root.inside]
        assert stages.count("prefill") == 1 + root.args["preemptions"]


def test_who_left_and_who_was_refused(tmp_path: Path) -> None:
    simulate(LOAD, exact(kv_tokens=4_000), event_log=tmp_path / "run.log")
    header, records = read_event_log(tmp_path / "run.log")
    kept = list(records)
    now_ns = kept[-1].now_ns
    late = [
        Submit(900, [1] * 5000, SamplingParams(max_tokens=7), now_ns),
        Submit(901, [1] * 50, SamplingParams(max_tokens=7), now_ns + 5),
        Abort([901]),
    ]
    engine = Engine(header.settings)
    engine.first_commands()
    writer = EventLogWriter(tmp_path / "more.log", header)
    for record in [*kept, *(LogRecord(now_ns + 10 * at, event, msgspec.Raw(b"")) for at, event in enumerate(late, 1))]:
        writer.record(record.now_ns, record.event, engine.handle(record.event, record.now_ns))
    writer.close()
    ended = {root.args["request"]: root.args for root in traced(tmp_path / "more.log").roots_of("requests")}
    assert ended[900]["finish"] == "rejected (400)" and "the whole pool holds" in ended[900]["error"]
    assert ended[901]["finish"] in ("abort", "runs on")
    assert {args["finish"] for request_id, args in ended.items() if request_id < 900} == {"length"}
