"""The trace of an event log, read back by an independent reader that asserts the format's rules."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.cli.timeline import Ask, run_timeline
from colocate.core.engine import Engine
from colocate.errors import ConfigError
from colocate.messages.client import Submit
from colocate.messages.decode import StepReport
from colocate.messages.prefill import PrefillDone
from colocate.telemetry.event_log import EventLogWriter, read_event_log
from colocate.telemetry.timeline.trace import Lanes, NestedTracks, TraceWriter, Track
from tests.trace_reader import Trace, read_trace
from tests.unit.test_event_log import write_log

STAGES = {"tokenize", "queue", "prefill", "decode"}
WAITS = {"waits for decode", "prefill is told to drop it", "decode is told to drop it"}


def trace_of(log: Path, **how: float) -> Trace:
    out = log.with_suffix(".json")
    assert run_timeline(Ask((log,), out, **how)) == 0  # type: ignore[arg-type]
    return read_trace(out)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Four requests, a preemption, a killed decode worker."""
    write_log(tmp_path / "engine.log")
    return tmp_path / "engine.log"


def test_everything_in_the_log_stands_there_once(log: Path) -> None:
    trace = trace_of(log)
    records = list(read_event_log(log)[1])
    submits = [record.event for record in records if isinstance(record.event, Submit)]
    shown = trace.roots_of("requests")
    assert sorted(root.args["request"] for root in shown) == sorted(submit.request_id for submit in submits)
    for root in shown:
        assert root.args["finish"] == "length" and root.args["output_tokens"] == 14
        assert {"prefill", "decode"} <= {part.name for part in root.inside} <= STAGES | WAITS
        assert all(before.end_ns <= after.start_ns for before, after in pairwise(root.inside))
        assert sum(part.end_ns - part.start_ns for part in root.inside) == root.end_ns - root.start_ns
    steps = [record.event for record in records if isinstance(record.event, StepReport) and record.event.rows]
    drawn = trace.roots_of("decode worker", "decode steps")
    assert [step.args["rows"] for step in drawn] == [len(step.rows) for step in steps]
    forwards = [record.event for record in records if isinstance(record.event, PrefillDone) and record.event.rows]
    assert len(trace.roots_of("prefill worker", "prefill forwards")) == len(forwards)
    lived = [name for _, name, _, _ in trace.instants if "ready" in name or "lost" in name]
    assert Counter(lived) == {"prefill ready": 1, "decode ready": 2, "decode lost": 1}


def test_every_hand_over_is_an_arrow_from_a_forward_to_a_step(log: Path) -> None:
    trace = trace_of(log)
    for forward, step in trace.arrows:
        assert forward.name.startswith("prefill of") and step.name.startswith("step of")
    drawn = sum(
        row.token_id is not None
        for record in read_event_log(log)[1]
        if isinstance(record.event, PrefillDone)
        for row in record.event.rows
    )
    assert 4 <= len(trace.arrows) <= drawn


def test_counters_and_plans_are_the_engine_s(log: Path) -> None:
    trace = trace_of(log)
    header, records = read_event_log(log)
    engine = Engine(header.settings)
    engine.first_commands()
    start_ns = None
    for record in records:
        engine.handle(record.event, record.now_ns)
        start_ns = record.now_ns if start_ns is None else start_ns
        last = record.now_ns - start_ns
    preempted = sum(root.args["preemptions"] for root in trace.roots_of("requests"))
    assert preempted == engine.books.num_preemptions > 0
    blocks = trace.value_at("engine", "blocks", last)
    assert blocks["free"] == engine.books.pool.num_free and sum(blocks.values()) == header.settings.num_blocks
    assert blocks["draining"] == 0 and trace.value_at("engine", "running", last) == {"prefill": 0, "decode": 0}
    asked = trace.roots_of("plans", "plan asked for")
    switches = [instant for instant in trace.instants if instant[1].count(" to ")]
    assert len(switches) == engine.ledger.count == len(asked) - 1
    assert all(instant[3]["reason"] for instant in switches)
    assert asked[-1].name == engine.plan.name
    assert all(before.end_ns == after.start_ns for before, after in pairwise(asked))


def test_a_window_cuts_what_reaches_out_of_it(log: Path) -> None:
    whole = trace_of(log)
    longest = max(whole.roots_of("requests"), key=lambda root: root.end_ns - root.start_ns)
    from_ns, to_ns = longest.start_ns + 10, longest.end_ns - 10
    cut = trace_of(log, from_s=from_ns / 1e9, to_s=to_ns / 1e9)
    slices = [root for roots in cut.roots.values() for root in roots]
    assert all(from_ns <= found.start_ns and found.end_ns <= to_ns for found in slices)
    (shown,) = [found for found in slices if found.args.get("request") == longest.args["request"]]
    assert (shown.start_ns, shown.end_ns) == (from_ns, to_ns) and shown.args["cut"] is True
    assert cut.value_at("engine", "blocks", from_ns) == whole.value_at("engine", "blocks", from_ns)
    assert cut.value_at("engine", "blocks", to_ns) == whole.value_at("engine", "blocks", to_ns)


def test_a_log_that_is_cut_off_shows_what_was_under_way(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = log.read_bytes()
    log.write_bytes(data[: len(data) // 2])
    trace = trace_of(log)
    assert "was cut off" in capsys.readouterr().out
    assert "runs on" in {root.args["finish"] for root in trace.roots_of("requests")}


def test_several_logs_lie_on_one_axis_and_compression_changes_nothing(log: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "more.log")
    assert run_timeline(Ask((tmp_path,), tmp_path / "both.json.gz")) == 0
    assert run_timeline(Ask((tmp_path,), tmp_path / "both.json")) == 0
    assert gzip.decompress((tmp_path / "both.json.gz").read_bytes()) == (tmp_path / "both.json").read_bytes()
    both = read_trace(tmp_path / "both.json.gz")
    assert len(both.roots_of("engine: requests")) == len(both.roots_of("more: requests")) == 4


def test_refusals(log: Path, tmp_path: Path) -> None:
    header, read = read_event_log(log)
    records = list(read)
    other = EventLogWriter(tmp_path / "other.log", header)
    for record in records[:-1]:
        other.record(record.now_ns, record.event, [])
    other.close()
    out = tmp_path / "out.json"
    with pytest.raises(ConfigError, match="decides otherwise"):
        run_timeline(Ask((tmp_path / "other.log",), out))
    EventLogWriter(tmp_path / "empty.log", header).close()
    with pytest.raises(ConfigError, match="holds no event"):
        run_timeline(Ask((tmp_path / "empty.log",), out))
    with pytest.raises(ConfigError, match="is not after"):
        run_timeline(Ask((log,), out, 2.0, 1.0))
    with pytest.raises(ConfigError, match="cannot be written"):
        run_timeline(Ask((log,), tmp_path / "no" / "such" / "folder.json"))
    assert not list(tmp_path.glob("out*"))  # nothing half done is left


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=40),
)
def test_slices_in_order_of_their_ends_never_cross(
    tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, int]]
) -> None:
    out = tmp_path_factory.mktemp("trace") / "t.json"
    with TraceWriter(out, 0) as writer:
        tracks = NestedTracks(writer, writer.process("p"), "t")
        for start, end in sorted(((start, start + length) for start, length in spans), key=lambda span: span[1]):
            writer.slice(tracks.place(start, end), "s", start, end)
    trace = read_trace(out)  # asserts that they nest

    def count(slices: list) -> int:  # type: ignore[type-arg]
        return sum(1 + count(found.inside) for found in slices)

    assert sum(count(roots) for roots in trace.roots.values()) == len(spans)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=40))
def test_lanes_are_as_many_as_overlap(tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, int]]) -> None:
    out = tmp_path_factory.mktemp("trace") / "t.json"
    spans = sorted((start, start + length) for start, length in spans)
    used: set[Track] = set()
    with TraceWriter(out, 0) as writer:
        lanes = Lanes(writer, writer.process("p"), "t")
        for start, end in spans:
            track = lanes.take(start)
            used.add(track)
            writer.slice(track, "s", start, end)
            lanes.give_back(track, end)
    trace = read_trace(out)
    assert all(not root.inside for roots in trace.roots.values() for root in roots)
    most = max(sum(start <= at < end for start, end in spans) for at, _ in spans)
    assert len(used) == most


def test_the_file_is_json_line_by_line(log: Path) -> None:
    """So that `grep` and a cut file still tell something."""
    trace_of(log)
    lines = log.with_suffix(".json").read_text().splitlines()
    for line in lines[1:-1]:
        json.loads(line.rstrip(","))
