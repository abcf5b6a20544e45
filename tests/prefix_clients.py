"""Clients of a daemon that reuses prefixes, and what they expect of it, worked out without the tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from colocate.core.outbox import Command
from colocate.messages.prefill import PrefillBatch, PrefillRow
from colocate.telemetry.event_log import read_event_log
from tests.daemon import Daemon
from tests.limits import LIMIT_S

BLOCK_SIZE = 16
TEXT = (
    "The supervisor starts a frontend, a keeper, an engine and two workers. The prefill worker reads prompts, and the "
    "decode worker writes answers, one token after another. Both read and write the same blocks of memory, so nothing "
    "is copied when a request moves from one to the other. When a worker dies, another one takes its place. "
)


@dataclass(frozen=True)
class Answer:
    prompt: list[int]
    token_ids: list[int]
    num_cached: int
    top: list[dict[str, float]]  # of each token, where logprobs were asked for

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.token_ids]


@dataclass
class KnownPrefixes:
    """What may be found again: every full block of tokens that were fed, with all that came before it. No eviction.

    The last token of an answer is never fed, and the last token of a prompt is always computed.
    """

    prefixes: set[tuple[int, ...]] = field(default_factory=set)

    def expected(self, prompt: Sequence[int]) -> int:
        num_tokens = 0
        while num_tokens + BLOCK_SIZE < len(prompt) and tuple(prompt[: num_tokens + BLOCK_SIZE]) in self.prefixes:
            num_tokens += BLOCK_SIZE
        return num_tokens

    def add(self, answer: Answer) -> None:
        num_fed = len(answer.tokens) - 1
        self.prefixes |= {
            tuple(answer.tokens[:end]) for end in range(BLOCK_SIZE, num_fed - num_fed % BLOCK_SIZE + 1, BLOCK_SIZE)
        }


def body_of(prompt: Sequence[int], max_tokens: int, **fields: Any) -> dict[str, Any]:
    return {
        "model": "demo",
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "seed": 1,
        "ignore_eos": True,
        "return_token_ids": True,
        **fields,
    }


def answer_of(prompt: Sequence[int], reply: httpx.Response) -> Answer:
    assert reply.status_code == 200, reply.text
    body = reply.json()
    choice = body["choices"][0]
    cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    top = (choice["logprobs"] or {}).get("top_logprobs", [])
    return Answer(list(prompt), choice["token_ids"], cached, top)


def ask(daemon: Daemon, prompt: Sequence[int], max_tokens: int = 24, **fields: Any) -> Answer:
    body = body_of(prompt, max_tokens, **fields)
    return answer_of(prompt, httpx.post(f"{daemon.base_url}/v1/completions", json=body, timeout=LIMIT_S))


def tokenized(daemon: Daemon, text: str) -> list[int]:
    reply = httpx.post(f"{daemon.base_url}/tokenize", json={"model": "demo", "prompt": text}, timeout=LIMIT_S)
    tokens: list[int] = reply.json()["tokens"]
    return tokens


def converse(daemon: Daemon, first: Sequence[int], questions: Sequence[Sequence[int]], **fields: Any) -> list[Answer]:
    """Turns of one conversation: each prompt is all that was said before and a question."""
    answers = [ask(daemon, first, **fields)]
    for question in questions:
        answers.append(ask(daemon, [*answers[-1].tokens, *question], **fields))
    return answers


def hits_and_queries(daemon: Daemon) -> tuple[int, int]:
    """Tokens, as `/state` says."""
    counts = daemon.state()["prefix_cache"]
    return counts["hits"], counts["queries"]


def prefilled_rows(log: Path) -> Iterator[PrefillRow]:
    """Every chunk that an event log says was sent to be computed, in order."""
    decoder = msgspec.msgpack.Decoder(list[Command])
    for record in read_event_log(log)[1]:
        for command in decoder.decode(record.commands):
            if isinstance(command.message, PrefillBatch):
                yield from command.message.rows
