"""Which tokens the prompts of a workload are made of: equal prefixes give equal tokens, everything else differs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from colocate.types import TokenId
from colocate.workload.rows import WorkloadRow

# A run of tokens: its number, unique within a workload, and how many tokens it has.
Piece: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """The pieces of one prompt in order, and the number of the answer that follows it."""

    pieces: tuple[Piece, ...]
    answer: int


def lay_out(rows: Sequence[WorkloadRow]) -> list[PromptLayout]:
    """The layout of every row. Pieces are numbered by first appearance, from 1."""
    numbers: dict[tuple[int, int], int] = {}  # (prefix id, its block length) -> number
    histories: dict[str, tuple[tuple[Piece, ...], int]] = {}
    next_number = 1
    layouts: list[PromptLayout] = []
    for row in rows:
        pieces: list[Piece] = []
        left = row.prompt_tokens
        known = histories.get(row.session) if row.session else None
        if known is not None:
            pieces += known[0]
            left -= known[1]
        for prefix_id in row.prefix:
            if left <= 0:
                break
            key = (prefix_id, row.block_tokens)
            number = numbers.get(key)
            if number is None:
                number = numbers[key] = next_number
                next_number += 1
            pieces.append((number, min(row.block_tokens, left)))
            left -= row.block_tokens
        if left > 0:
            pieces.append((next_number, left))
            next_number += 1
        layouts.append(PromptLayout(tuple(pieces), next_number))
        if row.session:
            history = (*pieces, (next_number, row.output_tokens))
            histories[row.session] = (history, row.prompt_tokens + row.output_tokens)
        next_number += 1
    return layouts


def plain_tokens(pieces: Sequence[Piece]) -> list[TokenId]:
    """Each piece as its own number repeated: the cheapest tokens that agree exactly where prefixes do."""
    tokens: list[TokenId] = []
    for number, num_tokens in pieces:
        tokens += [number] * num_tokens
    return tokens


def drawn_tokens(pieces: Sequence[Piece], vocabulary: range, seed: int = 0) -> list[TokenId]:
    """Each piece as a seeded draw from a vocabulary, for servers that must see legal tokens."""
    tokens: list[TokenId] = []
    for number, num_tokens in pieces:
        tokens += random.Random(f"{seed}/{number}").choices(vocabulary, k=num_tokens)
    return tokens
