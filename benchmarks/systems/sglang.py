"""SGLang: https://docs.sglang.io/advanced_features/server_arguments.html (flags of 0.5)."""

from __future__ import annotations

from collections.abc import Mapping

from systems.peer import PeerJob, python


class Sglang:
    """Implements `PeerSystem`. Chunks of prompts run by turns with decode unless `mixed_chunk` puts them together."""

    package = "sglang"
    stream_options: Mapping[str, bool] = {"include_usage": True, "continuous_usage_stats": True}

    def __init__(self, *, mixed_chunk: bool = False) -> None:
        self._mixed_chunk = mixed_chunk

    def command(self, job: PeerJob, port: int) -> list[str]:
        return [
            python(), "-m", "sglang.launch_server",
            "--model-path", str(job.model_dir),
            "--served-model-name", job.name,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--load-format", "dummy",
            "--dtype", "bfloat16",
            "--context-length", str(job.max_model_len),
            "--max-running-requests", str(job.max_num_seqs),
            "--chunked-prefill-size", str(job.chunk_tokens),
            "--mem-fraction-static", str(job.memory_utilization),
            *(["--enable-mixed-chunk"] if self._mixed_chunk else []),
            *([] if job.prefix_caching else ["--disable-radix-cache"]),
            *(["--disable-cuda-graph"] if job.eager else []),
        ]  # fmt: skip

    def environment(self) -> Mapping[str, str]:
        return {"HF_HUB_OFFLINE": "1"}
