"""A peer of the benchmarks from start to end: ready, driven by the same client, gone with everything it started."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from stream_client import StreamRecord, stream
from systems.peer import PeerJob, installed_version, running_peer
from systems.vllm import Vllm

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

    def command(self, job: PeerJob, port: int) -> list[str]:
        return [sys.executable, "-c", self._program, str(port)]

    def environment(self) -> Mapping[str, str]:
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
