"""What the frontend tells about a run: state, metrics and one log line per request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from colocate.config.serve import HttpSection
from tests.byte_tokenizer import write_model_dir
from tests.frontend_calls import (
    HTTP,
    complete,
    count,
    fresh_state,
    get,
    leave_after,
    metrics,
    num_tokens,
    request_lines,
    stream_text,
    value,
)
from tests.frontend_harness import MODEL, RunningFrontend, start_frontend, wait_until
from tests.limits import LIMIT_S
from tests.scripted_engine import Script

ISSUE_METRICS = {
    "colocate_time_to_first_token_seconds": "histogram",
    "colocate_inter_token_latency_seconds": "histogram",
    "colocate_request_time_per_output_token_seconds": "histogram",
    "colocate_e2e_request_latency_seconds": "histogram",
    "colocate_request_queue_time_seconds": "histogram",
    "colocate_prompt_tokens": "counter",
    "colocate_generation_tokens": "counter",
    "colocate_num_requests_running": "gauge",
    "colocate_num_requests_waiting": "gauge",
    "colocate_kv_cache_usage_ratio": "gauge",
    "colocate_request_success": "counter",
    "colocate_preemptions": "counter",
    "colocate_plan_switches": "counter",
    "colocate_plan_switch_seconds": "summary",
    "colocate_plan_residency_seconds": "counter",
    "colocate_worker_restarts": "counter",
    "colocate_prefix_cache_queries": "counter",
    "colocate_prefix_cache_hits": "counter",
    "colocate_prefix_cache_evictions": "counter",
    "colocate_kv_blocks": "gauge",
    "colocate_plan_units": "gauge",
    "colocate_plan_in_force": "gauge",
    "colocate_plan_pinned": "gauge",
    "colocate_guard_interventions": "counter",
    "colocate_prediction_error_ratio": "gauge",
    "colocate_set_aside": "counter",
    "colocate_shadow_agreement_ratio": "gauge",
    "colocate_shadow_switches": "counter",
}
VLLM_METRICS = {
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "time_to_first_token_seconds",
    "inter_token_latency_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
    "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
    "request_prompt_tokens", "request_generation_tokens", "prompt_tokens", "generation_tokens",
    "prefix_cache_queries", "prefix_cache_hits", "request_success", "num_preemptions", "cache_config_info",
}  # fmt: skip


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[RunningFrontend]:
    running = start_frontend(write_model_dir(tmp_path), HTTP)
    wait_until(lambda: get(running, "/ready").status_code == 200)
    yield running
    running.stop()


class TestState:
    def test_shape(self, frontend: RunningFrontend) -> None:
        state = fresh_state(frontend)
        assert state["status"] == "ready" and state["mode"] == "colocated" and state["device"]["units"] == 3
        assert state["plan"] == {"name": "p2d1", "prefill_units": 2, "decode_units": 1, "seq": 3}
        assert [plan["name"] for plan in state["plans"]] == ["p2d1", "shared"]
        assert state["workers"][0] == {
            "role": "prefill",
            "pid": 1002,
            "state": "ready",
            "restarts": 0,
            "uptime_s": 12.5,
        }
        assert state["engine"] == {"pid": 1001} and state["keeper"] == {"pid": 1000}
        assert state["queue"] == {"waiting": 0, "prefill_running": 0, "decode_running": 0}
        assert {"blocks_total": 100, "blocks_free": 100, "block_size": 16}.items() <= state["kv"].items()
        assert state["switches"]["count"] == 2 and state["switches"]["last"]["prefill_applied_ms"] == 0.5
        assert [switch["seq"] for switch in state["switches"]["recent"]] == [2, 3]
        assert state["switches"]["recent"][-1]["to"] == state["switches"]["last"]["to"]
        assert state["switches"]["latency_ms"] == {"p50": 0.6, "p99": 0.6}
        assert state["residency"] == {"p2d1": 0.75, "shared": 0.25}

    def test_a_silent_engine_leaves_its_last_word_and_its_age(self, frontend: RunningFrontend) -> None:
        fresh_state(frontend)
        frontend.script.answer_state = False
        state = get(frontend, "/state").json()
        assert state["age_s"] >= 0.4 and state["plan"]["name"] == "p2d1"

    def test_an_engine_that_never_spoke(self, tmp_path: Path) -> None:
        frontend = start_frontend(write_model_dir(tmp_path), HTTP, Script(answer_state=False))
        try:
            assert get(frontend, "/state").status_code == 503
            assert get(frontend, "/metrics").status_code == 200 and get(frontend, "/server_info").status_code == 200
        finally:
            frontend.stop()

    def test_the_controller_and_the_prefix_cache(self, frontend: RunningFrontend) -> None:
        frontend.script.num_cached_tokens = 1
        state = get(frontend, "/state").json()
        assert state["candidates"] == ["p2d1"] and state["best_static"] == "p2d1" and state["pinned"] is None
        assert state["guards"] == {"dwell": 3, "hysteresis": 0} and state["discipline"] == "edf"
        assert state["shadow"] == {"policy": "slo", "wants": "shared", "agreement": 0.75, "switches": 4}
        assert state["prefix_cache"] == {"queries": 400, "hits": 300, "hit_rate": 0.75, "evictions": 7}
        assert state["latency_model"] == {"source": "scripted", "error": {"prefill": 0.05, "decode": 0.1}}
        assert state["kv"]["blocks_cached"] == 20 and state["set_aside"] == 2
        assert state["slo"] == {"classes": [], "default": None}
        info = get(frontend, "/server_info").json()
        assert info["controller"]["candidates"] == ["p2d1"] and info["controller"]["prefix_hit_rate"] == 0.75

    def test_server_info_keeps_secrets(self, tmp_path: Path) -> None:
        frontend = start_frontend(write_model_dir(tmp_path), HttpSection(api_key=("sesame",), admin_key=("mellon",)))
        try:
            headers = {"authorization": "Bearer sesame"}
            response = httpx.get(f"{frontend.url}/server_info", headers=headers, timeout=LIMIT_S)
            assert response.status_code == 200 and response.json()["versions"]["torch"]
            assert "sesame" not in response.text and "mellon" not in response.text
            assert response.json()["config"]["http"]["admin_key"] == 1
        finally:
            frontend.stop()


class TestMetrics:
    async def test_names_kinds_and_values(self, frontend: RunningFrontend) -> None:
        frontend.script.hold_after = 5
        started = time.monotonic()
        task = asyncio.create_task(asyncio.to_thread(complete, frontend, max_tokens=10))
        await asyncio.to_thread(wait_until, lambda: num_tokens(frontend) == 5)
        await asyncio.sleep(0.1)
        frontend.engine.release()
        assert (await task).status_code == 200
        lasted_s = time.monotonic() - started
        fresh_state(frontend)
        families = metrics(frontend)
        for name, kind in ISSUE_METRICS.items():
            assert families[name].type == kind, name
        assert {f"vllm:{name}" for name in VLLM_METRICS} <= set(families)
        for prefix, reason in (("colocate_", "finish_reason"), ("vllm:", "finished_reason")):
            assert count(families, f"{prefix}time_to_first_token_seconds") == 1
            assert count(families, f"{prefix}inter_token_latency_seconds") == 9
            assert count(families, f"{prefix}request_time_per_output_token_seconds") == 1
            assert value(families, f"{prefix}generation_tokens_total") == 10
            assert value(families, f"{prefix}prompt_tokens_total") == 1
            assert value(families, f"{prefix}request_success_total", **{reason: "length"}) == 1
        assert value(families, "colocate_plan_switches_total", **{"from": "p2d1", "to": "shared"}) == 1
        assert value(families, "colocate_plan_residency_seconds_total", plan="p2d1") == 3
        assert value(families, "colocate_worker_restarts_total", role="decode") == 0
        assert value(families, "colocate_plan_switch_seconds", quantile="0.5") == pytest.approx(6e-4)
        gaps = families["colocate_inter_token_latency_seconds"]
        total = next(sample.value for sample in gaps.samples if sample.name.endswith("_sum"))
        assert 0.1 <= total < lasted_s

    def test_the_prefix_cache_under_both_names(self, frontend: RunningFrontend) -> None:
        frontend.script.num_cached_tokens = 1  # 20 of the 100 blocks hold prefixes that nobody uses
        fresh_state(frontend)
        families = metrics(frontend)
        for prefix in ("colocate_", "vllm:"):
            assert value(families, f"{prefix}prefix_cache_queries_total") == 400
            assert value(families, f"{prefix}prefix_cache_hits_total") == 300
        assert value(families, "colocate_prefix_cache_evictions_total") == 7
        assert value(families, "colocate_kv_cache_usage_ratio") == value(families, "vllm:kv_cache_usage_perc") == 0
        assert value(families, "colocate_kv_blocks", state="cached") == 20
        assert value(families, "vllm:cache_config_info", enable_prefix_caching="True") == 1
        assert value(families, "colocate_guard_interventions_total", guard="dwell") == 3
        assert value(families, "colocate_plan_in_force", plan="shared") == 0

    async def test_rejections_and_aborts_are_counted(self, frontend: RunningFrontend) -> None:
        frontend.script.hold_after = 1
        await leave_after(frontend, 1, prompt="x")
        await asyncio.to_thread(wait_until, lambda: bool(frontend.engine.aborted))
        families = metrics(frontend)
        assert value(families, "colocate_request_success_total", finish_reason="abort") == 1
        assert count(families, "colocate_e2e_request_latency_seconds") == 0


async def test_one_line_per_request(frontend: RunningFrontend, capfd: pytest.CaptureFixture[str]) -> None:
    frontend.script.hold_after = 2
    task = asyncio.create_task(asyncio.to_thread(complete, frontend, request_id="logged-1", max_tokens=5))
    await asyncio.to_thread(wait_until, lambda: num_tokens(frontend) == 2)
    frontend.engine.release()
    await task
    await asyncio.to_thread(complete, frontend, temperature=-1)
    await stream_text(frontend, max_tokens=2)
    first, refused, streamed = request_lines(capfd, 3)
    assert first["request_id"] == "logged-1" and first["model"] == MODEL and first["status"] == 200
    assert (first["finish_reason"], first["prompt_tokens"], first["output_tokens"]) == ("length", 1, 5)
    assert first["preemptions"] == 0 and 0 < first["queue_ms"] <= first["ttft_ms"] <= first["e2e_ms"]
    assert first["tpot_ms"] > 0
    assert refused["status"] == 400 and refused["param"] == "temperature"
    assert streamed["status"] == 200 and streamed["output_tokens"] == 2


async def test_times_of_requests_that_end_here(frontend: RunningFrontend, capfd: pytest.CaptureFixture[str]) -> None:
    """By a stop string, or by a client that leaves: the engine's last word on them never comes."""
    frontend.script.hold_after = 3
    started = time.monotonic()
    task = asyncio.create_task(asyncio.to_thread(complete, frontend, request_id="stopped", stop="e", max_tokens=20))
    await asyncio.to_thread(wait_until, lambda: num_tokens(frontend) == 3)
    await asyncio.sleep(0.03)
    frontend.engine.release()
    assert (await task).json()["choices"][0]["text"] == "bcd"
    lasted_s = time.monotonic() - started
    frontend.script.hold_after = 3
    await leave_after(frontend, 3, prompt=[1], max_tokens=400, request_id="left")
    await asyncio.to_thread(wait_until, lambda: len(frontend.engine.aborted) == 2)
    requests = {line["request_id"]: line for line in request_lines(capfd, 2)}
    for name in ("stopped", "left"):
        assert 0 < requests[name]["queue_ms"] <= requests[name]["ttft_ms"], name
    families = metrics(frontend)
    assert count(families, "colocate_request_queue_time_seconds") == 1
    assert count(families, "vllm:request_prefill_time_seconds") == 1
    decode_s = value(families, "vllm:request_decode_time_seconds_sum")
    assert 0.03 <= decode_s < lasted_s
