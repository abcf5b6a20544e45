"""llama.cpp's server: https://github.com/ggml-org/llama.cpp/tree/master/tools/server (flags of 2026).

`PEER_LLAMA_SERVER` names the binary; without it, `llama-server` on the PATH. It serves a GGUF file, which
`gguf_export.py` writes of the same weights: `job.model_dir` is that file. Its sources are in the sdist of
`llama-cpp-python` (vendor/llama.cpp): `cmake -B build -DLLAMA_CURL=OFF; cmake --build build --target llama-server`.

Its KV cache is float16 unless told otherwise, and stays so here: that is how its users run it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from systems.peer import PeerJob, interpreter

BINARY_VARIABLE = "PEER_LLAMA_SERVER"
GGUF_PYTHON_VARIABLE = "PEER_GGUF_PYTHON"
_VERSION_S = 30.0
_EXPORT_S = 600.0


class LlamaCpp:
    """Implements `PeerSystem`. Prompts are cut into chunks of `--ubatch-size`, which decode's tokens share."""

    package = "llama.cpp"
    stream_options: Mapping[str, bool] = {"include_usage": True}

    def version(self) -> str | None:
        binary = find_binary()
        if binary is None:
            return None
        try:
            done = subprocess.run(
                [binary, "--version"], capture_output=True, text=True, timeout=_VERSION_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return read_version(done.stdout + done.stderr)

    def command(self, job: PeerJob, port: int | str) -> list[str]:
        return [
            find_binary() or "llama-server",
            "--model", str(job.model_dir),
            "--alias", job.name,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--threads", str(job.threads),
            "--parallel", str(job.max_num_seqs),
            "--ctx-size", str(job.kv_tokens),
            "--kv-unified",
            "--no-ui",
            *([] if job.prefix_caching else ["--no-cache-prompt", "--cache-ram", "0"]),
            *([] if job.chunk_tokens is None else self.chunk_flags(job.chunk_tokens)),
        ]  # fmt: skip

    def chunk_flags(self, tokens: int) -> list[str]:
        return ["--batch-size", str(tokens), "--ubatch-size", str(tokens)]

    def served_name(self, job: PeerJob) -> str:
        return job.name

    def environment(self, job: PeerJob) -> Mapping[str, str]:
        return {}


def find_binary() -> str | None:
    return shutil.which(os.environ.get(BINARY_VARIABLE) or "llama-server")


def read_version(said: str) -> str:
    """`version: 0.5.0-dev (build 1, commit 0c1e570)`, or `version: 7062 (0c1e570)`: without the word."""
    found = re.search(r"^version: (.+)$", said, re.MULTILINE)
    return found.group(1).strip() if found else "unknown"


def export_gguf(model_dir: Path, file: Path) -> Path:
    """Write `file` of the model by the interpreter that has the package `gguf`. Raises RuntimeError."""
    script = Path(__file__).with_name("gguf_export.py")
    command = [str(interpreter(GGUF_PYTHON_VARIABLE)), str(script), str(model_dir), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_EXPORT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return file
