"""`transformers serve`: https://huggingface.co/docs/transformers/serving (flags of 5.x).

`PEER_TRANSFORMERS_PYTHON` names the interpreter of its virtual environment (`pip install transformers[serving]`);
without it, this one is used. It takes prompts as text, knows no `ignore_eos`, and sends no [DONE].
"""

from __future__ import annotations

from collections.abc import Mapping

from systems.peer import PeerJob, interpreter, package_version

PYTHON_VARIABLE = "PEER_TRANSFORMERS_PYTHON"
_PAGE_TOKENS = 256  # its own choice


class TransformersServe:
    """Implements `PeerSystem`, with continuous batching: without it, requests are served one by one."""

    package = "transformers"
    stream_options: Mapping[str, bool] = {}

    def version(self) -> str | None:
        # The package alone does not serve.
        served = package_version(interpreter(PYTHON_VARIABLE), "uvicorn")
        return served and package_version(interpreter(PYTHON_VARIABLE), self.package)

    def command(self, job: PeerJob, port: int | str) -> list[str]:
        return [
            str(interpreter(PYTHON_VARIABLE)), "-m", "transformers.cli.transformers", "serve", str(job.model_dir),
            "--host", "127.0.0.1",
            "--port", str(port),
            "--device", "cpu",
            "--dtype", job.dtype,
            "--continuous-batching",
            "--cb-num-blocks", str(job.kv_tokens // _PAGE_TOKENS),
            *([] if job.chunk_tokens is None else self.chunk_flags(job.chunk_tokens)),
        ]  # fmt: skip

    def chunk_flags(self, tokens: int) -> list[str]:
        return ["--cb-max-batch-tokens", str(tokens)]

    def served_name(self, job: PeerJob) -> str:
        return str(job.model_dir)  # it refuses any other name

    def environment(self, job: PeerJob) -> Mapping[str, str]:
        # Its list of models is what lies in this folder, which has to exist.
        return {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(job.model_dir)}
