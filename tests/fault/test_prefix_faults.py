"""The prefix tree when processes die: a worker's death forgets nothing and spoils nothing, the engine's forgets all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon import Daemon, eventually, start_daemon
from tests.limits import START_LIMIT_S
from tests.prefix_clients import BLOCK_SIZE, TEXT, Answer, ask, hits_and_queries, tokenized
from tests.streams import Stream, finished, wait_mid_stream

CPU = (
    "--device",
    "cpu",
    "--kv-memory",
    "32MiB",
    "--max-num-batched-tokens",
    "128",
    "--deterministic",
    "--start-timeout-s",
    str(START_LIMIT_S),
)
FLAGS = (*CPU, "--max-restarts", "20")
NUM_TOKENS = 150


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_daemon(*FLAGS) as running:
        yield running


def full_blocks(num_tokens: int) -> int:
    return num_tokens - num_tokens % BLOCK_SIZE


def next_prompt(daemon: Daemon, answer: Answer) -> list[int]:
    return [*answer.tokens, *tokenized(daemon, "And what happens to the blocks?")]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_what_was_said_before_a_worker_died_is_found_and_right(daemon: Daemon, role: str) -> None:
    """The death hits a stream that reads blocks of the tree, and writes blocks that enter it."""
    salt = f"killed {role}"
    prompt = tokenized(daemon, TEXT)
    first = ask(daemon, prompt, 40, temperature=0.8, cache_salt=salt)
    stream = Stream(
        daemon, 1, prompt=next_prompt(daemon, first), max_tokens=NUM_TOKENS, temperature=0.8, cache_salt=salt
    )
    wait_mid_stream([stream], 20)
    assert not stream.is_done, "too late: nothing was in flight"
    daemon.wait_replaced(role, daemon.kill(role))
    token_ids = finished(stream)
    second = Answer(next_prompt(daemon, first), token_ids, 0, [])
    third = ask(daemon, next_prompt(daemon, second), temperature=0.8, cache_salt=salt)
    assert third.num_cached == full_blocks(len(second.tokens) - 1), "what was written before the death, and after"

    untouched = f"not {salt}"  # computed from nothing, by workers that live
    assert ask(daemon, second.prompt, NUM_TOKENS, temperature=0.8, cache_salt=untouched).token_ids == token_ids
    alone = ask(daemon, third.prompt, temperature=0.8, cache_salt=f"{untouched}, alone")
    assert (alone.num_cached, alone.token_ids) == (0, third.token_ids)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_prompt_whose_prefill_was_interrupted_is_found_as_far_as_it_was_reported(daemon: Daemon, role: str) -> None:
    """Seven chunks of a long prompt, and a death while they run: whichever were done, the tokens are the same."""
    prompt = tokenized(daemon, TEXT * 12)
    assert len(prompt) > 5 * 128, "several forwards"
    salt = f"{role} in mid prompt"
    stream = Stream(daemon, 1, prompt=prompt, max_tokens=8, temperature=0.8, cache_salt=salt)
    eventually(lambda: daemon.state()["queue"]["prefill_running"] or stream.is_done, what="it is being computed")
    daemon.wait_replaced(role, daemon.kill(role))
    token_ids = finished(stream)
    again = ask(daemon, prompt, 8, temperature=0.8, cache_salt=salt)
    assert again.num_cached == full_blocks(len(prompt) - 1)
    alone = ask(daemon, prompt, 8, temperature=0.8, cache_salt=f"{salt}, alone")
    assert alone.num_cached == 0
    assert token_ids == again.token_ids == alone.token_ids


@pytest.mark.timeout(240)
def test_a_new_engine_starts_without_prefixes_and_says_the_same(daemon: Daemon) -> None:
    salt = "killed engine"
    prompt = tokenized(daemon, TEXT)
    first = ask(daemon, prompt, 40, temperature=0.8, cache_salt=salt)
    assert ask(daemon, prompt, 40, temperature=0.8, cache_salt=salt).num_cached == full_blocks(len(prompt) - 1)
    stream = Stream(
        daemon, 1, prompt=next_prompt(daemon, first), max_tokens=NUM_TOKENS, temperature=0.8, cache_salt=salt
    )
    wait_mid_stream([stream], 20)
    daemon.wait_replaced("engine", daemon.kill("engine"))
    token_ids = finished(stream)
    kv = daemon.state()["kv"]
    num_known = len(next_prompt(daemon, first)) + NUM_TOKENS - 1
    assert kv["blocks_cached"] <= num_known // BLOCK_SIZE, "nothing but what was computed since"
    assert hits_and_queries(daemon)[0] == 0
    again = ask(daemon, prompt, 40, temperature=0.8, cache_salt=f"{salt}, other")
    assert (again.num_cached, again.token_ids) == (0, first.token_ids)
    known = Answer(next_prompt(daemon, first), token_ids, 0, [])
    third = ask(daemon, next_prompt(daemon, known), temperature=0.8, cache_salt=salt)
    assert third.num_cached == full_blocks(len(known.tokens) - 1), "the resubmitted request filled the tree again"
    alone = ask(daemon, third.prompt, temperature=0.8, cache_salt=f"{salt}, alone")
    assert (alone.num_cached, alone.token_ids) == (0, third.token_ids)
