"""Text of an exact number of tokens, for the demo model's tokenizer, for three trained here, and for odd counters."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from colocate.bench.exact_text import (
    FAMILIES,
    ExactText,
    find_exact_text,
    settle,
    settle_async,
    tokenizer_families,
    tour,
    vocabulary_words,
)
from colocate.errors import ConfigError
from colocate.workload.prompts import Piece, lay_out
from colocate.workload.rows import WorkloadRow

TEXT = [line for path in sorted(Path("docs").glob("*.md")) for line in path.read_text().splitlines()]
RUNES = [
    " ".join(
        random.Random(line).choices(["раз", "два", "трижды", "кот", "дом", "год", "мир", "день", "река", "слово"], k=9)
    )
    for line in range(60)
]


def token_count(tokenizer: Any) -> Callable[[str], int]:
    """Counts as a server does, with the special tokens that the tokenizer puts around a text."""
    return lambda text: len(tokenizer.encode(text).ids)


def demo() -> Tokenizer:
    return Tokenizer.from_file("colocate/model/demo/tokenizer.json")


def byte_bpe() -> Tokenizer:
    """No special tokens; merges as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet))
    return tokenizer


def word_piece() -> Tokenizer:
    """A token at each end, as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=900, special_tokens=special))
    ends = [(name, tokenizer.token_to_id(name)) for name in special[1:]]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def unigram() -> Tokenizer:
    """A token before, a space put before the text, and no piece over two words, as T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>"]
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT, trainer)
    start = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=start)
    return tokenizer


def foreign() -> Tokenizer:
    """Knows no Latin letter: an English word is one token as well, but always the same."""
    tokenizer = Tokenizer(models.BPE(unk_token="?", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(RUNES, trainers.BpeTrainer(vocab_size=200, special_tokens=["?"]))
    return tokenizer


@lru_cache
def made(build: Callable[[], Tokenizer]) -> tuple[Tokenizer, ExactText]:
    tokenizer = build()
    return tokenizer, settle(find_exact_text(tokenizer_families(tokenizer), seed=3), token_count(tokenizer))


TOKENIZERS = [demo, byte_bpe, word_piece, unigram]
PIECES = st.lists(st.integers(1, 60), min_size=1, max_size=5)


@pytest.mark.parametrize("build", TOKENIZERS)
@given(lengths=PIECES, own=st.integers(8, 300))
def test_a_prompt_has_exactly_the_tokens_of_its_pieces(
    build: Callable[[], Tokenizer], lengths: list[int], own: int
) -> None:
    tokenizer, texts = made(build)
    pieces = [*enumerate(lengths, 1), (99, own)]
    draft = texts.draft(pieces)
    assert texts.keeps_boundaries
    assert len(tokenizer.encode(draft).ids) == sum(lengths) + own
    assert settle(texts.exact(pieces), token_count(tokenizer)) == draft


@pytest.mark.parametrize("build", TOKENIZERS)
@given(shared=PIECES, own=st.tuples(st.integers(20, 60), st.integers(20, 60)))
def test_equal_leading_pieces_are_equal_leading_tokens_and_no_more(
    build: Callable[[], Tokenizer], shared: list[int], own: tuple[int, int]
) -> None:
    tokenizer, texts = made(build)
    leading = list(enumerate(shared, 1))
    one, other = (
        tokenizer.encode(texts.draft([*leading, (100 + place, tokens)])).ids for place, tokens in enumerate(own)
    )
    common = next(place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    # The special tokens before come on top; of two different pieces a few units may be alike by chance.
    assert sum(shared) <= common < sum(shared) + texts.added + 12


@pytest.mark.parametrize("build", TOKENIZERS)
def test_turns_of_a_conversation_begin_with_those_before(build: Callable[[], Tokenizer]) -> None:
    tokenizer, texts = made(build)
    rows = [WorkloadRow(0.0, 50, 20, session="a"), WorkloadRow(1.0, 90, 9, session="a")]
    first, second = (tokenizer.encode(texts.draft(layout.pieces)).ids for layout in lay_out(rows))
    assert (len(first), len(second)) == (50, 90)
    kept = 50 - texts.added  # the first turn's end gave up what is added, and a token at the end is not a prefix
    assert second[:kept] == first[:kept]


def test_a_tokenizer_of_another_language_uses_its_own_words() -> None:
    tokenizer, texts = made(foreign)
    assert set(texts.units) <= set(vocabulary_words(tokenizer))
    ids = tokenizer.encode(texts.draft([(1, 321)])).ids
    assert len(ids) == 321
    assert len(set(ids)) >= 8


@pytest.mark.parametrize("added", [0, 3])
@pytest.mark.parametrize("characters", [9, 11, 23])
@given(lengths=PIECES)
def test_without_units_a_text_is_mended_at_its_end(characters: int, added: int, lengths: list[int]) -> None:
    def count(text: str) -> int:
        return added + -(-len(text) // characters)

    texts = settle(find_exact_text(seed=1), count)
    assert not texts.keeps_boundaries
    pieces = [*enumerate(lengths, 1), (99, 12)]
    text = settle(texts.exact(pieces), count)
    assert count(text) == sum(lengths) + 12
    assert texts.draft([*pieces, (100, 500)]).startswith(texts.draft(pieces))


def test_jumps_in_a_count_are_stepped_around() -> None:
    def count(text: str) -> int:
        return text.count(" ") * 3 + sum(text.count(letter) for letter in "qz")

    texts = settle(find_exact_text((FAMILIES[0],)), count)
    assert texts.tokens_per_unit == pytest.approx(3)
    for wanted in (3, 10, 11, 100, 101):
        assert count(settle(texts.exact([(1, wanted)]), count)) == wanted


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="counts 5 tokens in one word"):
        settle(find_exact_text(), lambda _: 5)
    by_threes = settle(find_exact_text((FAMILIES[0],)), lambda text: text.count(" ") * 3)
    with pytest.raises(ConfigError, match="exactly 10 tokens"):
        settle(by_threes.exact([(1, 10)]), lambda text: text.count(" ") * 3)
    tokenizer, texts = made(word_piece)
    assert texts.added == 2
    with pytest.raises(ConfigError, match="no more than the 2"):
        settle(texts.exact([(1, 2)]), token_count(tokenizer))


@given(st.integers(1, 12))
def test_a_tour_passes_every_pair_once(number: int) -> None:
    units = [chr(ord("a") + place) for place in range(number)]
    steps = tour(units)
    assert Counter(pairwise(steps)) == Counter({(one, other): 1 for one in units for other in units})
    assert len(steps) == number**2 + 1
    triples = tour(units, 3)
    found = Counter(zip(triples, triples[1:], triples[2:], strict=False))
    assert found == Counter({(one, two, three): 1 for one in units for two in units for three in units})


def test_three_that_merge_although_no_two_do_are_left_out() -> None:
    def count(text: str) -> int:
        return len(text) - text.count("ab") - 2 * text.count("com")

    texts = settle(find_exact_text((FAMILIES[1],)), count)
    assert texts.keeps_boundaries
    assert not set("ab") <= set(texts.units)
    assert not set("com") <= set(texts.units)


def test_units_that_merge_with_others_are_left_out() -> None:
    """A counter for which two neighbours, and one word by itself, are not what they seem."""

    def count(text: str) -> int:
        return 1 + text.count(" ") + text.count(" people") - text.count(" of the")

    texts = settle(find_exact_text((FAMILIES[0],)), count)
    assert texts.keeps_boundaries
    assert " people" not in texts.units
    assert not {" of", " the"} <= set(texts.units)


def test_a_family_that_fits_takes_few_questions_and_a_server_may_be_asked() -> None:
    tokenizer, _ = made(demo)
    asked: list[str] = []

    async def count(text: str) -> int:
        asked.append(text)
        return len(tokenizer.encode(text).ids)

    found = asyncio.run(settle_async(find_exact_text(seed=3), count))
    assert found == settle(find_exact_text(seed=3), token_count(tokenizer))
    assert found.added == 1
    assert len(asked) <= len(FAMILIES[0]) + 10


def test_pieces_are_the_same_in_every_run() -> None:
    pieces: list[Piece] = [(4, 5), (9, 5)]
    _, texts = made(demo)
    assert texts.draft(pieces) == texts.draft(list(pieces))
    other = ExactText(texts.units, texts.added, seed=4)
    assert other.draft(pieces) != texts.draft(pieces)
