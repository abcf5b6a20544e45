"""Streaming clients in threads, so that a test can act while they read."""

from __future__ import annotations

import json
import threading

import httpx

from tests.daemon import Daemon, eventually
from tests.limits import LIMIT_S


class Stream(threading.Thread):
    """One streamed completion as its client sees it: what it has received so far, and how it ended.

    `error` is an error event, a refusal's body or what broke the connection; `is_done` says [DONE] was read.
    """

    def __init__(self, daemon: Daemon, number: int, **fields: object) -> None:
        super().__init__(daemon=True)
        self._url = f"{daemon.base_url}/v1/completions"
        self._body = {
            "model": "demo",
            "prompt": [100 + number, 101, 102],
            "max_tokens": 60,
            "stream": True,
            "ignore_eos": True,
            "return_token_ids": True,
            "temperature": 1.0,
            "seed": number,
            **fields,
        }
        self.token_ids: list[int] = []
        self.text = ""
        self.finish: str | None = None
        self.error: object = None
        self.is_done = False
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=90.0) as response:
                if response.status_code != 200:
                    self.error = response.read().decode()
                    return
                for line in response.iter_lines():
                    self._take(line)
        except httpx.HTTPError as error:
            self.error = error

    def _take(self, line: str) -> None:
        if line == "data: [DONE]":
            self.is_done = True
        elif line.startswith("data: "):
            chunk = json.loads(line[6:])
            self.error = chunk.get("error", self.error)
            for choice in chunk.get("choices", ()):
                self.token_ids += choice.get("token_ids") or []
                self.text += choice["text"]
                self.finish = choice["finish_reason"] or self.finish


def finished(stream: Stream, timeout_s: float = LIMIT_S) -> list[int]:
    """Wait for the end, which must be a good one; the tokens."""
    stream.join(timeout_s)
    assert stream.is_done and stream.error is None, stream.error
    return stream.token_ids


def wait_mid_stream(streams: list[Stream], num_tokens: int = 5, timeout_s: float = LIMIT_S) -> None:
    """Until each stream has received some tokens."""
    eventually(lambda: all(len(stream.token_ids) >= num_tokens for stream in streams), timeout_s, "tokens arrive")
