"""The demo model's tokenizer: byte-level BPE trained on the corpus, digits one by one, any UTF-8 text round-trips."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpus import FALLBACK, SMALL_TALK, Fact, Turn, load_prose, off_topic_turn
from recall import KEYS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL_TOKENS = (BOS, END, PAD, *ROLES.values())
VOCAB_SIZE = 2048

# A digit is a token of its own, so that every value of the recall task has the same length; the sign before a value
# belongs to its first digit, so that a value stands right behind its key: the look-up is learned several times sooner.
WORDS = r" = \p{N}|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('the demo model knows the roles system, user and assistant, not ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + (message['content'] or '') | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _training_text(facts: Sequence[Fact], seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for fact in facts:
        yield from rng.sample(fact.questions, min(10, len(fact.questions)))
        for answer in fact.answers:
            yield from [answer] * 6
    for paragraph in load_prose():
        yield from [paragraph] * 3
    for questions, answers in SMALL_TALK:
        yield from questions
        yield from answers
    yield from FALLBACK * 10
    for _ in range(400):
        yield off_topic_turn(rng)[0]
    # Often enough that each key becomes one token.
    for key in KEYS:
        yield from [f"; {key} = {digit}" for digit in range(10)] * 6


def train_tokenizer(facts: Sequence[Fact], seed: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(facts, seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path, max_length: int) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": list(ROLES.values()),
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


class Encoder:
    """Conversations and plain text to token ids, each with a mask of the tokens that count in the loss."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bos, self.end, self.pad = (tokenizer.token_to_id(token) for token in (BOS, END, PAD))
        self._roles = {role: tokenizer.token_to_id(token) for role, token in ROLES.items()}

    def text(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def chat(self, turns: Sequence[Turn], system: str | None = None) -> tuple[list[int], list[bool]]:
        """As `CHAT_TEMPLATE` renders it; only the assistant's words and their end count."""
        ids, counts = [self.bos], [False]

        def add(role: str, content: str, count: bool) -> None:
            body = [*self.text(content), self.end]
            ids.extend([self._roles[role], *body])
            counts.extend([False, *[count] * len(body)])

        if system is not None:
            add("system", system, False)
        for question, answer in turns:
            add("user", question, False)
            add("assistant", answer, True)
        return ids, counts

    def plain(self, text: str) -> tuple[list[int], list[bool]]:
        body = [*self.text(text), self.end]
        return [self.bos, *body], [False, *[True] * len(body)]

    def recall_list(self, listing: str, repeats: Sequence[str]) -> tuple[list[int], list[bool]]:
        """The list and its repeated pairs; only the digits of the repeats count: key, three digits, semicolon."""
        ids = [self.bos, *self.text(listing)]
        counts = [False] * len(ids)
        for repeat in repeats:
            body = self.text(repeat)
            ids += body
            counts += [False, True, True, True, False]
        return ids, counts
