"""SLO classes over HTTP: which one a request gets, what the engine is told, and what is counted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from colocate.config.serve import HttpSection, SchedulerSection
from colocate.messages.client import Rejected
from colocate.messages.control import Drain
from tests.byte_tokenizer import write_model_dir
from tests.frontend_harness import MODEL, RunningFrontend, process_table, start_frontend, wait_until
from tests.scripted_engine import Script

CLASSES = SchedulerSection(
    slo_class=(
        "interactive: ttft 60 s, tpot 60 s, itl 60 s",
        "strict: ttft 0.001 ms, tpot 0.001 ms, itl 0.001 ms",
        "batch: none",
        "steady: tpot 500 ms, itl 500 ms",
    ),
)


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[RunningFrontend]:
    running = start_frontend(write_model_dir(tmp_path), HttpSection(keepalive_s=0.2), scheduler=CLASSES)
    wait_until(lambda: httpx.get(f"{running.url}/ready").status_code == 200)
    yield running
    running.stop()


def complete(frontend: RunningFrontend, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    fields = {"model": MODEL, "prompt": [1], "max_tokens": 5, **body}
    return httpx.post(f"{frontend.url}/v1/completions", json=fields, headers=headers, timeout=20)


def counts(frontend: RunningFrontend) -> dict[tuple[str, str, str], float]:
    """(measure, class, outcome) -> how many; those that are not zero."""
    text = httpx.get(f"{frontend.url}/metrics", timeout=10).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return {
        (sample.labels["slo"], sample.labels["class"], sample.labels["outcome"]): sample.value
        for sample in families["colocate_slo_requests"].samples
        if sample.name.endswith("_total") and sample.value
    }


def every(name: str, outcome: str, count: float = 1) -> dict[tuple[str, str, str], float]:
    return {(measure, name, outcome): count for measure in ("ttft", "tpot", "itl", "both")}


class TestChoice:
    def test_the_default_is_the_first_class(self, frontend: RunningFrontend) -> None:
        assert complete(frontend).status_code == 200
        assert frontend.engine.submits[0].slo_class == "interactive"

    def test_a_configured_default(self, tmp_path: Path) -> None:
        scheduler = SchedulerSection(slo_class=CLASSES.slo_class, default_slo_class="batch")
        frontend = start_frontend(write_model_dir(tmp_path), scheduler=scheduler)
        try:
            wait_until(lambda: complete(frontend).status_code == 200)
            assert frontend.engine.submits[0].slo_class == "batch"
            assert httpx.get(f"{frontend.url}/state").json()["slo"]["default"] == "batch"
        finally:
            frontend.stop()

    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            ({"x-slo-class": "batch"}, {}),
            ({}, {"slo_class": "batch"}),
            ({"x-slo-class": "batch"}, {"slo_class": "batch"}),
        ],
    )
    def test_by_header_by_body_or_by_both(
        self, frontend: RunningFrontend, headers: dict[str, str], body: dict[str, object]
    ) -> None:
        assert complete(frontend, headers, **body).status_code == 200
        assert frontend.engine.submits[0].slo_class == "batch"

    def test_own_targets_and_salt_reach_the_engine(self, frontend: RunningFrontend) -> None:
        own = {"x-slo-ttft-ms": "250", "x-slo-tpot-ms": "12.5", "x-slo-itl-ms": "40"}
        assert complete(frontend, own, n=2, cache_salt="tenant").status_code == 200
        told = [(s.ttft_s, s.tpot_s, s.itl_s, s.cache_salt) for s in frontend.engine.submits]
        assert told == [(0.25, 0.0125, 0.04, "tenant")] * 2

    def test_a_resubmission_says_it_all_again(self, frontend: RunningFrontend) -> None:
        frontend.script.hold_after = 2
        own = {"x-slo-class": "batch", "x-slo-ttft-ms": "250", "x-slo-itl-ms": "40"}
        fields = {"model": MODEL, "prompt": [1], "max_tokens": 5, "stream": True, "cache_salt": "tenant"}
        with httpx.stream("POST", f"{frontend.url}/v1/completions", json=fields, headers=own, timeout=20) as answer:
            lines = answer.iter_lines()
            next(lines)
            successor = frontend.replace_engine(Script())
            assert list(lines)[-2] == "data: [DONE]"
        [first], [again] = frontend.engine.submits, successor.submits
        assert (again.slo_class, again.ttft_s, again.tpot_s, again.itl_s) == ("batch", 0.25, None, 0.04)
        assert again.cache_salt == "tenant"
        assert first.request_id == again.request_id and again.resubmitted

    @pytest.mark.parametrize(
        ("headers", "body", "param", "says"),
        [
            ({"x-slo-class": "gold"}, {}, "x-slo-class", "this server has: interactive, strict, batch, steady"),
            ({}, {"slo_class": "gold"}, "slo_class", "this server has: interactive, strict, batch, steady"),
            ({"x-slo-class": "batch"}, {"slo_class": "strict"}, "slo_class", "send one of them"),
            ({}, {"slo_class": 5}, "slo_class", "valid string"),
            ({}, {"cache_salt": "x" * 129}, "cache_salt", "at most 128"),
            *(
                ({name: value}, {}, name, "is not a number of milliseconds from 0.001 to 86400000")
                for name in ("x-slo-ttft-ms", "x-slo-tpot-ms", "x-slo-itl-ms")
                for value in ("0", "-1", "nan", "inf", "1e999", "fast", "", "1_0", "0x10", "86400001")
            ),
        ],
    )
    def test_refusals_name_the_parameter(
        self, frontend: RunningFrontend, headers: dict[str, str], body: dict[str, object], param: str, says: str
    ) -> None:
        answer = complete(frontend, headers, **body)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == param and says in error["message"]
        assert not frontend.engine.submits and not counts(frontend)

    def test_a_header_twice(self, frontend: RunningFrontend) -> None:
        body = {"model": MODEL, "prompt": [1]}
        headers = [("x-slo-class", "batch"), ("x-slo-class", "strict")]
        answer = httpx.post(f"{frontend.url}/v1/completions", json=body, headers=headers, timeout=20)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "x-slo-class"

    def test_a_server_without_classes_says_so_and_takes_own_targets(self, tmp_path: Path) -> None:
        frontend = start_frontend(write_model_dir(tmp_path))
        try:
            wait_until(lambda: httpx.get(f"{frontend.url}/ready").status_code == 200)
            refused = complete(frontend, {"x-slo-class": "gold"})
            assert refused.status_code == 400 and "this server has none" in refused.json()["error"]["message"]
            assert complete(frontend, {"x-slo-ttft-ms": "60000"}).status_code == 200
            assert frontend.engine.submits[-1].slo_class == "" and frontend.engine.submits[-1].ttft_s == 60.0
            assert counts(frontend) == {("ttft", "none", "good"): 1, ("both", "none", "good"): 1}
        finally:
            frontend.stop()


class TestCounters:
    def test_every_promise_starts_at_zero(self, frontend: RunningFrontend) -> None:
        text = httpx.get(f"{frontend.url}/metrics", timeout=10).text
        for name in ("interactive", "strict"):
            for measure, outcome in (("ttft", "good"), ("tpot", "missed"), ("itl", "good"), ("both", "missed")):
                labels = f'class="{name}",model_name="tiny",outcome="{outcome}",slo="{measure}"'
                assert f"colocate_slo_requests_total{{{labels}}} 0.0" in _with_sorted_labels(text)
        assert 'class="batch"' not in text
        assert not [line for line in text.splitlines() if 'class="steady"' in line and 'slo="ttft"' in line]
        for measure, target in (("ttft", "1e-06"), ("itl", "1e-06")):
            labels = f'class="strict",model_name="tiny",slo="{measure}"'
            assert f"colocate_slo_target_seconds{{{labels}}} {target}" in _with_sorted_labels(text)

    def test_kept_and_missed(self, frontend: RunningFrontend) -> None:
        assert complete(frontend, n=2).status_code == 200
        assert complete(frontend, {"x-slo-class": "strict"}).status_code == 200
        assert complete(frontend, {"x-slo-class": "batch"}).status_code == 200
        assert counts(frontend) == every("interactive", "good", 2) | every("strict", "missed")
        shown = httpx.get(f"{frontend.url}/state").json()["slo"]["classes"]
        assert {known["name"]: known["requests"] for known in shown} == {
            "interactive": {"good": 2, "missed": 0},
            "strict": {"good": 0, "missed": 1},
            "batch": {"good": 0, "missed": 0},
            "steady": {"good": 0, "missed": 0},
        }

    def test_one_token_keeps_what_is_promised_per_token(self, frontend: RunningFrontend) -> None:
        assert complete(frontend, {"x-slo-class": "strict"}, max_tokens=1).status_code == 200
        assert counts(frontend) == {
            ("ttft", "strict", "missed"): 1,
            ("tpot", "strict", "good"): 1,
            ("itl", "strict", "good"): 1,
            ("both", "strict", "missed"): 1,
        }

    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            ({"x-slo-class": "steady"}, {("tpot", "good"), ("itl", "missed"), ("both", "missed")}),
            ({"x-slo-class": "steady", "x-slo-itl-ms": "60000"}, {("tpot", "good"), ("itl", "good"), ("both", "good")}),
            ({"x-slo-class": "batch", "x-slo-itl-ms": "500"}, {("itl", "missed"), ("both", "missed")}),
        ],
    )
    def test_one_stall_among_twenty_gaps_is_seen_by_the_gaps_alone(
        self, frontend: RunningFrontend, headers: dict[str, str], expected: set[tuple[str, str]]
    ) -> None:
        """Twenty gaps of 500 ms are within the mean; one of them takes 600 ms, and the others next to nothing."""
        frontend.script.hold_after = 11
        fields = {"model": MODEL, "prompt": [1], "max_tokens": 21, "stream": True, "return_token_ids": True}
        url = f"{frontend.url}/v1/completions"
        num_tokens = 0
        with httpx.stream("POST", url, json=fields, headers=headers, timeout=20) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                num_tokens += sum(len(choice["token_ids"]) for choice in json.loads(line[6:])["choices"])
                if num_tokens == 11:
                    time.sleep(0.6)  # from when the frontend has sent the eleventh token
                    frontend.engine.release()
        assert num_tokens == 21
        name = headers["x-slo-class"]
        assert counts(frontend) == {(measure, name, outcome): 1 for measure, outcome in expected}

    def test_own_targets_decide(self, frontend: RunningFrontend) -> None:
        own = {"x-slo-class": "strict", "x-slo-ttft-ms": "60000", "x-slo-tpot-ms": "60000", "x-slo-itl-ms": "60000"}
        assert complete(frontend, own).status_code == 200
        assert complete(frontend, {"x-slo-class": "batch", "x-slo-ttft-ms": "0.001"}).status_code == 200
        assert counts(frontend) == every("strict", "good") | {
            ("ttft", "batch", "missed"): 1,
            ("both", "batch", "missed"): 1,
        }

    def test_a_failure_breaks_every_promise_even_those_kept_so_far(self, frontend: RunningFrontend) -> None:
        frontend.script.fail_at = 3
        assert complete(frontend).status_code == 500
        assert counts(frontend) == every("interactive", "missed")

    @pytest.mark.parametrize(("status", "missed"), [(429, True), (503, True), (400, False)])
    def test_a_rejection_is_missed_unless_it_is_the_client_s_fault(
        self, frontend: RunningFrontend, status: int, missed: bool
    ) -> None:
        frontend.script.reject = lambda submit: Rejected(submit.request_id, status, "no", 1.0)
        assert complete(frontend, {"x-slo-class": "strict"}).status_code == status
        assert counts(frontend) == (every("strict", "missed") if missed else {})

    def test_while_draining_the_header_tells_the_class(self, frontend: RunningFrontend) -> None:
        frontend.control.send(Drain(10.0))
        wait_until(lambda: httpx.get(f"{frontend.url}/ready").json()["phase"] == "draining")
        assert complete(frontend, {"x-slo-class": "strict"}).status_code == 503
        assert complete(frontend, {"x-slo-class": "unheard of"}).status_code == 503
        assert counts(frontend) == every("strict", "missed") | every("interactive", "missed")

    def test_a_client_that_gives_up_counts_nowhere(self, frontend: RunningFrontend) -> None:
        frontend.script.hold_after = 2
        fields = {"model": MODEL, "prompt": [1], "max_tokens": 5, "stream": True}
        with httpx.stream("POST", f"{frontend.url}/v1/completions", json=fields, timeout=20) as answer:
            next(answer.iter_lines())
        wait_until(lambda: bool(frontend.engine.aborted))
        assert counts(frontend) == {}

    def test_a_lost_engine_breaks_the_promise(self, tmp_path: Path) -> None:
        frontend = start_frontend(write_model_dir(tmp_path), start_timeout_s=0.2, scheduler=CLASSES)
        try:
            frontend.script.hold_after = 2
            wait_until(lambda: httpx.get(f"{frontend.url}/ready").status_code == 200)
            frontend.control.send(process_table(phase="recovering: engine", engine="lost"))
            assert complete(frontend).status_code == 503
            assert counts(frontend) == every("interactive", "missed")
        finally:
            frontend.stop()


def test_the_log_line_says_what_was_promised_and_kept(
    frontend: RunningFrontend, capfd: pytest.CaptureFixture[str]
) -> None:
    frontend.script.num_cached_tokens = 1
    assert complete(frontend, {"x-slo-class": "strict"}, max_tokens=1).status_code == 200
    assert complete(frontend, {"x-slo-class": "batch"}).status_code == 200
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"event":"request"' in line]
    keys = ("slo_class", "slo_ttft", "slo_tpot", "slo_itl", "cached_tokens")
    assert [tuple(line[key] for key in keys) for line in lines] == [
        ("strict", "missed", "good", "good", 1),
        ("batch", None, None, None, 1),
    ]


def _with_sorted_labels(text: str) -> str:
    lines = []
    for line in text.splitlines():
        head, brace, rest = line.partition("{")
        if brace and not line.startswith("#"):
            labels, _, value = rest.rpartition("}")
            line = head + "{" + ",".join(sorted(labels.split(","))) + "}" + value
        lines.append(line)
    return "\n".join(lines)
