"""What if: a log's requests, as they were, under another policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from colocate.core.settings import EngineSettings
from colocate.errors import ConfigError
from colocate.messages.client import Abort, Submit
from colocate.messages.sampling import SamplingParams
from colocate.sim.run import simulate
from colocate.sim.what_if import LoggedLoad, read_logged_run, settings_of, simulate_logged
from colocate.telemetry.event_log import LOG_VERSION, EventLogWriter, LogHeader, read_event_log
from colocate.workload.recipe import Recipe, cook
from colocate.workload.rows import WorkloadRow, make_workload
from tests.sim.devices import CHAT, DEVICE, exact

LOAD = cook(Recipe(rates=(30.0,), lengths=("lognormal:150,0.8/25,0.6",), duration_s=2.0), 7)


def test_the_logged_policy_simulated_again_is_the_log(tmp_path: Path) -> None:
    settings = exact(plan="static:p4d4", kv_tokens=4_000)
    logged = simulate(LOAD, settings, event_log=tmp_path / "run.log")
    run = read_logged_run(tmp_path / "run.log")
    assert run.left_out == 0
    told = run.summary()
    assert told.ttft_s.p99 == pytest.approx(logged.summary.ttft_s.p99)
    assert told.tpot_s.p50 == pytest.approx(logged.summary.tpot_s.p50)
    assert told.attainment == logged.summary.attainment
    again = simulate_logged(run, settings_of(run, tmp_path / "run.log"))
    assert again.summary.ttft_s.p99 == pytest.approx(logged.summary.ttft_s.p99, rel=1e-6)
    assert again.summary.e2e_s.p50 == pytest.approx(logged.summary.e2e_s.p50, rel=1e-6)


def test_another_policy_differs_as_it_does_without_a_log(tmp_path: Path) -> None:
    settings = exact(plan="static:p4d4", kv_tokens=4_000)
    simulate(LOAD, settings, event_log=tmp_path / "run.log")
    run = read_logged_run(tmp_path / "run.log")
    other = simulate_logged(run, replace(settings_of(run, tmp_path / "run.log"), plan="static:p2d6"))
    direct = simulate(LOAD, replace(settings, plan="static:p2d6"))
    assert other.summary.ttft_s.p50 == pytest.approx(direct.summary.ttft_s.p50, rel=1e-6)


def test_answers_are_repeated_so_conversations_share_what_they_shared(tmp_path: Path) -> None:
    turns = [WorkloadRow(0.0, 160, 32, session="a"), WorkloadRow(3.0, 400, 8, session="a")]
    simulate(make_workload("chat", turns), exact(), event_log=tmp_path / "run.log")
    run = read_logged_run(tmp_path / "run.log")
    again = simulate_logged(run, settings_of(run, tmp_path / "run.log"))
    assert again.records[1].cached_tokens == 176
    load = LoggedLoad(run)
    assert [load.token_of(1, position) for position in (0, 31)] == [run.requests[0].tokens[0]] * 2


def test_requests_are_judged_by_their_own_targets(tmp_path: Path) -> None:
    """Without a class at all, and with one: own targets replace those of the class they name."""
    for classes in ((), (CHAT,)):
        simulate(LOAD, exact(kv_tokens=4_000, slo_classes=classes), event_log=tmp_path / "run.log")
        header, records = read_event_log(tmp_path / "run.log")
        writer = EventLogWriter(tmp_path / "own.log", header)
        for record in records:
            event = record.event
            if isinstance(event, Submit):
                ttft_s = 1e-6 if event.request_id % 2 else 60.0
                event = msgspec.structs.replace(event, ttft_s=ttft_s, tpot_s=60.0)
            writer.record(record.now_ns, event, msgspec.msgpack.decode(record.commands, type=list[object]))  # type: ignore[arg-type]
        writer.close()
        run = read_logged_run(tmp_path / "own.log")
        again = simulate_logged(run, settings_of(run, tmp_path / "own.log"))
        for summary in (run.summary(), again.summary):
            assert summary.num_finished == len(LOAD.rows)
            assert summary.num_good == len(LOAD.rows) // 2
            assert list(summary.attainment_by_class) == [classes[0].name if classes else "none"]
        slo = again.records[0].slo
        assert slo is not None and (slo.ttft_s, slo.tpot_s) == (1e-6, 60.0)
    assert simulate(LOAD, exact(kv_tokens=4_000)).records[0].slo is None


def test_a_log_that_was_cut_off_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    simulate(LOAD, exact(kv_tokens=4_000), event_log=path)
    assert read_logged_run(path).num_torn_bytes == 0
    path.write_bytes(path.read_bytes()[:-1])
    assert read_logged_run(path).num_torn_bytes > 0


def test_who_gave_up_or_was_refused(tmp_path: Path) -> None:
    """Refused requests are offered again; those that left before their first token are left out."""
    simulate(LOAD, exact(kv_tokens=4_000), event_log=tmp_path / "run.log")
    header, records = read_event_log(tmp_path / "run.log")
    kept = list(records)
    writer = EventLogWriter(tmp_path / "more.log", header)
    for record in kept:
        writer.record(record.now_ns, record.event, msgspec.msgpack.decode(record.commands, type=list[object]))  # type: ignore[arg-type]
    too_long = Submit(900, [1] * 5000, SamplingParams(max_tokens=7), kept[-1].now_ns)
    left = Submit(901, [1] * 50, SamplingParams(max_tokens=7), kept[-1].now_ns)
    rejected = [
        ["frontend", {"type": "Rejected", "request_id": 900, "status": 400, "reason": "", "retry_after_s": 0.0}]
    ]
    writer.record(kept[-1].now_ns, too_long, rejected)  # type: ignore[arg-type]
    writer.record(kept[-1].now_ns, left, [])
    writer.record(kept[-1].now_ns, Abort([901]), [])
    writer.close()
    run = read_logged_run(tmp_path / "more.log")
    assert run.left_out == 1
    assert run.summary().num_rejected == 1
    again = simulate_logged(run, settings_of(run, tmp_path / "more.log"))
    assert again.summary.num_rejected == 1  # it still does not fit
    assert again.summary.num_offered == len(LOAD.rows) + 1


def test_logs_that_answer_nothing_are_refused(tmp_path: Path) -> None:
    core = EngineSettings(64, 16, 8, 256, 64, 8, 2, slo_classes=(CHAT,))
    path = tmp_path / "empty.log"
    EventLogWriter(path, LogHeader(LOG_VERSION, "0", "run", 1, core)).close()
    with pytest.raises(ConfigError, match="no answered request"):
        read_logged_run(path)
    simulate(LOAD, exact(kv_tokens=4_000), event_log=path)
    header, records = read_event_log(path)
    settings = msgspec.structs.replace(header.settings, latency=None)
    bare = EventLogWriter(tmp_path / "bare.log", msgspec.structs.replace(header, settings=settings))
    for record in records:
        bare.record(record.now_ns, record.event, msgspec.msgpack.decode(record.commands, type=list[object]))  # type: ignore[arg-type]
    bare.close()
    run = read_logged_run(tmp_path / "bare.log")
    with pytest.raises(ConfigError, match="--profile"):
        settings_of(run, path)
    with pytest.raises(ConfigError, match="of 16"):
        settings_of(run, path, msgspec.structs.replace(DEVICE, units=16))
    known = read_logged_run(path)
    named = msgspec.structs.replace(known.settings, latency=msgspec.structs.replace(DEVICE, model="llama"))
    known = replace(known, settings=named)
    with pytest.raises(ConfigError, match="for device 'another'") as refused:
        settings_of(known, path, msgspec.structs.replace(DEVICE, name="another"))
    assert refused.value.where == "--profile" and "drop --profile" in refused.value.remedy
    with pytest.raises(ConfigError, match="for model 'qwen'"):
        settings_of(known, path, msgspec.structs.replace(DEVICE, model="qwen"))
    assert settings_of(known, path, msgspec.structs.replace(DEVICE, source="measured again")).profile.model == ""
    assert settings_of(run, path, DEVICE).profile == DEVICE
    old = EventLogWriter(tmp_path / "old.log", msgspec.structs.replace(header, version=99))
    old.close()
    with pytest.raises(ConfigError, match="log version 99"):
        read_logged_run(tmp_path / "old.log")
