"""How much of a workload's prompts has been there before: what a prefix cache without bounds would find."""

from __future__ import annotations

from collections.abc import Sequence

from colocate.workload.prompts import lay_out
from colocate.workload.rows import WorkloadRow


class _Node:
    """The texts that follow one piece, by the number of their first piece."""

    __slots__ = ("children", "num_tokens")

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens  # the longest seen of this piece
        self.children: dict[int, _Node] = {}


def shared_tokens(rows: Sequence[WorkloadRow]) -> list[int]:
    """Of each prompt the leading tokens that an earlier prompt, or the answer to it, began with as well.

    Earlier by arrival: whether that answer had come by then is not asked.
    """
    root = _Node(0)
    found: list[int] = []
    for row, layout in zip(rows, lay_out(rows), strict=True):
        node, num_shared, is_known = root, 0, True
        for number, num_tokens in layout.pieces:
            child = node.children.get(number)
            if child is None:
                child = node.children[number] = _Node(0)
            if is_known:
                num_shared += min(num_tokens, child.num_tokens)
                is_known = child.num_tokens >= num_tokens
            child.num_tokens = max(child.num_tokens, num_tokens)
            node = child
        if row.session:
            node.children[layout.answer] = _Node(row.output_tokens)
        found.append(num_shared)
    return found
