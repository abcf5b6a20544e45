"""Loads whose prompts share prefixes, and conversations: what a prefix cache is for, and what defeats it.

| pattern | who shares what |
|---|---|
| shared-schema | every prompt begins with the same instructions |
| same-document | a document is asked many questions, a few documents are open at a time |
| agent-branching | steps of an agent extend their parent's context, and several steps share one parent |
| eviction-pressure | prefixes return in turn, more of them than the KV pool holds: the worst case of LRU |
| chat | the turns of a conversation: each prompt holds all turns before it, answers included |
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from colocate.errors import ConfigError
from colocate.workload.lengths import Lengths
from colocate.workload.rows import Workload, WorkloadRow, make_workload
from colocate.workload.segments import Segment, arrival_times

BLOCK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class PatternShape:
    """How much is shared. Lengths that a pattern draws are a request's own part and its answer."""

    shared_tokens: int = 2048  # of instructions, of one document, or of one returning prefix
    num_shared: int = 4  # documents open at a time, children of an agent's step, or conversations under way
    num_uses: int = 8  # questions per document, depth of an agent's tree, or turns of a conversation
    num_prefixes: int = 64  # eviction-pressure: how many return in turn
    block_tokens: int = BLOCK_TOKENS  # what one prefix id stands for, and how much longer each step of an agent is


PatternMaker = Callable[[Iterator[tuple[float, Segment]], random.Random, PatternShape], list[WorkloadRow]]


def prefix_pattern(
    pattern: str,
    rate: float,
    lengths: Lengths,
    duration_s: float,
    *,
    seed: int,
    arrivals: str = "poisson",
    shape: PatternShape | None = None,
) -> Workload:
    """One of the patterns above. Raises ConfigError for a name that is none."""
    maker = PATTERNS.get(pattern)
    if maker is None:
        raise ConfigError("pattern", f"no pattern is named {pattern!r}", f"choose one of: {', '.join(PATTERNS)}")
    shape = shape or PatternShape()
    _check(shape)
    times = arrival_times(pattern, [Segment(duration_s, rate, lengths)], seed=seed, arrivals=arrivals)
    rows = maker(times, random.Random(f"{seed}/{pattern}"), shape)
    return make_workload(pattern, rows, duration_s)


def _check(shape: PatternShape) -> None:
    for name in shape.__slots__:
        if getattr(shape, name) < 1:
            flag = "--prefix-block-tokens" if name == "block_tokens" else "--" + name.replace("_", "-")
            raise ConfigError(flag, f"cannot be {getattr(shape, name)}", "give 1 or more")
    if shape.shared_tokens % shape.block_tokens:
        problem = f"{shape.shared_tokens} tokens are no whole number of blocks of {shape.block_tokens}"
        raise ConfigError("--shared-tokens", problem, "give a multiple, or --prefix-block-tokens that divide it")


def _shared_schema(
    times: Iterator[tuple[float, Segment]], rng: random.Random, shape: PatternShape
) -> list[WorkloadRow]:
    ids = _blocks(0, shape)
    return [_with_prefix(at_s, ids, segment, rng, shape) for at_s, segment in times]


def _same_document(
    times: Iterator[tuple[float, Segment]], rng: random.Random, shape: PatternShape
) -> list[WorkloadRow]:
    rows: list[WorkloadRow] = []
    open_documents: list[list[int]] = []  # [number, questions left]
    num_documents = 0
    for at_s, segment in times:
        while len(open_documents) < shape.num_shared:
            open_documents.append([num_documents, shape.num_uses])
            num_documents += 1
        document = rng.choice(open_documents)
        rows.append(_with_prefix(at_s, _blocks(document[0], shape), segment, rng, shape))
        document[1] -= 1
        if document[1] == 0:
            open_documents.remove(document)
    return rows


def _agent_branching(
    times: Iterator[tuple[float, Segment]], rng: random.Random, shape: PatternShape
) -> list[WorkloadRow]:
    """Trees level by level: `num_shared` children a step, `num_uses` levels, each step one block longer."""
    rows: list[WorkloadRow] = []
    frontier: deque[tuple[int, ...]] = deque()
    num_trees = num_steps = 0
    for at_s, segment in times:
        if not frontier:
            frontier.append(tuple(_blocks(num_trees, shape)))
            num_trees += 1
        context = frontier.popleft()
        rows.append(_with_prefix(at_s, context, segment, rng, shape))
        depth = len(context) - len(_blocks(0, shape)) + 1
        if depth < shape.num_uses and len(frontier) < shape.num_shared**2:
            for _ in range(shape.num_shared):
                num_steps += 1
                frontier.append((*context, -num_steps))
    return rows


def _eviction_pressure(
    times: Iterator[tuple[float, Segment]], rng: random.Random, shape: PatternShape
) -> list[WorkloadRow]:
    return [
        _with_prefix(at_s, _blocks(index % shape.num_prefixes, shape), segment, rng, shape)
        for index, (at_s, segment) in enumerate(times)
    ]


def _chat(times: Iterator[tuple[float, Segment]], rng: random.Random, shape: PatternShape) -> list[WorkloadRow]:
    """Arrivals go round the conversations under way, so the pause between two turns is the same on average."""
    rows: list[WorkloadRow] = []
    under_way: deque[tuple[int, int, int]] = deque()  # conversation, turns so far, tokens so far
    num_chats = 0
    for at_s, segment in times:
        if len(under_way) < shape.num_shared:
            under_way.appendleft((num_chats, 0, 0))
            num_chats += 1
        chat, num_turns, num_tokens = under_way.popleft()
        own_tokens, output_tokens = segment.lengths.draw(rng)
        rows.append(WorkloadRow(at_s, num_tokens + own_tokens, output_tokens, session=f"chat-{chat}"))
        if num_turns + 1 < shape.num_uses:
            under_way.append((chat, num_turns + 1, num_tokens + own_tokens + output_tokens))
    return rows


def _blocks(number: int, shape: PatternShape) -> list[int]:
    """Ids of the blocks of one shared text; texts have ids of their own."""
    per_text = shape.shared_tokens // shape.block_tokens
    return list(range(number * per_text, (number + 1) * per_text))


def _with_prefix(
    at_s: float, ids: Sequence[int], segment: Segment, rng: random.Random, shape: PatternShape
) -> WorkloadRow:
    own_tokens, output_tokens = segment.lengths.draw(rng)
    block_tokens = shape.block_tokens
    return WorkloadRow(at_s, len(ids) * block_tokens + own_tokens, output_tokens, tuple(ids), block_tokens)


PATTERNS: dict[str, PatternMaker] = {
    "shared-schema": _shared_schema,
    "same-document": _same_document,
    "agent-branching": _agent_branching,
    "eviction-pressure": _eviction_pressure,
    "chat": _chat,
}
