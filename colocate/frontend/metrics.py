"""The Prometheus view: request latencies measured here, engine values from its latest snapshot, restarts from the
supervisor's table.

Before a scrape the engine is asked for a snapshot with a short time limit. Where it does not answer, its last values
stand and `colocate_engine_state_age_seconds` says how old they are; before its first answer they are absent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import colocate
from colocate.frontend.engine_client import EngineClient
from colocate.frontend.measures import RequestMeasures
from colocate.frontend.state_view import percentile
from colocate.frontend.status import DaemonStatus
from colocate.messages.client import EngineState
from colocate.messages.spec import RuntimeFacts
from colocate.types import FinishReason


def counter(name: str, documentation: str, samples: list[tuple[dict[str, str], float]]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=tuple(samples[0][0]) if samples else ())
    for labels, value in samples:
        family.add_metric(tuple(labels.values()), value)
    return family


def gauge(name: str, documentation: str, samples: list[tuple[dict[str, str], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=tuple(samples[0][0]) if samples else ())
    for labels, value in samples:
        family.add_metric(tuple(labels.values()), value)
    return family


class ColocateCollector(Collector):
    """Every metric under its own name. Collected on the event loop's thread, where its sources live."""

    def __init__(
        self, measures: RequestMeasures, client: EngineClient, status: DaemonStatus, facts: RuntimeFacts
    ) -> None:
        self._measures = measures
        self._client = client
        self._status = status
        self._label = {"model_name": facts.model_name}

    def describe(self) -> list[Metric]:
        return []  # names are not known before the first snapshot; nothing else registers them

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._processes()
        if (state := self._client.state) is not None:
            yield from self._engine(state)
            yield from self._switches(state)

    def _requests(self) -> Iterator[Metric]:
        measures, label = self._measures, self._label
        for name, documentation, histogram in (
            ("time_to_first_token_seconds", "Arrival of the request to its first token.", measures.ttft_s),
            ("inter_token_latency_seconds", "Each gap between two tokens of a request.", measures.itl_s),
            ("request_time_per_output_token_seconds", "Mean gap of a request after its first token.", measures.tpot_s),
            ("e2e_request_latency_seconds", "Arrival of the request to its last token.", measures.e2e_s),
            ("request_queue_time_seconds", "Arrival of the request to its first prefill.", measures.queue_s),
            ("request_prompt_tokens", "Prompt tokens of finished requests.", measures.prompt_tokens),
            ("request_generation_tokens", "Output tokens of finished requests.", measures.output_tokens),
        ):
            yield histogram.family(f"colocate_{name}", documentation, label)
        yield counter("colocate_prompt_tokens", "Prompt tokens prefilled.", [(label, measures.num_prompt_tokens)])
        yield counter("colocate_generation_tokens", "Tokens generated.", [(label, measures.num_output_tokens)])
        yield counter(
            "colocate_request_success",
            "Finished requests (choices) by how they ended.",
            [({**label, "finish_reason": reason.value}, measures.finished[reason.value]) for reason in FinishReason],
        )
        yield counter(
            "colocate_requests_rejected",
            "Requests not admitted, by HTTP status.",
            [({**label, "status": str(status)}, measures.rejected[status]) for status in (400, 429, 503)],
        )

    def _processes(self) -> Iterator[Metric]:
        processes = self._status.processes
        info = GaugeMetricFamily("colocate_build_info", "Version of this server.", labels=("version",))
        info.add_metric((colocate.__version__,), 1)
        yield info
        yield gauge("colocate_ready", "1 while requests are served.", [({}, float(self._status.ready))])
        yield counter(
            "colocate_worker_restarts",
            "Restarts of each process.",
            [({"role": process.role.value}, process.restarts) for process in processes],
        )

    def _engine(self, state: EngineState) -> Iterator[Metric]:
        label = self._label
        age_s = time.monotonic() - self._client.state_at_s
        yield gauge("colocate_engine_state_age_seconds", "Age of the engine's values below.", [({}, age_s)])
        yield gauge(
            "colocate_num_requests_running",
            "Requests in each phase.",
            [
                ({**label, "phase": "prefill"}, state.num_prefill_running),
                ({**label, "phase": "decode"}, state.num_decode_running),
            ],
        )
        yield gauge("colocate_num_requests_waiting", "Requests in the queue.", [(label, state.num_waiting)])
        yield gauge("colocate_kv_cache_usage_ratio", "Share of KV blocks in use.", [(label, kv_usage(state))])
        yield counter("colocate_preemptions", "Requests preempted.", [(label, state.num_preemptions)])

    def _switches(self, state: EngineState) -> Iterator[Metric]:
        yield counter(
            "colocate_plan_switches",
            "Plan switches decided.",
            [({"from": before, "to": after}, count) for before, after, count in state.switch_counts],
        )
        # The engine keeps the most recent latencies only, so this is a summary of those and not a histogram.
        latencies_s = [latency_ns / 1e9 for latency_ns in state.switch_latency_ns]
        name = "colocate_plan_switch_seconds"
        summary = Metric(
            name, "Decision of a switch to both workers having applied it, most recent switches.", "summary"
        )
        for fraction in (0.5, 0.9, 0.99):
            if (value := percentile(latencies_s, fraction)) is not None:
                summary.add_sample(name, {"quantile": str(fraction)}, value)
        summary.add_sample(f"{name}_count", {}, state.switch_count)
        yield summary
        yield counter(
            "colocate_plan_residency_seconds",
            "Phase-active time for which each plan was truly in force.",
            [({"plan": plan}, spent_ns / 1e9) for plan, spent_ns in state.residency_ns.items()],
        )


def kv_usage(state: EngineState) -> float:
    return 1 - state.blocks_free / state.blocks_total if state.blocks_total else 0.0


def build_registry(collectors: list[Collector]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    return registry
