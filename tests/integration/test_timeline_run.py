"""The trace of a real run: an emulated device under `colocate bench`, an urgent prompt, a killed worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import pytest

from colocate.bench.read import Run, read_run
from colocate.core.outbox import Command
from colocate.messages.client import EngineState, Outputs, Submit
from colocate.messages.decode import StepReport
from colocate.telemetry.event_log import LogRecord, read_event_log
from tests.daemon import Daemon, eventually, start_daemon
from tests.limits import LIMIT_S
from tests.streams import Stream, finished
from tests.trace_reader import Slice, Trace, read_trace

PROFILE = ("--profile", "tests/data/layered_profile.yaml", "--no-prefix-caching", "--log-level", "warning")
CLASSES = ("--slo-class", "batch: none", "--slo-class", "interactive: ttft 500 ms, tpot 200 ms")
NUM_REQUESTS = 12


@dataclass
class Recorded:
    """One run from both sides, and its trace."""

    records: list[LogRecord]
    run: Run
    trace: Trace

    def events(self, kind: type) -> list[object]:
        return [record.event for record in self.records if isinstance(record.event, kind)]

    def sent(self, kind: type) -> list[tuple[int, object]]:
        decode = msgspec.msgpack.Decoder(list[Command]).decode
        commands = ((record.now_ns, command) for record in self.records for command in decode(record.commands))
        return [(at_ns, command.message) for at_ns, command in commands if isinstance(command.message, kind)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("timeline")
    with start_daemon(*PROFILE, *CLASSES, "--event-log", str(folder / "log"), "--units", "16") as daemon:
        call("bench", daemon.base_url, *BENCH, "--out", str(folder / "run"))
        have_an_urgent_prompt(daemon)
        old = daemon.kill("decode")
        daemon.wait_replaced("decode", old)
        daemon.complete("hello", max_tokens=3, ignore_eos=True)
        daemon.state()
    call("timeline", str(folder / "log"), "--runs", str(folder / "run"), "-o", str(folder / "trace.json.gz"))
    (log,) = (folder / "log").iterdir()
    yield Recorded(list(read_event_log(log)[1]), read_run(folder / "run"), read_trace(folder / "trace.json.gz"))


BENCH = (
    *("--rate", "12", "--lengths", "24/8", "--num-prompts", str(NUM_REQUESTS), "--quiet", "--lateness-bound", "10"),
    *("--seed", "3", "--arrivals", "constant"),
)


def call(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "colocate", *arguments], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


def have_an_urgent_prompt(daemon: Daemon) -> None:
    long = Stream(daemon, 1, prompt=list(range(300, 600)), max_tokens=2, slo_class="batch")
    eventually(lambda: daemon.state()["queue"]["prefill_running"], LIMIT_S, "the long prompt is under way")
    short = Stream(daemon, 2, prompt=[5, 6, 7], max_tokens=1, slo_class="interactive")
    assert len(finished(short)) == 1 and len(finished(long)) == 2


def test_every_request_of_the_log_stands_there_once(recorded: Recorded) -> None:
    shown = {root.args["request"]: root for root in recorded.trace.roots_of("requests")}
    submits: list[Submit] = recorded.events(Submit)  # type: ignore[assignment]
    assert len(recorded.trace.roots_of("requests")) == len(shown)
    assert set(shown) == {submit.request_id for submit in submits} and len(shown) >= NUM_REQUESTS + 3
    for submit in submits:
        root = shown[submit.request_id]
        assert root.args["finish"] == "length" and root.args["output_tokens"] == submit.params.max_tokens
        assert [part.name for part in root.inside if part.name in ("tokenize", "prefill")] == ["tokenize", "prefill"]
        assert all(before.end_ns == after.start_ns for before, after in pairwise(root.inside))
        assert (root.inside[0].start_ns, root.inside[-1].end_ns) == (root.start_ns, root.end_ns)


def test_steps_follow_one_another_and_forwards_nest(recorded: Recorded) -> None:
    steps = recorded.trace.roots_of("decode worker", "decode steps")
    assert all(before.end_ns <= after.start_ns for before, after in pairwise(steps))
    reports: list[StepReport] = [report for report in recorded.events(StepReport) if report.rows]  # type: ignore
    assert [step.args["step"] for step in steps] == [report.step for report in reports]
    assert sum(step.args["tokens"] for step in steps) == sum(len(report.rows) for report in reports)
    (long,) = [found for found in all_slices(recorded.trace) if found.args.get("set_aside")]
    (urgent,) = [found for found in all_slices(recorded.trace) if found.name.startswith("urgent prefill")]
    assert long.inside == [urgent] and urgent.args["tokens"] == 3 < long.args["tokens"]


def all_slices(trace: Trace) -> list[Slice]:
    found: list[Slice] = []
    stack = [root for roots in trace.roots.values() for root in roots]
    while stack:
        found.append(stack.pop())
        stack += found[-1].inside
    return found


def test_a_hand_over_leads_to_the_first_step_of_its_row(recorded: Recorded) -> None:
    """One per request that drew more than its first token."""
    ends = [item for _, message in recorded.sent(Outputs) for item in message.items if item.finish]  # type: ignore
    submits = {submit.request_id: submit for submit in recorded.events(Submit)}  # type: ignore[attr-defined]
    assert len(ends) == len(submits)
    assert len(recorded.trace.arrows) == sum(submit.params.max_tokens > 1 for submit in submits.values())
    for forward, step in recorded.trace.arrows:
        assert "prefill" in forward.name and forward.end_ns <= step.start_ns


def test_counters_match_what_the_engine_answered(recorded: Recorded) -> None:
    """Each `/state` is a look at the same books by another path."""
    answers: list[tuple[int, EngineState]] = recorded.sent(EngineState)  # type: ignore[assignment]
    assert len(answers) > 3
    origin_ns = min(recorded.records[0].now_ns, recorded.run.manifest.client["start_monotonic_ns"])  # type: ignore
    value_at = recorded.trace.value_at
    for now_ns, state in answers:
        at_ns = now_ns - origin_ns
        blocks = value_at("engine", "blocks", at_ns)
        assert blocks["free"] == state.blocks_free and blocks["cached"] == state.blocks_cached
        assert sum(blocks.values()) == state.blocks_total
        assert value_at("engine", "waiting", at_ns) == {"requests": state.num_waiting}
        assert value_at("engine", "running", at_ns)["decode"] == state.num_decode_running
        units = value_at("plans", "units asked for", at_ns)
        assert (units["prefill"], units["decode"]) == (state.plan.prefill_units, state.plan.decode_units)
    assert sum(" to " in name and "reason" in args for _, name, _, args in recorded.trace.instants) >= (
        answers[-1][1].switch_count
    )


def test_plans_are_applied_after_they_were_asked_for(recorded: Recorded) -> None:
    assert len(recorded.trace.roots_of("plans", "plan asked for")) > 2  # an idle phase lends its units
    for role in ("prefill", "decode"):
        applied = recorded.trace.roots_of("plans", f"plan of {role}")
        assert len(applied) > 2
        assert all(before.end_ns <= after.start_ns for before, after in pairwise(applied))
        assert all(found.args["after_decision_ms"] >= 0 for found in applied if "after_decision_ms" in found.args)
    lived = [name for _, name, _, _ in recorded.trace.instants if name.startswith("decode ")]
    assert lived == ["decode ready", "decode lost", "decode ready"]


def test_the_client_saw_the_same_requests_on_the_same_axis(recorded: Recorded) -> None:
    (client,) = [name for name in recorded.trace.processes.values() if name.endswith(": requests")]
    seen = recorded.trace.roots_of(client)
    assert [root.args["index"] for root in seen] == list(range(NUM_REQUESTS))
    served = sorted(recorded.trace.roots_of("requests"), key=lambda root: root.start_ns)
    for root in seen:  # the server's slice of it lies within the client's
        assert any(root.start_ns <= found.start_ns and found.end_ns <= root.end_ns for found in served)
    for row in recorded.run.rows:
        assert row.stages is not None and row.end_s is not None and row.sent_s is not None
        spent_s = [getattr(row.stages, name) for name in row.stages.__struct_fields__]
        assert 0 < sum(spent_s) <= row.end_s - row.sent_s
