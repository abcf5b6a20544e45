"""SGLang: https://docs.sglang.io/advanced_features/server_arguments.html (flags of 0.5)."""

from __future__ import annotations

from collections.abc import Mapping

from systems.peer import PeerJob, interpreter, package_version

PYTHON_VARIABLE = "PEER_SGLANG_PYTHON"


class Sglang:
    """Implements `PeerSystem`. Chunks of prompts run by turns with decode unless `mixed_chunk` puts them together."""

    package = "sglang"
    stream_options: Mapping[str, bool] = {"include_usage": True, "continuous_usage_stats": True}

    def __init__(self, *, mixed_chunk: bool = False) -> None:
        self._mixed_chunk = mixed_chunk

    def version(self) -> str | None:
        return package_version(interpreter(PYTHON_VARIABLE), self.package)

    def command(self, job: PeerJob, port: int | str) -> list[str]:
        return [
            str(interpreter(PYTHON_VARIABLE)), "-m", "sglang.launch_server",
            "--model-path", str(job.model_dir),
            "--served-model-name", job.name,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--load-format", "dummy" if job.dummy_weights else "auto",
            "--dtype", job.dtype,
            "--context-length", str(job.max_model_len),
            "--max-running-requests", str(job.max_num_seqs),
            *([] if job.chunk_tokens is None else self.chunk_flags(job.chunk_tokens)),
            "--mem-fraction-static", str(job.memory_utilization),
            *(["--enable-mixed-chunk"] if self._mixed_chunk else []),
            *([] if job.prefix_caching else ["--disable-radix-cache"]),
            *(["--disable-cuda-graph"] if job.eager else []),
        ]  # fmt: skip

    def chunk_flags(self, tokens: int) -> list[str]:
        return ["--chunked-prefill-size", str(tokens)]

    def served_name(self, job: PeerJob) -> str:
        return job.name

    def environment(self, job: PeerJob) -> Mapping[str, str]:
        return {"HF_HUB_OFFLINE": "1"}
