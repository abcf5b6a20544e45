"""Memory with the prefix tree: who is admitted when blocks are scarce, what that costs, and what counts as reuse."""

from __future__ import annotations

import pytest

from colocate.core.memory import Memory
from colocate.core.prefix import PrefixMatch, PrefixTree
from colocate.core.request import Request
from colocate.messages.sampling import SamplingParams

SIZE = 4
DOCUMENT = list(range(32))  # 8 blocks


class World:
    """Requests that are admitted, computed and let go by hand."""

    def __init__(self, num_blocks: int) -> None:
        self.memory = Memory(num_blocks, SIZE, prefix_caching=True)
        self.num_requests = 0

    def request(self, prompt: list[int], **params: object) -> Request:
        self.num_requests += 1
        request = Request(self.num_requests, prompt, SamplingParams(max_tokens=8, **params), 0, [])  # type: ignore[arg-type]
        self.memory.expect(request)
        return request

    def admit(self, request: Request, num_reserved: int = 0) -> bool:
        return self.memory.admit(request, num_reserved, 1)

    def compute(self, request: Request) -> None:
        request.num_computed = request.num_prefill_tokens
        self.memory.remember(request, 1)

    def end(self, request: Request) -> None:
        self.memory.remember(request, 1)
        self.memory.release(request, 1)
        self.memory.tree.check()

    def run(self, prompt: list[int]) -> None:
        request = self.request(prompt)
        assert self.admit(request)
        self.compute(request)
        self.end(request)

    @property
    def counts(self) -> tuple[int, int]:
        return self.memory.tree.num_queries, self.memory.tree.num_hits


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each walk of the tree by an admission."""
    walks: list[int] = []
    acquire = PrefixTree.acquire

    def counting(tree: PrefixTree, salt: str, tokens: list[int], max_tokens: int) -> PrefixMatch:
        walks.append(len(tokens))
        return acquire(tree, salt, tokens, max_tokens)

    monkeypatch.setattr(PrefixTree, "acquire", counting)
    return walks


def test_questions_queued_before_their_document_was_computed_share_its_blocks() -> None:
    world = World(num_blocks=11)
    first, second = world.request([*DOCUMENT, 90]), world.request([*DOCUMENT, 91])
    assert world.admit(first)  # 9 blocks
    assert not world.admit(second), "nothing of the document is proven to be written"
    world.compute(first)
    assert world.admit(second), "one block of its own is all it needs"
    assert second.block_table[:8] == first.block_table[:8]
    world.compute(second)
    world.end(first)
    world.end(second)
    assert world.memory.num_available == 11


def test_waiting_for_blocks_walks_the_tree_once(lookups: list[int]) -> None:
    world = World(num_blocks=12)
    world.run(DOCUMENT)
    holder = world.request(list(range(100, 116)))
    assert world.admit(holder)  # 4 blocks: 8 are cached, none is free
    waiting = world.request([*DOCUMENT, 90])
    del lookups[:]
    for _ in range(5):
        assert not world.admit(waiting), "its 8 cached blocks leave none for the ninth"
    assert len(lookups) == 1
    world.end(holder)
    assert world.admit(waiting)
    assert waiting.num_cached == 32


def test_an_insertion_or_an_admission_is_looked_at_again(lookups: list[int]) -> None:
    world = World(num_blocks=10)
    first, second, third = (world.request([*DOCUMENT, 90 + number]) for number in range(3))
    assert world.admit(first)
    assert not world.admit(second) and not world.admit(second)
    del lookups[:]
    world.compute(first)
    assert world.admit(second)
    assert not world.admit(third) and not world.admit(third)
    assert len(lookups) == 2


def test_a_prompt_counts_once_however_often_it_is_tried_or_preempted() -> None:
    world = World(num_blocks=12)
    world.run(DOCUMENT)
    holder = world.request(list(range(100, 116)))
    assert world.admit(holder)
    before = world.counts
    request = world.request([*DOCUMENT, 90])
    assert not world.admit(request)
    assert world.counts == before
    world.end(holder)
    assert world.admit(request)
    assert world.counts == (before[0] + 33, before[1] + 32)
    world.compute(request)
    request.output_token_ids += [1, 2, 3]
    world.end(request)
    assert world.admit(request)
    assert request.num_cached == 32 and request.first_cached == 32
    assert world.counts == (before[0] + 33, before[1] + 32), "it found itself"


def test_a_scored_prompt_is_neither_looked_up_nor_counted() -> None:
    world = World(num_blocks=30)
    world.run(DOCUMENT)
    before = world.counts
    request = world.request(DOCUMENT, prompt_logprobs=0)
    assert world.admit(request)
    assert request.num_cached == 0
    assert world.counts == before


def test_steps_under_way_when_a_client_left_leave_nothing_behind() -> None:
    world = World(num_blocks=30)
    request = world.request(DOCUMENT)
    assert world.admit(request)
    world.compute(request)
    request.block_table += world.memory.allocate(1)
    request.output_token_ids += [1, 2, 3]
    request.num_computed = 36  # the fourth was drawn after the abort and is not known
    world.end(request)
    assert world.memory.tree.num_nodes == 8, "a block whose tokens are not all known is never found again"
    assert world.memory.pool.num_free == 30 - 8
