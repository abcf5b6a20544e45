"""A peer of the benchmarks from start to end: ready, driven by the same client, gone with everything it started."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from random_model import Shape, write_random_model
from safetensors.numpy import load_file, save_file
from stream_client import StreamRecord, stream
from systems.llama_cpp import GGUF_PYTHON_VARIABLE, LlamaCpp, export_gguf
from systems.peer import PeerJob, PeerServer, installed_version, interpreter, package_version, running_peer
from systems.vllm import Vllm

from colocate.bench.systems.colocate import Colocate
from colocate.bench.systems.server import running

# A server of three tokens that says how many it has sent in `usage` alone, and starts a process of its own.
SERVER = """
import http.server, json, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        for sent in range(1, asked["max_tokens"] + 1):
            choice = {"index": 0, "text": "x", "finish_reason": "length" if sent == asked["max_tokens"] else None}
            usage = {"completion_tokens": sent, "prompt_tokens_details": None}
            event = {"choices": [choice], "usage": usage if asked["stream_options"]["continuous_usage_stats"] else None}
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
        self.wfile.write(b"data: [DONE]\\n\\n")
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class SmallServer:
    """Implements `PeerSystem`."""

    package = "msgspec"
    stream_options: Mapping[str, bool] = {"include_usage": True, "continuous_usage_stats": True}

    def __init__(self, program: str = SERVER) -> None:
        self._program = program

    def version(self) -> str | None:
        return package_version(Path(sys.executable), self.package)

    def command(self, job: PeerJob, port: int | str) -> list[str]:
        return [sys.executable, "-c", self._program, str(port)]

    def chunk_flags(self, tokens: int) -> list[str]:
        return []

    def served_name(self, job: PeerJob) -> str:
        return job.name

    def environment(self, job: PeerJob) -> Mapping[str, str]:
        return {}


def test_a_peer_is_driven_by_the_same_client_and_leaves_nothing(tmp_path: Path) -> None:
    system = SmallServer()
    with running_peer(system, PeerJob(model_dir=tmp_path)) as peer:
        started = [psutil.Process(peer.pid), *psutil.Process(peer.pid).children(recursive=True)]
        record = StreamRecord(0.0)
        options = dict(system.stream_options)
        asyncio.run(stream(peer.port, "bench", [1, 2], 3, record, stream_options=options))

    assert peer.version
    assert len(started) == 2
    assert [len(record.token_s), record.finish_reason, record.error] == [3, "length", None]
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []


def test_a_peer_that_cannot_start_tells_its_last_words(tmp_path: Path) -> None:
    system = SmallServer("import sys; sys.exit('no such flag')")
    with (
        pytest.raises(RuntimeError, match=r"ended with 1:\nno such flag"),
        running_peer(system, PeerJob(model_dir=tmp_path)),
    ):
        raise AssertionError("it never became ready")


def test_a_peer_that_is_not_installed_is_an_answer(tmp_path: Path) -> None:
    if installed_version(Vllm()) is not None:
        pytest.skip("vLLM is installed here")
    with pytest.raises(RuntimeError, match="vllm is not installed"), running_peer(Vllm(), PeerJob(model_dir=tmp_path)):
        raise AssertionError("it never became ready")


def test_llama_cpp_serves_the_same_weights(tmp_path: Path) -> None:
    """First tokens and their log-probabilities, of weights whose attention depends on positions."""
    if LlamaCpp().version() is None or package_version(interpreter(GGUF_PYTHON_VARIABLE), "gguf") is None:
        pytest.skip("llama.cpp's server or the package gguf is not installed here")
    shape = Shape(hidden=128, layers=2, heads=4, kv_heads=2, intermediate=256, vocab=2048)
    model = write_random_model(tmp_path / "model", shape)
    weights = load_file(model / "model.safetensors")
    for name in weights:
        if name.endswith(("q_proj.weight", "k_proj.weight", "o_proj.weight", "v_proj.weight")):
            weights[name] *= 10
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    job = PeerJob(model_dir=export_gguf(model, tmp_path / "model.gguf"), max_num_seqs=1, kv_tokens=2048)
    flags = ("--dtype", "float32", "--kv-memory", "16MiB", "--served-model-name", "bench", "--log-level", "warning")
    systems = (
        (PeerServer(LlamaCpp(), job), ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off")),
        (
            Colocate(str(model), flags),
            ("--mode", "chunked"),
        ),
    )
    answers = []
    for system, arm_flags in systems:
        with running(system, arm_flags, tmp_path / f"{system.name}.log") as server:
            answers.append([first_logprobs(server.url, seed) for seed in range(6)])
    for theirs, ours in zip(*answers, strict=True):
        assert max(theirs, key=theirs.__getitem__) == max(ours, key=ours.__getitem__)
        assert set(theirs) & set(ours)
        assert all(abs(theirs[token] - ours[token]) < 1e-4 for token in set(theirs) & set(ours))


def first_logprobs(url: str, seed: int) -> dict[str, float]:
    """Of the five likeliest first tokens after a prompt of 60, by text: parts of characters share one and are left
    out."""
    draw = random.Random(seed)
    prompt = [draw.randrange(300, 2000) for _ in range(60)]
    body = {"model": "bench", "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        logprobs = json.load(reply)["choices"][0]["logprobs"]
    if "content" in logprobs:  # llama.cpp's shape is that of chats
        found = {each["token"]: each["logprob"] for each in logprobs["content"][0]["top_logprobs"]}
    else:
        found = logprobs["top_logprobs"][0]
    return {token: value for token, value in found.items() if "\ufffd" not in token}
