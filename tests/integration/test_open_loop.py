"""The benchmarks' load driver against a real daemon on the emulated device: what it sends, and what it makes of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from colocate.config.slo import SloClass
from colocate.workload.rows import WorkloadRow, make_workload
from tests.daemon import Daemon, start_daemon
from tests.limits import LIMIT_S

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from open_loop import LiveRequest, LiveRun, OpenLoop

# One decode step takes 20 ms, two prefill slices 10 ms.
PROFILE = Path(__file__).parents[1] / "data" / "slow_profile.yaml"
STEP_S, PREFILL_S = 0.02, 0.01


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    # The cache shares whole blocks: 16 tokens.
    with start_daemon(
        "--profile", str(PROFILE), "--units", "16", "--slo-class", "chat: ttft 60 s, tpot 60 s"
    ) as daemon:
        yield daemon


async def _offer(daemon: Daemon, *rows: WorkloadRow, seed: int = 0, drain_s: float = 60.0) -> LiveRun:
    port = int(daemon.base_url.rpartition(":")[2])
    return await OpenLoop(make_workload("rows", rows), port, daemon.model, seed=seed, drain_s=drain_s).run()


def _prompt_tokens(daemon: Daemon) -> float:
    """Of requests that ended, as the server counts them."""
    metrics = httpx.get(f"{daemon.base_url}/metrics", timeout=LIMIT_S).text
    found = re.search(r"^colocate_request_prompt_tokens_sum\S* (\S+)$", metrics, re.MULTILINE)
    assert found is not None
    return float(found.group(1))


async def test_every_request_is_sent_when_due_with_exactly_its_lengths(daemon: Daemon) -> None:
    before = _prompt_tokens(daemon)
    rows = (WorkloadRow(0.0, 33, 5), WorkloadRow(0.05, 7, 1), WorkloadRow(0.1, 100, 3, slo_class="chat"))
    run = await _offer(daemon, *rows)

    assert run.errors == []
    assert [each.finish_reason for each in run.requests] == ["length"] * 3
    assert [each.record.output_tokens for each in run.requests] == [5, 1, 3]
    assert _prompt_tokens(daemon) - before == 140
    assert all(late_s >= 0 for late_s in run.late_s)
    for each in run.requests:
        _check_times(each)


def _check_times(each: LiveRequest) -> None:
    """The device cannot be quicker than its profile, so neither can the client see it."""
    record = each.record
    assert len(each.token_s) == record.output_tokens
    assert list(each.token_s) == sorted(each.token_s)
    assert (record.first_token_s, record.finished_s) == (each.token_s[0], each.token_s[-1])
    assert record.ttft_s is not None and record.ttft_s >= PREFILL_S
    if record.output_tokens > 1:
        assert record.finished_s - record.first_token_s >= (record.output_tokens - 1) * STEP_S * 0.5


async def test_a_slow_answer_does_not_hold_back_the_next_request(daemon: Daemon) -> None:
    run = await _offer(daemon, WorkloadRow(0.0, 8, 50), WorkloadRow(0.01, 8, 2))

    first, second = run.requests
    assert second.sent_s < first.record.finished_s
    assert second.record.finished_s < first.record.finished_s


async def test_a_refused_request_is_a_row_and_a_miss(daemon: Daemon) -> None:
    run = await _offer(daemon, WorkloadRow(0.0, 8, 2), WorkloadRow(0.0, 8, 2, slo_class="nobody"))

    served, refused = run.requests
    assert served.error is None
    assert "nobody" in (refused.error or "")
    assert (refused.record.first_token_s, refused.record.finished_s, refused.record.rejected) == (None, None, False)
    summary = run.summary([SloClass("chat", ttft_s=60.0), SloClass("nobody", ttft_s=60.0)])
    assert (summary.num_offered, summary.num_finished, summary.num_good) == (2, 1, 1)


async def test_what_is_not_finished_in_time_is_cut_off_and_unfinished(daemon: Daemon) -> None:
    run = await _offer(daemon, WorkloadRow(0.0, 8, 1500), drain_s=0.5)

    cut = run.requests[0]
    assert cut.error is not None and cut.error.startswith("cut off")
    assert cut.record.finished_s is None
    assert 0 < cut.record.output_tokens < 1500


async def test_a_server_that_is_not_there_is_an_error_of_every_row() -> None:
    run = await OpenLoop(make_workload("rows", [WorkloadRow(0.0, 8, 2)]), 1, "demo").run()

    assert run.errors and "ConnectionRefusedError" in run.errors[0]
    assert run.summary().num_finished == 0


async def test_shared_prefixes_meet_the_cache(daemon: Daemon) -> None:
    """Equal prefix, equal tokens: also in a second run of the same seed."""
    first = await _offer(daemon, WorkloadRow(0.0, 70, 4, prefix=(1,), block_tokens=64), seed=1)
    again = await _offer(daemon, WorkloadRow(0.0, 80, 4, prefix=(1,), block_tokens=64), seed=1)
    other = await _offer(daemon, WorkloadRow(0.0, 80, 4, prefix=(1,), block_tokens=64), seed=2)

    assert [run.requests[0].record.cached_tokens for run in (first, again, other)] == [0, 64, 0]


async def test_a_later_turn_holds_the_answer_that_came(daemon: Daemon) -> None:
    run = await _offer(
        daemon, WorkloadRow(0.0, 30, 20, session="chat"), WorkloadRow(2.0, 80, 4, session="chat"), seed=3
    )

    assert run.errors == []
    turn, later = run.requests
    was_answered = turn.record.finished_s is not None and turn.record.finished_s < later.sent_s
    # 30 tokens asked and 20 answered, of which the last has no KV: three whole blocks. A machine so slow that the
    # answer was not there in two seconds shows nothing.
    assert later.record.cached_tokens == 48 or not was_answered


def test_a_run_can_be_written_and_read_again() -> None:
    request = msgspec.json.decode(
        b'{"record": {"request_id": 1, "arrival_s": 0.5, "prompt_tokens": 3, "max_tokens": 2, "slo_class": "", '
        b'"first_token_s": 0.75, "finished_s": 1.0, "output_tokens": 2}, "sent_s": 0.5, "token_s": [0.75, 1.0], '
        b'"finish_reason": "length", "error": null}',
        type=LiveRequest,
    )

    assert msgspec.json.decode(msgspec.json.encode(request), type=LiveRequest) == request
    assert (request.record.ttft_s, request.record.tpot_s) == (0.25, 0.25)
