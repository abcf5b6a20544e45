"""Text that is exactly so many tokens for a tokenizer that can only be asked to count.

A prompt is laid out in pieces (`workload.prompts`): equal pieces give equal text, and, where it can be had, equal
tokens. So text is made of units: short strings that are one token each, next to any other of them. A tour that goes
through every ordered pair of units once proves a whole set with one question. Tokenizers for which there are none get
words at their mean length, and each text is mended at its end until its count is right.

What asks is a generator that yields texts and is sent their counts, special tokens included: `settle` answers it from a
function, `settle_async` from a server.
"""

from __future__ import annotations

import random
import string
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

from colocate.errors import ConfigError
from colocate.workload.prompts import Piece

Result = TypeVar("Result")
Search: TypeAlias = Generator[str, int, Result]

_WORDS = (
    "the of and to in is was for on that by this with you it not or be are from at as your all have new more an we "
    "can us if my has but our one other do no time they he up may what which their out use any there see only so his "
    "when here who also now first people over into some could them than then its work made how long just way day men"
)
FAMILIES = (
    tuple(f" {word}" for word in _WORDS.split()),
    tuple(string.ascii_lowercase + string.digits),
    tuple(f" {letter}" for letter in string.ascii_lowercase),
)
# What a text is mended with: nearly any tokenizer takes one of these for one token more.
_FILLERS = (*string.ascii_lowercase, *string.digits, *".,;:!?-\n", " a", " I", " x", "ab", "qz", ". ", "the", " the")
_FEWEST_UNITS = 8
_MOST_UNITS = 32
_MOST_INDEPENDENT = 12
_STARTS_TRIED = 6
_PROOF_UNITS = (1, 7, 400)
_MEASURED_UNITS = 400
_CORRECTIONS = 8
_BACKTRACKS = 12
_PIECES_KEPT = 4096


@dataclass(frozen=True, slots=True)
class ExactText:
    """Makes texts for one tokenizer."""

    units: tuple[str, ...]
    added: int  # tokens of a text beyond its units: special ones, or a template's
    tokens_per_unit: float = 1.0
    seed: int = 0

    @property
    def keeps_boundaries(self) -> bool:
        """Whether every unit is one token, so that equal leading pieces are equal leading tokens."""
        return self.tokens_per_unit == 1.0

    def draft(self, pieces: Sequence[Piece]) -> str:
        """Text for these pieces, as many tokens as they say together, `added` included. Exact where boundaries are
        kept; the last piece then gives up what is added. At least one unit."""
        return "".join(self._drafted(pieces))

    def exact(self, pieces: Sequence[Piece]) -> Search[str]:
        """The same, counted and if need be mended at its end. Raises ConfigError where no such text is found."""
        wanted = sum(num_tokens for _, num_tokens in pieces)
        if wanted <= self.added:
            problem = f"{wanted} tokens are no more than the {self.added} that every prompt has"
            raise ConfigError("prompt", problem, "offer longer prompts")
        units = self._drafted(pieces)
        more = random.Random(f"{self.seed}/{pieces[-1]}/more")
        found = yield "".join(units)
        for _ in range(_CORRECTIONS):
            change = round((wanted - found) / self.tokens_per_unit)
            if change == 0:
                break
            units = (
                [*units, *more.choices(self.units, k=change)] if change > 0 else units[: max(1, len(units) + change)]
            )
            found = yield "".join(units)
        if found == wanted:
            return "".join(units)
        return (yield from _mended(units, found, wanted))

    def _drafted(self, pieces: Sequence[Piece]) -> list[str]:
        units: list[str] = []
        for number, num_tokens in pieces:
            units += _drawn(number, max(1, round(num_tokens / self.tokens_per_unit)), self.units, self.seed)
        # The first unit is always the same: tokenizers and templates treat a text's beginning apart.
        return [self.units[0], *units[1 : max(1, len(units) - round(self.added / self.tokens_per_unit))]]


@lru_cache(_PIECES_KEPT)
def _drawn(number: int, num_units: int, units: tuple[str, ...], seed: int) -> tuple[str, ...]:
    return tuple(random.Random(f"{seed}/{number}").choices(units, k=num_units))


def _mended(units: list[str], found: int, wanted: int) -> Search[str]:
    """Cut below what is wanted, then add fillers; where these jump over it, cut a little more and try again."""
    for _ in range(_BACKTRACKS):
        while found > wanted and len(units) > 1:
            units = units[:-1]
            found = yield "".join(units)
        text, tokens = "".join(units), found
        while tokens < wanted:
            for filler in _FILLERS:
                longer = yield text + filler
                if tokens < longer <= wanted:
                    text, tokens = text + filler, longer
                    break
            else:
                break
        if tokens == wanted:
            return text
        if len(units) == 1:
            break
        units = units[:-1]
        found = yield "".join(units)
    problem = f"no text was found that its tokenizer takes for exactly {wanted} tokens"
    raise ConfigError("prompt", problem, "use token ids, where the server takes them")


def find_exact_text(
    families: Sequence[Sequence[str]] = FAMILIES, seed: int = 0, most_units: int = _MOST_UNITS
) -> Search[ExactText]:
    """What texts for this tokenizer are made of: units of one family, else words at their mean length.

    About five questions where a family fits as it is; the longest has `most_units` squared tokens, or 400. Raises
    ConfigError where text does not count at all.
    """
    for family in families:
        made = yield from _from_family(family, seed, most_units)
        if made is not None:
            return made
    words = tuple(next(family for family in families if family))
    texts = ["".join(random.Random(seed).choices(words, k=number)) for number in (1, _MEASURED_UNITS)]
    one = yield texts[0]
    many = yield texts[1]
    per_unit = (many - one) / (_MEASURED_UNITS - 1)
    if per_unit <= 0:
        problem = f"counts {one} tokens in one word and {many} in {_MEASURED_UNITS}"
        raise ConfigError("tokenizer", problem, "name the model's folder with --tokenizer")
    # Never 1.0 itself, which says that boundaries are kept.
    return ExactText(words, max(0, round(one - per_unit)), per_unit if per_unit != 1.0 else 1.0 + 1e-9, seed)


def _from_family(family: Sequence[str], seed: int, most_units: int) -> Search[ExactText | None]:
    for start in family[:_STARTS_TRIED]:
        # Three of a unit against one of it: what is added cancels out.
        once = yield start
        thrice = yield start * 3
        if thrice - once == 2:
            break
    else:
        return None
    added = once - 1
    units = tuple([start, *(unit for unit in family if unit != start)][:most_units])
    toured = yield "".join(tour(units))
    if toured - added != len(units) ** 2 + 1:
        units = yield from _independent(start, family, added, most_units)
    if len(units) < _FEWEST_UNITS:
        return None
    rng = random.Random(seed)
    for number in _PROOF_UNITS:
        found = yield "".join([start, *rng.choices(units, k=number - 1)])
        if found - added != number:
            return None
    return ExactText(units, added, seed=seed)


def tour(units: Sequence[str], order: int = 2) -> list[str]:
    """Every ordered pair of them, or so many in a row, next to each other exactly once, those of one unit included: a
    de Bruijn sequence (from Lyndon words in order, Fredricksen and Maiorana 1978) with its first `order - 1` elements
    repeated at the end; their number to that power, plus `order - 1`."""
    steps: list[str] = []
    word = [-1]
    while word:
        word[-1] += 1
        if order % len(word) == 0:
            steps += (units[place] for place in word)
        word = [word[place % len(word)] for place in range(order)]
        while word and word[-1] == len(units) - 1:
            word.pop()
    return steps + steps[:1] * (order - 1)


def _independent(start: str, family: Sequence[str], added: int, most_units: int) -> Search[tuple[str, ...]]:
    """One by one: a unit stays if it is one token in every three of those that stay. Where pairs merge, a unigram
    tokenizer may merge three of which no two do."""
    kept = [start]
    for unit in family:
        if unit in kept:
            continue
        steps = tour([*kept, unit], 3)
        found = yield "".join(steps)
        if found - added == len(steps):
            kept.append(unit)
        if len(kept) == min(most_units, _MOST_INDEPENDENT):
            break
    return tuple(kept)


def vocabulary_words(tokenizer: Any, limit: int = 4 * _MOST_UNITS) -> tuple[str, ...]:
    """Words of a tokenizer's own vocabulary (of the `tokenizers` library), a space before each."""
    words: dict[str, None] = {}
    for token_id in range(tokenizer.get_vocab_size()):
        word = tokenizer.decode([token_id]).strip()
        if word.isalpha() and len(word) > 1:
            words[f" {word}"] = None
        if len(words) == limit:
            break
    return tuple(words)


def tokenizer_families(tokenizer: Any) -> tuple[tuple[str, ...], ...]:
    """The families to try where the tokenizer is at hand: its own words first. Words that it does not know may count
    as one token each, and all be the same one."""
    return (vocabulary_words(tokenizer), *FAMILIES)


def settle(search: Search[Result], count: Callable[[str], int]) -> Result:
    """Answer a search from a function. Raises what the search raises."""
    try:
        text = next(search)
        while True:
            text = search.send(count(text))
    except StopIteration as stopped:
        result: Result = stopped.value
        return result


async def settle_async(search: Search[Result], count: Callable[[str], Awaitable[int]]) -> Result:
    """The same, where each answer has to be waited for."""
    try:
        text = next(search)
        while True:
            text = search.send(await count(text))
    except StopIteration as stopped:
        result: Result = stopped.value
        return result
