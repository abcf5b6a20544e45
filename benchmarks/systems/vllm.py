"""vLLM: https://docs.vllm.ai/en/stable/cli/serve/ (flags of 0.10 and later)."""

from __future__ import annotations

from collections.abc import Mapping

from systems.peer import PeerJob, python


class Vllm:
    """Implements `PeerSystem`. Chunked prefill is its only mode: `max_num_batched_tokens` is the size of a forward."""

    package = "vllm"
    stream_options: Mapping[str, bool] = {"include_usage": True, "continuous_usage_stats": True}

    def command(self, job: PeerJob, port: int) -> list[str]:
        caching = "--enable-prefix-caching" if job.prefix_caching else "--no-enable-prefix-caching"
        return [
            python(), "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(job.model_dir),
            "--served-model-name", job.name,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--load-format", "dummy",
            "--dtype", "bfloat16",
            "--max-model-len", str(job.max_model_len),
            "--max-num-seqs", str(job.max_num_seqs),
            "--max-num-batched-tokens", str(job.chunk_tokens),
            "--gpu-memory-utilization", str(job.memory_utilization),
            "--generation-config", "vllm",
            caching,
            *(["--enforce-eager"] if job.eager else []),
        ]  # fmt: skip

    def environment(self) -> Mapping[str, str]:
        return {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
