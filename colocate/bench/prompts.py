"""Prompts of an exact token count: as token ids where the server takes them, else as text that is so many tokens.

Text is put together of units, short strings that are one token each wherever they stand. Which ones are, the target's
own tokenizer says: a local folder, the server's `/tokenize`, or the usage of a short answer. What a server or a chat
template adds of its own is measured once and subtracted. Every answer's `usage.prompt_tokens` is held against the plan.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import orjson

from colocate.bench.http import HttpError, ask, exchange
from colocate.bench.plan import BenchPlan
from colocate.bench.stream import StreamSink
from colocate.bench.target import PROBE_IDS, PROBE_TIMEOUT_S, PROBE_TOKENS, Target
from colocate.errors import ConfigError
from colocate.workload.prompts import Piece, PromptLayout, drawn_tokens

# Ids that are words in every tokenizer at hand: neither special tokens nor single bytes.
VOCABULARY = range(300, 2000)
_WORDS = (
    "the of and to in is was for on that by this with you it not or be are from at as your all have new more an we "
    "can us if my has but our one other do no time they he up may what which their out use any there see only so his "
    "when here who also now first people over into some could them than then its work made how long just way day men "
    "old back life year good man where state world each house water hand part under last right never great own place"
)
FAMILIES = (tuple(f" {word}" for word in _WORDS.split()), tuple(string.ascii_letters + string.digits))
_FEWEST_UNITS = 8
_PIECES_KEPT = 4096


class Prompts(Protocol):
    """Makes the prompt of a layout. `answers` are those that have come, by the number their piece has."""

    @property
    def kind(self) -> str:
        """`ids` or `text`, and how its counts are known, for the manifest."""
        ...

    def fields(self, layout: PromptLayout, answers: Mapping[int, Answered]) -> dict[str, object]:
        """The body's field that holds the prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that a later turn continues."""

    token_ids: Sequence[int]
    text: str


@dataclass(frozen=True, slots=True)
class IdPrompts:
    """Implements `Prompts`."""

    vocabulary: range
    seed: int
    added: int = 0  # tokens that the server puts before them

    @property
    def kind(self) -> str:
        return "ids"

    def fields(self, layout: PromptLayout, answers: Mapping[int, Answered]) -> dict[str, object]:
        tokens: list[int] = []
        for number, num_tokens in layout.pieces:
            answer = answers.get(number)
            if answer is not None and len(answer.token_ids) == num_tokens:
                tokens += answer.token_ids
            else:
                tokens += _drawn_ids((number, num_tokens), self.vocabulary, self.seed)
        return {"prompt": tokens[: max(1, len(tokens) - self.added)]}


@dataclass(frozen=True, slots=True)
class TextPrompts:
    """Implements `Prompts`. A chat's turns are messages; where its answer has not come, drawn text stands for it."""

    units: tuple[str, ...]
    seed: int
    added: int  # tokens of a prompt beyond its units: special ones, or the chat template's
    added_per_turn: int = 0  # of each earlier turn of a chat
    is_chat: bool = False
    source: str = ""  # who counted

    @property
    def kind(self) -> str:
        return f"text, counted by {self.source}"

    def fields(self, layout: PromptLayout, answers: Mapping[int, Answered]) -> dict[str, object]:
        turns = _turns(layout, answers)
        added = self.added + self.added_per_turn * (len(turns) - 1)
        messages: list[dict[str, str]] = []
        for place, (pieces, answer) in enumerate(turns):
            # The last turn bears the correction: what came before must repeat itself to the letter.
            messages.append({"role": "user", "content": self._text(pieces, added if place == len(turns) - 1 else 0)})
            if answer is not None:
                number, num_tokens = answer
                given = answers.get(number)
                content = given.text if given is not None and given.text else self._text([(number, num_tokens)], 0)
                messages.append({"role": "assistant", "content": content})
        if self.is_chat:
            return {"messages": messages}
        return {"prompt": "".join(message["content"] for message in messages)}

    def _text(self, pieces: Sequence[Piece], less: int) -> str:
        units = [unit for piece in pieces for unit in _drawn_units(piece, self.units, self.seed)]
        # A text always begins with the same unit: templates strip spaces, and tokenizers treat the first word apart.
        return "".join([self.units[0], *units[1 : max(1, len(units) - less)]])


def _turns(layout: PromptLayout, answers: Mapping[int, Answered]) -> list[tuple[list[Piece], Piece | None]]:
    """The pieces of each turn of the user, and the answer after it; the last one has none."""
    turns: list[tuple[list[Piece], Piece | None]] = []
    said: list[Piece] = []
    for piece in layout.pieces:
        if piece[0] in answers:
            turns.append((said, piece))
            said = []
        else:
            said.append(piece)
    turns.append((said, None))
    return turns


@lru_cache(_PIECES_KEPT)
def _drawn_ids(piece: Piece, vocabulary: range, seed: int) -> tuple[int, ...]:
    return tuple(drawn_tokens([piece], vocabulary, seed))


@lru_cache(_PIECES_KEPT)
def _drawn_units(piece: Piece, units: tuple[str, ...], seed: int) -> tuple[str, ...]:
    number, num_tokens = piece
    return tuple(random.Random(f"{seed}/{number}").choices(units, k=num_tokens))


class TokenCounter(Protocol):
    """How many tokens the target makes of a text, special ones included. Raises ConfigError where it cannot say."""

    @property
    def name(self) -> str: ...

    async def count(self, text: str) -> int: ...


@dataclass(frozen=True, slots=True)
class FolderCounter:
    """Implements `TokenCounter` by `tokenizer.json`."""

    folder: Path
    tokenizer: Any

    @property
    def name(self) -> str:
        return "the tokenizer in a folder"

    async def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)


@dataclass(frozen=True, slots=True)
class TokenizeCounter:
    """Implements `TokenCounter` by the server's `/tokenize` (colocate, vLLM, llama.cpp)."""

    target: Target

    @property
    def name(self) -> str:
        return "/tokenize"

    async def count(self, text: str) -> int:
        body: dict[str, object] = {"model": self.target.model, "prompt": text}
        if self.target.system == "llama.cpp":
            body = {"content": text, "add_special": True}
        try:
            answer = await ask(self.target.address, "POST", "/tokenize", self.target.headers, orjson.dumps(body))
            tokens = orjson.loads(bytes(answer.content))["tokens"] if answer.status == 200 else None
        except (HttpError, orjson.JSONDecodeError, TypeError, KeyError):
            tokens = None
        if tokens is None:
            raise ConfigError("/tokenize", "is not there", "name the model's folder with --tokenizer")
        return len(tokens)


@dataclass(frozen=True, slots=True)
class UsageCounter:
    """Implements `TokenCounter` by `usage.prompt_tokens` of an answer of one token."""

    target: Target
    extra_body: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "usage.prompt_tokens"

    async def count(self, text: str) -> int:
        is_chat = self.target.endpoint == "chat"
        return await self.count_fields({"messages": [_says("user", text)]} if is_chat else {"prompt": text})

    async def count_fields(self, fields: Mapping[str, object]) -> int:
        sink = StreamSink(needs_done=self.target.needs_done)
        request = self.target.request(self.target.body(fields, PROBE_TOKENS, self.extra_body), {})
        try:
            await exchange(self.target.address, request, sink, PROBE_TIMEOUT_S)
        except HttpError as error:
            sink.broke(error)
        if sink.prompt_tokens is None:
            problem = f"does not say how many tokens a prompt has ({sink.error or 'no usage in its answers'})"
            raise ConfigError(self.target.address.url, problem, "name the model's folder with --tokenizer")
        return sink.prompt_tokens


async def prepare_prompts(plan: BenchPlan, target: Target) -> Prompts:
    """What this target's prompts are made of. Raises ConfigError."""
    if target.takes_ids:
        top = min(VOCABULARY.stop, target.vocab_size or VOCABULARY.stop)
        vocabulary = range(min(VOCABULARY.start, top // 2), top)
        seen = target.probe.get("prompt_tokens")
        return IdPrompts(vocabulary, plan.seed, max(0, seen - len(PROBE_IDS)) if isinstance(seen, int) else 0)
    counter = await _counter(plan, target)
    units, special = await find_units(counter)
    if target.endpoint != "chat":
        return TextPrompts(units, plan.seed, special, source=counter.name)
    usage = UsageCounter(target, plan.extra_body)
    said = "".join(units[:_FEWEST_UNITS])
    once = await usage.count(said)
    thrice = await usage.count_fields(
        {"messages": [_says("user", said), _says("assistant", said), _says("user", said)]}
    )
    added, per_turn = once - _FEWEST_UNITS, thrice - once - 2 * _FEWEST_UNITS
    return TextPrompts(units, plan.seed, added, per_turn, is_chat=True, source=counter.name)


async def _counter(plan: BenchPlan, target: Target) -> TokenCounter:
    if plan.tokenizer is not None:
        return open_folder(plan.tokenizer)
    server = TokenizeCounter(target)
    try:
        await server.count("a")
    except ConfigError:
        return UsageCounter(target, plan.extra_body)
    return server


def open_folder(folder: Path) -> FolderCounter:
    """Raises ConfigError."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json" if folder.is_dir() else folder
    try:
        return FolderCounter(folder, Tokenizer.from_file(str(file)))
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(
            "--tokenizer", f"{file} is no tokenizer: {error}", "name a folder with a tokenizer.json"
        ) from None


async def find_units(counter: TokenCounter) -> tuple[tuple[str, ...], int]:
    """Strings that are one token wherever they stand, and how many tokens a text has beyond its units."""
    for family in FAMILIES:
        # Three of one unit against one of it: what is added cancels out.
        added = 0
        pairs = [unit for unit in family[:4] if await counter.count(unit * 3) - await counter.count(unit) == 2]
        if not pairs:
            continue
        added = await counter.count(pairs[0] * 3) - 3
        units = await _single(counter, family, added)
        if len(units) >= _FEWEST_UNITS and await _holds(counter, units, added):
            return units, added
    problem = "no short strings were found that its tokenizer takes for one token each"
    raise ConfigError(counter.name, problem, "use --endpoint completions with token ids, where the server takes them")


async def _single(counter: TokenCounter, units: tuple[str, ...], added: int) -> tuple[str, ...]:
    """Those of one token, by halving: a part whose count is right holds no other."""
    if await counter.count("".join(units)) - added == len(units):
        return units
    if len(units) == 1:
        return ()
    half = len(units) // 2
    return (*await _single(counter, units[:half], added), *await _single(counter, units[half:], added))


async def _holds(counter: TokenCounter, units: tuple[str, ...], added: int) -> bool:
    """In drawn orders, too."""
    rng = random.Random(0)
    lengths = (1, 7, 100, 400)
    texts = ["".join([units[0], *rng.choices(units, k=length - 1)]) for length in lengths]
    return all([await counter.count(text) == length + added for text, length in zip(texts, lengths, strict=True)])


def _says(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}
