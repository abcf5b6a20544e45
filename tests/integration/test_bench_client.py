"""The client against a golden server: every request a row, every token counted, times that cannot be otherwise."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from colocate.bench.http import Address, exchange, request_bytes
from colocate.bench.loop import LoadRun
from colocate.bench.plan import BenchPlan
from colocate.bench.prompts import Answered, IdPrompts, prepare_prompts
from colocate.bench.records import RequestRow, RunManifest, ServerSample
from colocate.bench.run import run_bench
from colocate.bench.stream import StreamSink
from colocate.bench.target import find_target
from colocate.errors import ConfigError
from colocate.workload.prompts import PromptLayout
from colocate.workload.rows import WorkloadRow
from tests.bench_runs import load_of, plan_for, rows_in, same_rows
from tests.daemon import eventually
from tests.golden_server import (
    FAULT_AFTER,
    FIRST_ID,
    Call,
    Script,
    Sent,
    golden_here,
    golden_process,
)
from tests.limits import LIMIT_S

HERE = Path(__file__).parents[2]


@pytest.mark.parametrize("tells", ["ids", "running", "usage", "last"])
@pytest.mark.parametrize("tokens_per_event", [1, 3])
def test_counts_are_exact(tmp_path: Path, tells: str, tokens_per_event: int) -> None:
    rows = [WorkloadRow(index / 100, 5 + index, 1 + index % 8) for index in range(24)]
    with golden_process(Script(tells=tells, tokens_per_event=tokens_per_event)) as golden:
        manifest = run_bench(plan_for(golden, tmp_path / "run", load_of(*rows), keep_token_ids=True), quiet=True)
        sent = golden.runs()
    found = rows_in(tmp_path / "run")

    assert manifest.status == "valid"
    assert [row.index for row in found] == list(range(24))
    assert [len(each.prompt) for each in sent] == [row.prompt_tokens for row in rows]
    assert [each.max_tokens for each in sent] == [row.output_tokens for row in rows]
    for row, planned in zip(found, rows, strict=True):
        assert (row.outcome, row.finish_reason, row.status) == ("finished", "length", 200)
        assert row.output_tokens == len(row.token_s) == planned.output_tokens
        assert row.cached_tokens == 3
        if tells == "ids":
            assert row.token_source == "ids"
            assert row.token_ids == tuple(range(FIRST_ID, FIRST_ID + planned.output_tokens))
    assert manifest.client["prompt_counts"] == {"told": 24, "off": 0, "largest_error": 0}


def test_times_fit_the_servers_own_log(tmp_path: Path) -> None:
    """One start of the run must exist for which nothing was received before it was sent, in either direction."""
    with golden_process(Script(delays_s=(0.03, 0.004))) as golden:
        manifest = run_bench(plan_for(golden, tmp_path / "run", same_rows(30, 0.02, output_tokens=6)), quiet=True)
        sent = golden.runs()
    start_s = manifest.client["started_monotonic_s"]
    assert isinstance(start_s, float)
    us = 2e-6  # rows are rounded to microseconds
    for row, log in zip(rows_in(tmp_path / "run"), sent, strict=True):
        assert row.sent_s is not None
        assert row.scheduled_s <= row.sent_s + us
        assert start_s + row.sent_s <= log.received_s + us
        assert len(row.token_s) == len(log.write_s) == 6
        assert all(start_s + at_s + us >= write_s for at_s, write_s in zip(row.token_s, log.write_s, strict=True))
        assert row.end_s is not None
        assert row.token_s[0] - row.scheduled_s >= 0.03 - us
        assert list(row.token_s) == sorted(row.token_s)
        assert row.token_s[-1] <= row.end_s + us <= manifest.elapsed_s + us


async def test_each_token_is_timed_before_the_next_is_sent() -> None:
    """The server sends a token only when the client has read its clock for the one before: a bracket for each."""
    script = Script(tells="ids")
    brackets: list[float] = []  # before each token was sent, and once after the last
    stamps: list[float] = []

    def clock() -> float:
        stamps.append(time.monotonic())
        return stamps[-1]

    async with golden_here(script) as (golden, port):

        async def answer(call: Call, body: dict[str, object], sent: Sent) -> None:
            call.head(200, "text/event-stream", {}, chunked=True)
            for index in range(5):
                brackets.append(time.monotonic())
                call.event(call.chunk(body, index, 1, 5))
                while len(stamps) <= index:
                    await asyncio.sleep(0)
            brackets.append(time.monotonic())
            call.send(b"data: [DONE]\n\n")
            call.writer.write(b"0\r\n\r\n")

        golden.pace = answer
        sink = StreamSink(clock)
        address = Address("127.0.0.1", port, "")
        body = json.dumps({"prompt": [1], "max_tokens": 5, "stream": True}).encode()
        await exchange(address, request_bytes(address, "POST", "/v1/completions", body, {}), sink, LIMIT_S)
    sink.settle()
    assert sink.error is None
    times, _ = sink.tokens()
    assert len(times) == 5
    for at_s, before_s, after_s in zip(times, brackets, brackets[1:], strict=False):
        assert before_s <= at_s <= after_s


def test_a_thousand_streams_at_once(tmp_path: Path) -> None:
    with golden_process(Script(hold=1000)) as golden:  # answers nobody before all are there
        manifest = run_bench(plan_for(golden, tmp_path / "run", same_rows(1000, output_tokens=8)), quiet=True)
        assert len(golden.runs()) == 1000
        assert golden.most_under_way >= 1000
    rows = rows_in(tmp_path / "run")
    assert {(row.outcome, row.output_tokens) for row in rows} == {("finished", 8)}
    assert len(rows) == 1000
    assert manifest.client["most_in_flight"] == 1000


# fault -> outcome, kind, status, tokens that came before it
FAULTS = {
    "500": ("failed", "http_500", 500, 0),
    "400": ("failed", "http_400", 400, 0),
    "429": ("rejected", "http_429", 429, 0),
    "503": ("rejected", "http_503", 503, 0),
    "content_type": ("failed", "content_type", 200, 0),
    "reset": ("failed", "reset", 0, 0),
    "not_http": ("failed", "not_http", 0, 0),
    "hang": ("timed_out", "timeout", 0, 0),
    "stall": ("timed_out", "timeout", 200, FAULT_AFTER),
    "error_event": ("failed", "stream_error", 200, FAULT_AFTER),
    "bad_event": ("failed", "bad_event", 200, FAULT_AFTER),
    "reset_midway": ("failed", "reset", 200, FAULT_AFTER),
    "cut": ("failed", "cut_stream", 200, FAULT_AFTER),
    "no_done": ("failed", "cut_stream", 200, FAULT_AFTER),
}


def test_every_fault_is_a_row_of_its_kind(tmp_path: Path) -> None:
    faults = {str(index): fault for index, fault in enumerate(FAULTS)}
    number = len(faults) + 5
    with golden_process(Script(faults=faults)) as golden:
        manifest = run_bench(plan_for(golden, tmp_path / "run", same_rows(number), timeout_s=3.0), quiet=True)
    rows = rows_in(tmp_path / "run")
    found = [(row.outcome, row.error_kind, row.status, row.output_tokens) for row in rows]
    assert found == [*FAULTS.values(), *[("finished", "", 200, 4)] * 5]
    assert all(row.error for row in rows[: len(FAULTS)])
    assert all(row.sent_s is not None and row.end_s is not None for row in rows)
    assert [row.retry_after_s for row in rows if row.status == 429] == [3.0]
    assert manifest.status == "valid"  # the client kept its promises: what the server did is in the rows


def test_a_server_killed_in_mid_run_shows_as_failed_rows(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with golden_process(Script(delays_s=(0.02,))) as golden:
        plan = plan_for(golden, out, same_rows(200, 0.02, output_tokens=5), warmup_s=0.1)

        async def kill() -> None:
            await asyncio.to_thread(eventually, lambda: out.exists() and len(rows_in(out)) >= 10)
            golden.process.kill()

        async def both() -> RunManifest:
            return (await asyncio.gather(asyncio.to_thread(run_bench, plan, quiet=True), kill()))[0]

        manifest = asyncio.run(both())
    rows = rows_in(out)
    assert [row.index for row in rows] == list(range(200))
    kinds = {row.error_kind for row in rows if row.outcome == "failed"}
    assert kinds <= {"refused", "reset", "cut_stream"}
    assert "refused" in kinds
    assert {row.outcome for row in rows} == {"finished", "failed"}
    assert all(row.sent_s is not None for row in rows)  # sent on schedule all the same
    assert manifest.client["outcomes"] == {
        name: sum(row.outcome == name for row in rows) for name in ("finished", "failed")
    }


def test_a_run_without_a_token_is_failed(tmp_path: Path) -> None:
    with golden_process(Script(faults={str(index): "500" for index in range(5)})) as golden:
        manifest = run_bench(plan_for(golden, tmp_path / "run", same_rows(5)), quiet=True)
    assert (manifest.status, len(rows_in(tmp_path / "run"))) == ("failed", 5)


def test_a_client_that_sends_late_calls_its_run_invalid(tmp_path: Path) -> None:
    with golden_process() as golden:
        manifest = run_bench(plan_for(golden, tmp_path / "run", same_rows(50), lateness_bound_s=1e-9), quiet=True)
    late_s = sorted(row.sent_s - row.scheduled_s for row in rows_in(tmp_path / "run") if row.sent_s is not None)
    told = manifest.client["lateness_s"]
    assert isinstance(told, dict)
    assert manifest.status == "invalid"
    assert "sent late" in manifest.reasons[0]
    assert told["max"] == pytest.approx(late_s[-1], abs=2e-6)


def test_phases_follow_the_schedule(tmp_path: Path) -> None:
    with golden_process() as golden:
        plan = plan_for(golden, tmp_path / "run", same_rows(10, 0.02), warmup_s=0.05, cooldown_s=0.05)
        run_bench(plan, quiet=True)
    phases = [row.phase for row in rows_in(tmp_path / "run")]
    assert phases == ["warmup"] * 3 + ["measured"] * 5 + ["cooldown"] * 2


def test_what_is_unfinished_after_the_drain_is_cut_off(tmp_path: Path) -> None:
    rows = (WorkloadRow(0.0, 5, 4, session="a"), WorkloadRow(0.0, 30, 4, session="a"), WorkloadRow(0.0, 5, 4))
    with golden_process(Script(faults={"0": "stall"})) as golden:
        manifest = run_bench(
            plan_for(golden, tmp_path / "run", load_of(*rows, duration_s=0.2), drain_s=0.2), quiet=True
        )
    found = [(row.outcome, row.output_tokens) for row in rows_in(tmp_path / "run")]
    assert found == [("cut_off", FAULT_AFTER), ("not_sent", 0), ("finished", 4)]
    assert manifest.status == "valid"


def test_a_closed_loop_holds_its_concurrency(tmp_path: Path) -> None:
    with golden_process(Script(delays_s=(0.005,), hold=4)) as golden:
        manifest = run_bench(plan_for(golden, tmp_path / "run", same_rows(40, 100.0), concurrency=4), quiet=True)
        golden.log()
        assert golden.most_under_way == 4
    rows = rows_in(tmp_path / "run")
    assert [row.outcome for row in rows] == ["finished"] * 40
    assert [row.scheduled_s for row in rows] == [row.sent_s for row in rows]
    assert (manifest.concurrency, manifest.offered_rate) == (4, None)
    assert manifest.duration_s < 4000.0  # it ended with its rows
    # Never more at once than asked for, by the client's own times.
    for row in rows:
        under_way = [each for each in rows if each.sent_s <= row.sent_s < each.end_s]  # type: ignore[operator]
        assert len(under_way) <= 4


def test_a_closed_loop_ends_by_time_and_offers_only_what_it_took(tmp_path: Path) -> None:
    with golden_process(Script(delays_s=(0.01,))) as golden:
        plan = plan_for(golden, tmp_path / "run", same_rows(100_000, 5e-6), concurrency=2)
        manifest = run_bench(plan, quiet=True)
        assert len(golden.runs()) == len(rows_in(tmp_path / "run")) == manifest.client["offered"]
    assert 0 < len(rows_in(tmp_path / "run")) < 100_000


def test_fields_that_a_server_refuses_are_left_out_and_named(tmp_path: Path) -> None:
    script = Script(refuses=("ignore_eos",), takes_ids=False, ends_streams=False)
    with golden_process(script) as golden:
        manifest = run_bench(plan_for(golden, tmp_path / "run", same_rows(3)), quiet=True)
    assert manifest.status == "valid"
    assert manifest.client["refused_fields"] == ["ignore_eos"]
    assert {row.outcome for row in rows_in(tmp_path / "run")} == {"finished"}


def test_mistakes_are_named_before_anything_is_written(tmp_path: Path) -> None:
    load = same_rows(2)
    with golden_process(Script(key="secret")) as golden:
        for more, where, words in (
            ({}, "--api-key", "wants a key"),
            ({"api_key": "other"}, "--api-key", "refuses this key"),
            ({"api_key": "secret", "model": "nobody"}, "--model", "nobody"),
        ):
            with pytest.raises(ConfigError) as raised:
                run_bench(plan_for(golden, tmp_path / "run", load, **more), quiet=True)
            assert (raised.value.where, words in raised.value.problem) == (where, True)
        assert run_bench(plan_for(golden, tmp_path / "run", load, api_key="secret"), quiet=True).status == "valid"
        assert "secret" not in (tmp_path / "run" / "manifest.json").read_text()
        with pytest.raises(ConfigError, match="holds a run already"):
            run_bench(plan_for(golden, tmp_path / "run", load, api_key="secret"), quiet=True)
    with pytest.raises(ConfigError, match="nobody answers"):
        run_bench(plan_for(golden, tmp_path / "other", load), quiet=True)
    assert not (tmp_path / "other").exists()


def test_a_server_that_is_still_loading_is_named_as_such(tmp_path: Path) -> None:
    with golden_process(Script(is_loading=True)) as golden, pytest.raises(ConfigError) as raised:
        run_bench(plan_for(golden, tmp_path / "run", same_rows(2)), quiet=True)
    assert "not ready (503: Loading model)" in raised.value.problem
    assert "wait" in raised.value.remedy
    assert not (tmp_path / "run").exists()


async def test_a_row_that_cannot_be_written_at_the_very_end_is_told(tmp_path: Path) -> None:
    """A disk that fills up while what is unfinished is cut off: neither silence nor a cancellation."""

    def refuse(row: RequestRow) -> None:
        if row.outcome == "cut_off":
            raise ConfigError("disk", "is full")

    async with golden_here(Script(faults={"0": "stall", "1": "stall"})) as (_, port):
        load = same_rows(3)
        plan = BenchPlan(url=f"http://127.0.0.1:{port}", workload=load, out=tmp_path / "run", drain_s=0.2)
        target = await find_target(plan)
        run = LoadRun(plan, target, await prepare_prompts(plan, target), "run")
        run.start_clock()
        with pytest.raises(ConfigError, match="is full"):
            await run.run(refuse)
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_fault_of_the_client_is_no_failure_of_the_server(tmp_path: Path) -> None:
    class Broken(IdPrompts):
        def fields(self, layout: PromptLayout, answers: Mapping[int, Answered]) -> dict[str, object]:
            if answers:
                raise RuntimeError("a bug")
            return super().fields(layout, answers)

    load = load_of(WorkloadRow(0.0, 5, 4, session="a"), WorkloadRow(0.0, 30, 4, session="a"))
    rows: list[RequestRow] = []
    async with golden_here(Script()) as (_, port):
        plan = BenchPlan(url=f"http://127.0.0.1:{port}", workload=load, out=tmp_path / "run")
        run = LoadRun(plan, await find_target(plan), Broken(range(300, 400), 0), "run")
        run.start_clock()
        with pytest.raises(RuntimeError, match="a bug"):
            await run.run(rows.append)
    assert [row.outcome for row in rows] == ["finished", "not_sent"]


# In processes of their own


def test_memory_and_processor_time_of_a_local_server_are_noted(tmp_path: Path) -> None:
    with golden_process(Script(delays_s=(0.05,))) as golden:
        manifest = run_bench(plan_for(golden, tmp_path / "run", same_rows(3)), quiet=True)
    lines = (tmp_path / "run" / "server.jsonl").read_bytes().splitlines()
    first = msgspec.json.decode(lines[0], type=ServerSample)
    assert first.resident_bytes is not None
    assert first.resident_bytes <= manifest.figures["peak_resident_bytes"]  # type: ignore[operator]
    assert manifest.figures["server_cpu_s"] >= 0  # type: ignore[operator]
    page = (HERE / "docs" / "records.md").read_text(encoding="utf-8")
    for name in (*manifest.client, *manifest.host, *manifest.figures):
        assert f"`{name}`" in page, name
