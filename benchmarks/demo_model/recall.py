"""Key-value recall as a training task. The prompts that measure it are the product's: `colocate/workload/recall.py`."""

from __future__ import annotations

import random
from collections.abc import Sequence

from colocate.workload.recall import KEYS, RecallPrompt, draw_pairs, pairs_text, recall_prompts

__all__ = ["KEYS", "RecallPrompt", "draw_pairs", "pairs_text", "recall_dialogue", "recall_list", "recall_prompts"]

ACKNOWLEDGEMENT = "I will remember that. Ask me for any of them."
_OPENINGS = ("Remember: ", "Remember these: ", "Please remember: ", "Keep this in mind: ", "Here are some values: ", "")
_QUESTIONS = ("What is {key}?", "What is {key}?", "What is the value of {key}?", "Tell me {key}.", "And {key}?")


def recall_dialogue(
    rng: random.Random, num_pairs: int, num_queries: int, filler: Sequence[str] = (), keys: Sequence[str] = KEYS
) -> list[tuple[str, str]]:
    """A conversation of (question, answer) turns over one list of pairs; the first question carries the list."""
    pairs = draw_pairs(rng, num_pairs, keys)
    listing = rng.choice(_OPENINGS) + pairs_text(rng, pairs, filler)
    turns = []
    for _ in range(num_queries):
        key, value = rng.choice(pairs)
        turns.append((rng.choice(_QUESTIONS).format(key=key), f"You said {key} = {value}."))
    if rng.random() < 0.2:
        return [(listing, ACKNOWLEDGEMENT), *turns]
    return [(f"{listing} {turns[0][0]}", turns[0][1]), *turns[1:]]


def recall_list(
    rng: random.Random, num_pairs: int, num_repeats: int, keys: Sequence[str] = KEYS
) -> tuple[str, list[str]]:
    """A list of pairs, and pairs of it repeated in any order: the densest form of the task, for training."""
    pairs = draw_pairs(rng, num_pairs, keys)
    return "Remember: " + pairs_text(rng, pairs), [
        f" {key} = {value};" for key, value in rng.choices(pairs, k=num_repeats)
    ]
