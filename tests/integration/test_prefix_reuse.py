"""Prefix reuse through HTTP: the same tokens as without it, hits that can be worked out by hand, and honest figures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from colocate.runtime.replay import replay
from colocate.workload.lengths import LognormalLengths
from colocate.workload.patterns import PATTERNS, PatternShape, prefix_pattern
from colocate.workload.prompts import drawn_tokens, lay_out
from colocate.workload.rows import WorkloadRow
from tests.daemon import Daemon, eventually, start_daemon
from tests.limits import LIMIT_S, START_LIMIT_S
from tests.prefix_clients import (
    BLOCK_SIZE,
    TEXT,
    Answer,
    KnownPrefixes,
    answer_of,
    ask,
    body_of,
    converse,
    hits_and_queries,
    prefilled_rows,
    tokenized,
)

CPU = ("--device", "cpu", "--start-timeout-s", str(START_LIMIT_S))
TALK = (*CPU, "--kv-memory", "32MiB", "--max-num-batched-tokens", "128")
QUESTIONS = (
    "What does the decode worker do? ",
    TEXT * 3 + "Who starts the workers? ",  # more than one forward takes, so a hit is followed by several chunks
    "And what is copied? ",
)
# Rounding moves a logit of the demo model by far less than this; a wrong KV block moves the answer to another text.
MARGIN = 0.05

VOCABULARY = range(300, 2000)


# -- the same tokens ---------------------------------------------------------------------------------------------------


def conversations(daemon: Daemon) -> list[list[Answer]]:
    """Greedy, and drawn at a temperature: that shows a difference sooner."""
    first, *questions = (tokenized(daemon, text) for text in (TEXT, *QUESTIONS))
    return [converse(daemon, first, questions, temperature=temperature) for temperature in (0.0, 0.8)]


@pytest.fixture(scope="module")
def undisturbed() -> list[list[Answer]]:
    """What is said where nothing is reused."""
    with start_daemon(*TALK, "--deterministic", "--no-prefix-caching") as daemon:
        said = conversations(daemon)
        assert hits_and_queries(daemon) == (0, 0)
    assert all(answer.num_cached == 0 for answers in said for answer in answers)
    assert all(len(set(answer.token_ids)) > 5 for answer in said[1]), "text that a wrong block would change"
    return said


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", [(), ("--mode", "chunked", "--chunk-size", "96")], ids=["colocated", "chunked"])
def test_a_conversation_says_the_same_and_each_turn_finds_prompt_and_answer_of_the_last(
    undisturbed: list[list[Answer]], mode: tuple[str, ...]
) -> None:
    with start_daemon(*TALK, "--deterministic", *mode) as daemon:
        said = conversations(daemon)
    assert [[answer.token_ids for answer in answers] for answers in said] == [
        [answer.token_ids for answer in answers] for answers in undisturbed
    ]
    for answers in said:
        for last, answer in pairwise(answers):
            num_fed = len(last.tokens) - 1
            assert answer.num_cached == num_fed - num_fed % BLOCK_SIZE
            assert answer.num_cached > len(last.prompt), "blocks that decode wrote are found too"


@pytest.mark.timeout(300)
def test_without_deterministic_a_difference_is_one_of_rounding() -> None:
    with start_daemon(*TALK) as daemon:
        prompt = tokenized(daemon, TEXT)
        for turn, text in enumerate(QUESTIONS):
            prompt += tokenized(daemon, text)
            alone = ask(daemon, prompt, cache_salt=f"turn {turn} alone", logprobs=2)
            reused = ask(daemon, prompt, logprobs=2)
            assert alone.num_cached == 0 and (reused.num_cached > 0) == (turn > 0)
            for token_id, other_id, top in zip(alone.token_ids, reused.token_ids, alone.top, strict=True):
                if token_id != other_id:
                    first, second = sorted(top.values(), reverse=True)[:2]
                    assert first - second < MARGIN, "another token although the choice was clear"
                    break  # from here on the contexts differ
            prompt = reused.tokens


# -- hits as worked out by hand ----------------------------------------------------------------------------------------

SHAPE = PatternShape(shared_tokens=512, num_shared=3, num_uses=3, num_prefixes=5)
NUM_ROWS = 15


def rows_of(pattern: str) -> tuple[WorkloadRow, ...]:
    """Own parts and answers of about 20 tokens behind 512 shared ones; a chat has no shared part."""
    lengths = LognormalLengths(20, 0.5, 20, 0.5, max_tokens=60)
    return prefix_pattern(pattern, 1.0, lengths, 10 * NUM_ROWS, seed=3, shape=SHAPE).rows[:NUM_ROWS]


class Prompts:
    """Token ids of a workload's prompts, with the answers that were really given."""

    def __init__(self, rows: tuple[WorkloadRow, ...]) -> None:
        self._rows = rows
        self._layouts = lay_out(rows)
        self._answers: dict[int, list[int]] = {}

    def prompt(self, index: int) -> list[int]:
        tokens: list[int] = []
        for piece in self._layouts[index].pieces:
            answer = self._answers.get(piece[0])
            tokens += drawn_tokens([piece], VOCABULARY) if answer is None else answer
        assert len(tokens) == self._rows[index].prompt_tokens
        return tokens

    def answered(self, index: int, answer: Answer) -> None:
        self._answers[self._layouts[index].answer] = answer.token_ids


def run_in_turn(daemon: Daemon, rows: tuple[WorkloadRow, ...], salt: str) -> Iterator[Answer]:
    prompts = Prompts(rows)
    for index, row in enumerate(rows):
        answer = ask(daemon, prompts.prompt(index), row.output_tokens, cache_salt=salt)
        prompts.answered(index, answer)
        yield answer


@pytest.fixture(scope="module")
def emulated() -> Iterator[Daemon]:
    with start_daemon("--kv-memory", "256MiB") as daemon:
        yield daemon


@pytest.mark.parametrize("pattern", PATTERNS)
def test_hits_are_those_of_a_set_of_prefixes(emulated: Daemon, pattern: str) -> None:
    known, num_hits, num_prompt_tokens = KnownPrefixes(), 0, 0
    before = hits_and_queries(emulated)
    for answer in run_in_turn(emulated, rows_of(pattern), salt=pattern):
        assert answer.num_cached == known.expected(answer.prompt)
        known.add(answer)
        num_hits += answer.num_cached
        num_prompt_tokens += len(answer.prompt)
    assert num_hits > num_prompt_tokens * 0.3, "the pattern shares prefixes"
    assert hits_and_queries(emulated) == (before[0] + num_hits, before[1] + num_prompt_tokens)


@pytest.fixture(scope="module")
def tight() -> Iterator[Daemon]:
    """A pool of 85 blocks: two of the shared texts below, and what goes with them."""
    with start_daemon("--kv-memory", "4MiB", "--max-model-len", "1280") as daemon:
        yield daemon


@pytest.mark.parametrize("pattern", PATTERNS)
def test_under_pressure_hits_drop_and_all_blocks_come_back(emulated: Daemon, tight: Daemon, pattern: str) -> None:
    rows, known, salt = rows_of(pattern), KnownPrefixes(), f"{pattern} under pressure"
    ample = sum(answer.num_cached for answer in run_in_turn(emulated, rows, salt))
    num_hits = 0
    for answer in run_in_turn(tight, rows, salt):
        assert answer.num_cached <= known.expected(answer.prompt)
        known.add(answer)
        num_hits += answer.num_cached
    if pattern in ("shared-schema", "chat"):  # one text, and three short ones: they fit
        assert num_hits > 0
    else:
        assert num_hits < ample
    tight.wait_pool_whole()
    asyncio.run(run_at_once(tight, rows))
    tight.wait_pool_whole()
    assert tight.state()["kv"]["blocks_cached"] > 0


async def run_at_once(daemon: Daemon, rows: tuple[WorkloadRow, ...]) -> None:
    prompts = Prompts(rows)
    bodies = [body_of(prompts.prompt(index), row.output_tokens) for index, row in enumerate(rows)]
    async with httpx.AsyncClient(base_url=daemon.base_url, timeout=LIMIT_S) as client:
        replies = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
    for row, body, reply in zip(rows, bodies, replies, strict=True):
        assert len(answer_of(body["prompt"], reply).token_ids) == row.output_tokens


# -- usage and metrics -------------------------------------------------------------------------------------------------


def own_prompt(number: int, num_tokens: int) -> list[int]:
    """Tokens that no other test sends."""
    return drawn_tokens([(number, num_tokens)], VOCABULARY, seed=77)


def usages_of(daemon: Daemon, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """What the whole answer says, and what the usage chunk of a stream says."""
    url = f"{daemon.base_url}{path}"
    whole = httpx.post(url, json=body, timeout=LIMIT_S)
    streamed = httpx.post(
        url, json={**body, "stream": True, "stream_options": {"include_usage": True}}, timeout=LIMIT_S
    )
    events = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: {")]
    return [whole.json()["usage"], json.loads(events[-1])["usage"]]


def test_usage_of_both_calls_whole_and_streamed(emulated: Daemon) -> None:
    prompt = own_prompt(1, 100)
    assert ask(emulated, prompt).num_cached == 0
    for usage in usages_of(emulated, "/v1/completions", body_of(prompt, 4)):
        assert (usage["prompt_tokens"], usage["prompt_tokens_details"]) == (100, {"cached_tokens": 96})
    chat = {
        "model": "demo",
        "messages": [{"role": "system", "content": TEXT}, {"role": "user", "content": "Who starts the workers?"}],
        "max_tokens": 8,
        "seed": 1,
    }
    first, again = usages_of(emulated, "/v1/chat/completions", chat)
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    num_all_but_last = first["prompt_tokens"] - 1
    assert again["prompt_tokens_details"] == {"cached_tokens": num_all_but_last - num_all_but_last % BLOCK_SIZE}


def test_the_next_turn_of_a_chat_finds_the_last_one(emulated: Daemon) -> None:
    messages = [{"role": "user", "content": TEXT}]
    body = {"model": "demo", "messages": messages, "max_tokens": 30, "seed": 5, "ignore_eos": True}
    url = f"{emulated.base_url}/v1/chat/completions"
    first = httpx.post(url, json=body, timeout=LIMIT_S).json()
    messages += [first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    second = httpx.post(url, json=body, timeout=LIMIT_S).json()
    num_prompt_tokens = first["usage"]["prompt_tokens"]
    # The answer is tokenized anew and need not give the tokens that were drawn; the prompt before it does.
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= num_prompt_tokens - BLOCK_SIZE


@pytest.mark.parametrize(("num_tokens", "num_cached"), [(15, 0), (16, 0), (17, 16), (64, 48), (65, 64), (80, 64)])
def test_a_full_hit_computes_the_last_token(emulated: Daemon, num_tokens: int, num_cached: int) -> None:
    prompt = own_prompt(100 + num_tokens, num_tokens)
    first = ask(emulated, prompt)
    again = ask(emulated, prompt)
    assert (first.num_cached, again.num_cached) == (0, num_cached)
    assert again.token_ids == first.token_ids


def test_a_salt_isolates_tenants(emulated: Daemon) -> None:
    prompt = own_prompt(2, 100)
    for salt in (None, "alice", "bob"):
        assert ask(emulated, prompt, cache_salt=salt).num_cached == 0
    for salt in (None, "alice", "bob"):
        assert ask(emulated, prompt, cache_salt=salt).num_cached == 96


def test_a_scored_prompt_is_computed_whole(emulated: Daemon) -> None:
    prompt = own_prompt(3, 100)
    ask(emulated, prompt)
    before = hits_and_queries(emulated)
    for _ in range(2):
        body = body_of(prompt, 4, echo=True, logprobs=1)
        reply = httpx.post(f"{emulated.base_url}/v1/completions", json=body, timeout=LIMIT_S).json()
        assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        scores = reply["choices"][0]["logprobs"]["token_logprobs"]
        assert len(scores) == 104 and all(score is not None for score in scores[1:])
    assert hits_and_queries(emulated) == before
    assert ask(emulated, prompt, logprobs=1).num_cached == 96, "logprobs of the answer alone need no scores"


def test_every_choice_finds_the_prompt_and_usage_counts_it_once(emulated: Daemon) -> None:
    prompts = [own_prompt(4, 100), own_prompt(5, 50)]
    ask(emulated, prompts[0])
    before = hits_and_queries(emulated)
    body = {**body_of([], 4), "prompt": prompts, "n": 3, "temperature": 1.0}
    reply = httpx.post(f"{emulated.base_url}/v1/completions", json=body, timeout=LIMIT_S).json()
    assert len(reply["choices"]) == 6
    hits, queries = hits_and_queries(emulated)
    assert reply["usage"]["prompt_tokens"] == 150
    # Choices of one new prompt are looked up at the same time, before any of them has written a block.
    assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 96}
    assert queries - before[1] == 3 * 150, "each choice is looked up"
    assert (hits - before[0]) % BLOCK_SIZE == 0 and hits - before[0] >= 3 * 96


PREFIX_METRICS = ("colocate_prefix_cache", "vllm:prefix_cache")


def metrics_of(daemon: Daemon) -> dict[str, float]:
    lines = httpx.get(f"{daemon.base_url}/metrics", timeout=LIMIT_S).text.splitlines()
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith(PREFIX_METRICS)}


def test_metrics_are_the_sums_over_requests() -> None:
    with start_daemon("--metrics-compat", "vllm") as daemon:
        answers = [ask(daemon, own_prompt(number % 3, 40 + 30 * number)) for number in range(9)]
        num_hits = sum(answer.num_cached for answer in answers)
        num_queries = sum(len(answer.prompt) for answer in answers)
        assert num_hits > 0
        for prefix in PREFIX_METRICS:
            expected = {f"{prefix}_hits_total": num_hits, f"{prefix}_queries_total": num_queries}
            eventually(lambda expected=expected: expected.items() <= metrics_of(daemon).items(), what=f"{expected}")


# -- preemption --------------------------------------------------------------------------------------------------------


def readmissions(log: Path) -> list[tuple[int, int]]:
    """First position and number of tokens that a prefill computed, of each admission but a request's first."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for row in prefilled_rows(log):
        start, num_tokens = found.get((row.request_id, row.incarnation), (row.start, 0))
        found[row.request_id, row.incarnation] = (start, num_tokens + len(row.token_ids))
    firsts: set[int] = set()
    later = []
    for (request_id, _), work in found.items():
        if request_id in firsts:
            later.append(work)
        firsts.add(request_id)
    return later


@pytest.mark.timeout(300)
def test_preempted_requests_come_back_by_their_cached_prefix(tmp_path: Path) -> None:
    """A document of 20 blocks, eight questions of 2, answers of 10: 116 blocks against a pool of 64."""
    num_tokens, document = 150, own_prompt(0, 320)
    prompts = [[*document, *own_prompt(1 + number, 32)] for number in range(8)]
    flags = ("--kv-memory", "3MiB", "--max-model-len", "512", "--deterministic", "--event-log", str(tmp_path / "log"))

    async def crowd(daemon: Daemon) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=daemon.base_url, timeout=LIMIT_S) as client:
            return await asyncio.gather(
                *(client.post("/v1/completions", json=body_of(prompt, num_tokens)) for prompt in prompts)
            )

    with start_daemon(*CPU, *flags) as daemon:
        alone = [ask(daemon, prompt, num_tokens, cache_salt=f"alone {prompt[-1]}") for prompt in prompts]
        assert daemon.state()["preemptions"] == 0
        ask(daemon, [*document, 300])
        before = hits_and_queries(daemon)
        replies = asyncio.run(crowd(daemon))
        crowded = [answer_of(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
        assert [answer.token_ids for answer in crowded] == [answer.token_ids for answer in alone]
        assert [answer.num_cached for answer in crowded] == [320] * 8
        num_preemptions = daemon.state()["preemptions"]
        assert num_preemptions > 0
        hits, queries = hits_and_queries(daemon)
        assert (hits - before[0], queries - before[1]) == (8 * 320, 8 * 352), "finding oneself again is no hit"
    (log,) = (tmp_path / "log").iterdir()
    again = readmissions(log)
    assert len(again) == num_preemptions
    assert all(start >= 320 and recomputed < 352 for start, recomputed in again), "the others hold the document"
    assert replay(log, check=True).difference is None
