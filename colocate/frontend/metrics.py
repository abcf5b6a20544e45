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
from colocate.config.slo import SloClass
from colocate.frontend.engine_client import EngineClient
from colocate.frontend.measures import RequestMeasures
from colocate.frontend.slo import GOOD, MEASURES, MISSED, SloTable
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
        self,
        measures: RequestMeasures,
        client: EngineClient,
        status: DaemonStatus,
        facts: RuntimeFacts,
        slo: SloTable,
    ) -> None:
        self._measures = measures
        self._client = client
        self._status = status
        self._slo = slo
        self._label = {"model_name": facts.model_name}

    def describe(self) -> list[Metric]:
        return []  # names are not known before the first snapshot; nothing else registers them

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._promises()
        yield from self._processes()
        if (state := self._client.state) is not None:
            yield from self._engine(state)
            yield from self._prefix_cache(state)
            yield from self._switches(state)
            yield from self._controller(state)

    def _requests(self) -> Iterator[Metric]:
        measures, label = self._measures, self._label
        for name, documentation, histogram in (
            ("time_to_first_token_seconds", "Arrival of the request to its first token.", measures.ttft_s),
            ("inter_token_latency_seconds", "Each gap between two tokens of a request.", measures.itl_s),
            ("request_time_per_output_token_seconds", "Mean gap of a request after its first token.", measures.tpot_s),
            ("e2e_request_latency_seconds", "Arrival of the request to its last token.", measures.e2e_s),
            ("request_tokenize_time_seconds", "Arrival of the request to its submission.", measures.tokenize_s),
            ("request_queue_time_seconds", "Submission of the request to its first prefill.", measures.queue_s),
            ("request_prefill_time_seconds", "First prefill of the request to its first token.", measures.prefill_s),
            ("request_decode_time_seconds", "First token of the request to its last.", measures.decode_s),
            ("request_stream_time_seconds", "Last token of an answer to its last byte.", measures.stream_s),
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

    def _promises(self) -> Iterator[Metric]:
        counts = dict(self._measures.slo.counts)
        for known in self._slo.classes:  # from zero on, so that a first miss shows as an increase
            for measure, kept in zip(MEASURES, _promised(known), strict=True):
                for outcome in (GOOD, MISSED) if kept else ():
                    counts.setdefault((measure, known.name, outcome), 0)
        yield counter(
            "colocate_slo_requests",
            "Requests (choices) with a target, by class and outcome; refused and failed ones are missed.",
            [
                ({**self._label, "slo": measure, "class": name, "outcome": outcome}, count)
                for (measure, name, outcome), count in sorted(counts.items())
            ],
        )
        targets = [
            ({**self._label, "slo": measure, "class": known.name}, target_s)
            for known in self._slo.classes
            for measure, target_s in (
                ("ttft", known.ttft_s),
                ("tpot", known.tpot_s),
                ("itl", known.itl_s),
                ("ttft_per_token", known.ttft_per_token_s),
            )
            if target_s is not None
        ]
        yield gauge("colocate_slo_target_seconds", "Targets of each class now.", targets)

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
        blocks = {"free": state.blocks_free, "cached": state.blocks_cached, "draining": state.blocks_draining}
        blocks["used"] = state.blocks_total - sum(blocks.values())
        yield gauge(
            "colocate_kv_blocks",
            "KV blocks; cached ones hold a prefix that no request uses, and are given up when needed.",
            [({**label, "state": name}, count) for name, count in blocks.items()],
        )
        yield counter("colocate_preemptions", "Requests preempted.", [(label, state.num_preemptions)])

    def _prefix_cache(self, state: EngineState) -> Iterator[Metric]:
        label = self._label
        queries, hits = state.prefix_queries_total, state.prefix_hits_total
        yield counter(
            "colocate_prefix_cache_queries", "Prompt tokens looked up in the prefix tree.", [(label, queries)]
        )
        yield counter("colocate_prefix_cache_hits", "Prompt tokens found there.", [(label, hits)])
        what = "Blocks of the prefix tree given up to make room."
        yield counter("colocate_prefix_cache_evictions", what, [(label, state.prefix_evictions_total)])

    def _controller(self, state: EngineState) -> Iterator[Metric]:
        plan = state.plan
        yield gauge(
            "colocate_plan_units",
            "Units of each phase under the plan in force.",
            [({"phase": "prefill"}, plan.prefill_units), ({"phase": "decode"}, plan.decode_units)],
        )
        in_force = [({"plan": known.name}, float(known.name == plan.name)) for known in state.plans]
        yield gauge("colocate_plan_in_force", "1 for the plan in force.", in_force)
        yield gauge(
            "colocate_plan_pinned", "1 while an operator pins the plan.", [({}, float(state.pinned is not None))]
        )
        yield counter(
            "colocate_guard_interventions",
            "How often each guard changed what the policy wanted.",
            [({"guard": guard}, count) for guard, count in sorted(state.guards.items())],
        )
        yield gauge(
            "colocate_prediction_error_ratio",
            "Recent mean of |measured - predicted| / predicted.",
            [({"phase": phase}, error) for phase, error in sorted(state.prediction_error.items())],
        )
        yield counter("colocate_set_aside", "Prefills put aside for an urgent prompt.", [({}, state.set_aside_count)])
        if (shadow := state.shadow) is not None:
            label = {"policy": shadow.policy}
            help_text = "Share of phase-active time in which the shadow policy wanted the plan that was asked for."
            yield gauge("colocate_shadow_agreement_ratio", help_text, [(label, shadow.agreement)])
            yield counter("colocate_shadow_switches", "What it would have switched.", [(label, shadow.switch_count)])

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


def _promised(known: SloClass) -> list[bool]:
    """Whether a class has a target for each of MEASURES."""
    promised = [target_s is not None for target_s in (known.ttft_target_s(0), known.tpot_s, known.itl_s)]
    return [*promised, any(promised)]


def kv_usage(state: EngineState) -> float:
    """A block that only the prefix tree holds is as good as free."""
    if not state.blocks_total:
        return 0.0
    return 1 - (state.blocks_free + state.blocks_cached) / state.blocks_total


def build_registry(collectors: list[Collector]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    return registry
