"""`--metrics-compat vllm`: the same values under the names that dashboards, load tools and gateways know."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from colocate.frontend.engine_client import EngineClient
from colocate.frontend.measures import RequestMeasures
from colocate.frontend.metrics import counter, gauge, kv_usage
from colocate.messages.client import EngineState
from colocate.messages.spec import RuntimeFacts
from colocate.types import FinishReason


class VllmCollector(Collector):
    def __init__(
        self, measures: RequestMeasures, client: EngineClient, facts: RuntimeFacts, prefix_caching: bool
    ) -> None:
        self._measures = measures
        self._client = client
        self._facts = facts
        self._prefix_caching = prefix_caching
        self._label = {"model_name": facts.model_name}

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        measures, label = self._measures, self._label
        for name, histogram in (
            ("time_to_first_token_seconds", measures.ttft_s),
            ("inter_token_latency_seconds", measures.itl_s),
            ("request_time_per_output_token_seconds", measures.tpot_s),
            ("e2e_request_latency_seconds", measures.e2e_s),
            ("request_queue_time_seconds", measures.queue_s),
            ("request_prefill_time_seconds", measures.prefill_s),
            ("request_decode_time_seconds", measures.decode_s),
            ("request_prompt_tokens", measures.prompt_tokens),
            ("request_generation_tokens", measures.output_tokens),
        ):
            yield histogram.family(f"vllm:{name}", f"As colocate_{name}.", label)
        yield counter("vllm:prompt_tokens", "Prompt tokens prefilled.", [(label, measures.num_prompt_tokens)])
        yield counter("vllm:generation_tokens", "Tokens generated.", [(label, measures.num_output_tokens)])
        yield counter(
            "vllm:request_success",
            "Finished requests.",
            [({**label, "finished_reason": reason.value}, measures.finished[reason.value]) for reason in FinishReason],
        )
        yield self._cache_config()
        if (state := self._client.state) is not None:
            yield from self._engine(state)

    def _engine(self, state: EngineState) -> Iterator[Metric]:
        label = self._label
        running = state.num_prefill_running + state.num_decode_running
        yield gauge("vllm:num_requests_running", "Requests being worked on.", [(label, running)])
        yield gauge("vllm:num_requests_waiting", "Requests in the queue.", [(label, state.num_waiting)])
        yield gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", [(label, kv_usage(state))])
        queries, hits = state.prefix_queries_total, state.prefix_hits_total
        yield counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix tree.", [(label, queries)])
        yield counter("vllm:prefix_cache_hits", "Prompt tokens found there.", [(label, hits)])
        yield counter("vllm:num_preemptions", "Requests preempted.", [(label, state.num_preemptions)])

    def _cache_config(self) -> Metric:
        labels = {
            **self._label,
            "block_size": str(self._facts.block_size),
            "num_gpu_blocks": str(self._facts.num_blocks),
            "cache_dtype": self._facts.dtype,
            "enable_prefix_caching": str(self._prefix_caching),
        }
        family = GaugeMetricFamily("vllm:cache_config_info", "The KV pool.", labels=tuple(labels))
        family.add_metric(tuple(labels.values()), 1)
        return family
