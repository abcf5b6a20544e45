"""A server that answers questions of recall without a model: `python tests/recall_server.py PORT [--wrong N] [--broken]
[--mute] [--dies]`, for the tests of what asks them.

It reads the value out of the prompt it was sent. `--wrong N`: of the first N questions it says another one. `--broken`:
it ends before it listens. `--mute`: it answers every question 500. `--dies`: it answers one and ends.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from colocate.bench.systems.command import CommandSystem, PeerEntry

_numbers = itertools.count()  # of questions; next() of it is atomic
_first_is_answered = threading.Event()


def recall_system() -> CommandSystem:
    """A way to start it; an arm's flags are its own."""
    return CommandSystem("colocate", PeerEntry((sys.executable, str(Path(__file__)), "{port}"), ready="/ready"), "demo")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._say(200, {"data": [{"id": "demo"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        number = next(_numbers)
        if "--dies" in sys.argv and number > 0:
            _first_is_answered.wait()
            os._exit(3)
        if "--mute" in sys.argv:
            self._say(500, {"error": {"message": "mute"}})
            return
        (key,) = re.findall(r"What is (\w+)\?", text)
        (value,) = re.findall(rf"\b{key} = (\d+)", text)
        wrong = int(sys.argv[sys.argv.index("--wrong") + 1]) if "--wrong" in sys.argv else 0
        said = f"{(int(value) + 1) % 1000:03d}" if number < wrong else value
        self._say(200, {"choices": [{"message": {"content": f"You said {key} = {said}."}}]})
        _first_is_answered.set()

    def _say(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    if "--broken" in sys.argv:
        sys.exit("there is no such plan")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
