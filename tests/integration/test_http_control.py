"""The control calls: who may make them, what reaches the engine, and what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from colocate.config.serve import HttpSection, SchedulerSection
from colocate.config.slo import SloClass
from colocate.messages.client import ChangeSlo, PinPlan, Submit
from tests.byte_tokenizer import write_model_dir
from tests.frontend_harness import MODEL, RunningFrontend, start_frontend, wait_until
from tests.scripted_engine import Script

ADMIN = {"authorization": "Bearer mellon"}
KEYED = HttpSection(api_key=("sesame",), admin_key=("mellon", "friend"), metrics_compat=("vllm",))
CLASSES = SchedulerSection(slo_class=("interactive: ttft 300 ms, tpot 50 ms", "batch: none"))
CALLS = [("GET", "/control/plans"), ("POST", "/control/plan"), ("POST", "/control/slo"), ("GET", "/control")]


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[RunningFrontend]:
    running = start_frontend(write_model_dir(tmp_path), KEYED, scheduler=CLASSES)
    wait_until(lambda: httpx.get(f"{running.url}/ready").status_code == 200)
    yield running
    running.stop()


def post(frontend: RunningFrontend, path: str, body: object) -> httpx.Response:
    return httpx.post(f"{frontend.url}{path}", json=body, headers=ADMIN, timeout=20)


def get(frontend: RunningFrontend, path: str, headers: dict[str, str] = ADMIN) -> httpx.Response:
    return httpx.get(f"{frontend.url}{path}", headers=headers, timeout=20)


class TestKeys:
    @pytest.mark.parametrize(("method", "path"), CALLS)
    def test_without_an_admin_key_they_are_off(self, tmp_path: Path, method: str, path: str) -> None:
        frontend = start_frontend(write_model_dir(tmp_path), HttpSection(api_key=("sesame",)))
        try:
            for key in ("sesame", "mellon", "-"):
                answer = httpx.request(method, f"{frontend.url}{path}", headers={"authorization": f"Bearer {key}"})
                assert answer.status_code == 403 and "--admin-key" in answer.json()["error"]["message"]
        finally:
            frontend.stop()

    def test_the_two_kinds_of_key_do_not_stand_in_for_each_other(self, frontend: RunningFrontend) -> None:
        for method, path in CALLS:
            for header in ({}, {"authorization": "Bearer sesame"}, {"authorization": "Basic mellon"}):
                answer = httpx.request(method, f"{frontend.url}{path}", headers=header)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "invalid_admin_key"
        assert get(frontend, "/v1/models").status_code == 401
        assert get(frontend, "/v1/models", {"authorization": "Bearer sesame"}).status_code == 200
        assert get(frontend, "/control/plans", {"authorization": "Bearer friend"}).status_code == 200
        assert not frontend.engine.orders


class TestPlan:
    def test_pin_and_release(self, frontend: RunningFrontend) -> None:
        assert post(frontend, "/control/plan", {"plan": "shared"}).json() == {"pinned": "shared"}
        assert get(frontend, "/control/plans").json()["pinned"] == "shared"
        assert post(frontend, "/control/plan", {"plan": None}).json() == {"pinned": None}
        assert [order.plan for order in frontend.engine.orders if isinstance(order, PinPlan)] == ["shared", None]
        assert get(frontend, "/control/plans").json()["pinned"] is None

    def test_what_the_engine_refuses_is_told_with_its_remedy(self, frontend: RunningFrontend) -> None:
        answer = post(frontend, "/control/plan", {"plan": "p9d9"})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "no plan 'p9d9'; name one of p2d1, shared"
        assert answer.json()["error"]["param"] == "plan"

    @pytest.mark.parametrize("body", [{}, {"plan": ""}, {"plan": 4}, {"plan": "shared", "for_s": 5}, [], "shared"])
    def test_junk(self, frontend: RunningFrontend, body: object) -> None:
        assert post(frontend, "/control/plan", body).status_code == 400
        assert not frontend.engine.orders

    def test_listing(self, frontend: RunningFrontend) -> None:
        listing = get(frontend, "/control/plans").json()
        assert listing["plan"] == {"name": "p2d1", "prefill_units": 2, "decode_units": 1, "seq": 3}
        split, shared = listing["plans"]
        assert split == {
            "name": "p2d1",
            "prefill_units": 2,
            "decode_units": 1,
            "in_force": True,
            "candidate": True,
            "residency": 0.75,
        }
        assert (shared["in_force"], shared["candidate"], shared["residency"]) == (False, False, 0.25)
        assert listing["best_static"] == "p2d1" and listing["guards"] == {"dwell": 3, "hysteresis": 0}
        assert listing["shadow"] == {"policy": "slo", "wants": "shared", "agreement": 0.75, "switches": 4}


class TestSlo:
    def test_what_is_named_changes_and_null_takes_away(self, frontend: RunningFrontend) -> None:
        change = {
            "classes": [
                {"name": "interactive", "tpot_ms": 40, "itl_ms": 90},
                {"name": "batch", "ttft_per_token_ms": 1.5},
            ]
        }
        answer = post(frontend, "/control/slo", change)
        assert answer.status_code == 200
        assert answer.json()["classes"] == [
            {"name": "interactive", "ttft_ms": 300.0, "tpot_ms": 40.0, "itl_ms": 90.0, "ttft_per_token_ms": None},
            {"name": "batch", "ttft_ms": None, "tpot_ms": None, "itl_ms": None, "ttft_per_token_ms": 1.5},
        ]
        assert (
            post(frontend, "/control/slo", {"classes": [{"name": "interactive", "ttft_ms": None}]}).status_code == 200
        )
        orders = [order.classes for order in frontend.engine.orders if isinstance(order, ChangeSlo)]
        assert orders == [
            [SloClass("interactive", 0.3, 0.04, itl_s=0.09), SloClass("batch", ttft_per_token_s=0.0015)],
            [SloClass("interactive", None, 0.04, itl_s=0.09)],
        ]
        shown = get(frontend, "/state", {"authorization": "Bearer sesame"}).json()["slo"]["classes"]
        assert shown[0]["ttft_ms"] is None and shown[0]["tpot_ms"] == 40.0 and shown[0]["itl_ms"] == 90.0

    def test_the_new_targets_are_what_requests_are_judged_by(self, frontend: RunningFrontend) -> None:
        change = {"classes": [{"name": "batch", "ttft_ms": 0.001}]}
        assert post(frontend, "/control/slo", change).status_code == 200
        body = {"model": MODEL, "prompt": [1], "max_tokens": 2, "slo_class": "batch"}
        client = {"authorization": "Bearer sesame"}
        assert httpx.post(f"{frontend.url}/v1/completions", json=body, headers=client).status_code == 200
        text = httpx.get(f"{frontend.url}/metrics").text
        [line] = [
            line for line in text.splitlines()
            if line.startswith("colocate_slo_requests_total") and 'class="batch"' in line
            and 'outcome="missed"' in line and 'slo="ttft"' in line
        ]  # fmt: skip
        assert line.endswith(" 1.0")

    def test_the_targets_in_force_are_the_engine_s(self, frontend: RunningFrontend) -> None:
        """As a frontend finds them that starts again under a running engine."""
        frontend.engine.slo_classes["batch"] = SloClass("batch", tpot_s=0.25)
        frontend.engine.slo_classes["stranger"] = SloClass("stranger")
        shown = get(frontend, "/state", {"authorization": "Bearer sesame"}).json()["slo"]["classes"]
        assert [(known["name"], known["tpot_ms"]) for known in shown] == [("interactive", 50.0), ("batch", 250.0)]

    @pytest.mark.parametrize(
        ("classes", "says"),
        [
            ([{"name": "gold", "ttft_ms": 5}], "this server has: interactive, batch"),
            ([{"name": "batch"}], "name at least one target"),
            ([{"name": "batch", "ttft_ms": 1}, {"name": "batch", "tpot_ms": 1}], "each class at most once"),
            ([{"name": "batch", "ttft_ms": 0}], "greater than or equal to 0.001"),
            ([{"name": "batch", "ttft_ms": -1}], "greater than or equal to 0.001"),
            ([{"name": "batch", "itl_ms": 0}], "greater than or equal to 0.001"),
            ([{"name": "batch", "ttft_ms": "5"}], "valid number"),
            ([{"name": "batch", "ttft_s": 5}], "unknown parameter"),
            ([], "at least 1"),
        ],
    )
    def test_refusals(self, frontend: RunningFrontend, classes: object, says: str) -> None:
        answer = post(frontend, "/control/slo", {"classes": classes})
        assert answer.status_code == 400 and says in answer.json()["error"]["message"]
        assert not frontend.engine.orders


class TestSuccessor:
    def test_orders_outlive_the_engine_and_come_before_the_requests(self, frontend: RunningFrontend) -> None:
        frontend.script.hold_after = 2
        change = {"classes": [{"name": "interactive", "tpot_ms": 40}]}
        assert post(frontend, "/control/slo", change).status_code == 200
        assert post(frontend, "/control/plan", {"plan": "shared"}).status_code == 200
        body = {"model": MODEL, "prompt": [1], "max_tokens": 5}
        client = {"authorization": "Bearer sesame"}
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(httpx.post, f"{frontend.url}/v1/completions", json=body, headers=client, timeout=20)
            wait_until(lambda: frontend.engine.num_running == 1)
            successor = frontend.replace_engine(Script())
            assert waits.result().status_code == 200
        assert [type(message) for message in successor.heard[:3]] == [ChangeSlo, PinPlan, Submit]
        assert successor.pinned == "shared"
        assert successor.slo_classes["interactive"] == SloClass("interactive", 0.3, 0.04)

    def test_nothing_is_ordered_that_nobody_ordered(self, frontend: RunningFrontend) -> None:
        assert post(frontend, "/control/plan", {"plan": "shared"}).status_code == 200
        assert post(frontend, "/control/plan", {"plan": None}).status_code == 200
        assert post(frontend, "/control/plan", {"plan": "p9d9"}).status_code == 400
        successor = frontend.replace_engine()
        wait_until(lambda: bool(successor.heard))  # the frontend asks for the state
        assert not successor.orders


class TestSilence:
    def test_an_engine_that_says_nothing(self, frontend: RunningFrontend) -> None:
        frontend.script.answer_control = frontend.script.answer_state = False
        change = {"classes": [{"name": "batch", "ttft_ms": 5}]}
        with ThreadPoolExecutor(3) as pool:
            asked = [
                pool.submit(post, frontend, "/control/plan", {"plan": "shared"}),
                pool.submit(post, frontend, "/control/slo", change),
                pool.submit(get, frontend, "/control/plans"),
            ]
        for answer in (future.result() for future in asked):
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "no_answer"
        client = {"authorization": "Bearer sesame"}
        assert get(frontend, "/state", client).json()["slo"]["classes"][1]["ttft_ms"] is None  # nobody has agreed

    def test_no_engine_at_all(self, tmp_path: Path) -> None:
        frontend = start_frontend(write_model_dir(tmp_path), KEYED, Script())
        try:
            frontend.engine.skip_a_number.set()  # the frontend drops the channel, and no successor comes
            wait_until(lambda: post(frontend, "/control/plan", {"plan": None}).status_code == 503)
        finally:
            frontend.stop()


def test_the_document_describes_them(frontend: RunningFrontend) -> None:
    document = httpx.get(f"{frontend.url}/openapi.json").json()
    assert document["paths"]["/control/plans"]["get"]["security"] == [{"admin": []}]
    body = document["paths"]["/control/slo"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/SloChange"}
    assert document["components"]["schemas"]["SloTargets"]["properties"]["name"]["enum"] == ["interactive", "batch"]
    parameters = {entry["name"]: entry for entry in document["paths"]["/v1/completions"]["post"]["parameters"]}
    assert parameters["x-slo-class"]["schema"]["enum"] == ["interactive", "batch"]
    assert set(parameters) == {"x-slo-class", "x-slo-ttft-ms", "x-slo-tpot-ms", "x-slo-itl-ms", "x-colocate-stages"}
