"""Prompts of an exact token count: as token ids where the server takes them, else as text that is so many tokens.

Text is made by `bench.exact_text`, which asks the target's own tokenizer for counts: a local folder, the server's
`/tokenize`, or the usage of a short answer. What a server or a chat template adds of its own is measured once and
subtracted. Every answer's `usage.prompt_tokens` is held against the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import orjson

from colocate.bench.exact_text import FAMILIES, ExactText, find_exact_text, settle_async, tokenizer_families
from colocate.bench.http import HttpError, ask, exchange
from colocate.bench.plan import BenchPlan
from colocate.bench.stream import StreamSink
from colocate.bench.target import PROBE_IDS, PROBE_TIMEOUT_S, PROBE_TOKENS, Target
from colocate.errors import ConfigError
from colocate.workload.prompts import Piece, PromptLayout, drawn_tokens

# Ids that are words in every tokenizer at hand: neither special tokens nor single bytes.
VOCABULARY = range(300, 2000)
_SAID_UNITS = 8
# A question put to the model itself must fit its context and should not take long.
_UNITS_BY_USAGE = 8
_PIECES_KEPT = 4096


class Prompts(Protocol):
    """Makes the prompt of a layout. `answers` are those that have come, by the number their piece has."""

    @property
    def kind(self) -> str:
        """`ids` or `text`, and how its counts are known, for the manifest."""
        ...

    async def settle(self, layout: PromptLayout) -> None:
        """Before the load: ask whatever has to be asked for this prompt. Without it a prompt may miss its count."""
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

    async def settle(self, layout: PromptLayout) -> None:
        """Nothing: ids are as many as they are."""

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
    """Implements `Prompts`. A chat's turns are messages; where its answer has not come, drawn text stands for it.

    Where no units were found that are one token each, prompts of one turn are counted one by one ahead of the load, so
    far as the counter leaves the server as it was; others are about as long as planned.
    """

    texts: ExactText
    counter: TokenCounter
    added: int  # tokens of a prompt beyond its units: special ones, or the chat template's
    added_per_turn: int = 0  # of each earlier turn of a chat
    is_chat: bool = False
    _counted: dict[tuple[Piece, ...], str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        how = "" if self.texts.keeps_boundaries else " one by one" if self.counter.is_free else " at their mean length"
        return f"text, counted by {self.counter.name}{how}"

    async def settle(self, layout: PromptLayout) -> None:
        pieces = tuple(layout.pieces)
        if self.texts.keeps_boundaries or not self.counter.is_free or pieces in self._counted:
            return
        template = self.added - self.texts.added

        async def count(text: str) -> int:
            return await self.counter.count(text) + template

        # Some lengths cannot be had: such a prompt is drafted, and its count told with the answer.
        with suppress(ConfigError):
            self._counted[pieces] = await settle_async(replace(self.texts, added=self.added).exact(pieces), count)

    def fields(self, layout: PromptLayout, answers: Mapping[int, Answered]) -> dict[str, object]:
        turns = _turns(layout, answers)
        counted = self._counted.get(tuple(layout.pieces)) if len(turns) == 1 else None
        added = self.added + self.added_per_turn * (len(turns) - 1)
        messages: list[dict[str, str]] = []
        for place, (pieces, answer) in enumerate(turns):
            # The last turn bears the correction: what came before must repeat itself to the letter.
            text = counted or self._text(pieces, added if place == len(turns) - 1 else 0)
            messages.append(_says("user", text))
            if answer is not None:
                number, num_tokens = answer
                given = answers.get(number)
                content = given.text if given is not None and given.text else self._text([(number, num_tokens)], 0)
                messages.append(_says("assistant", content))
        if self.is_chat:
            return {"messages": messages}
        return {"prompt": "".join(message["content"] for message in messages)}

    def _text(self, pieces: Sequence[Piece], less: int) -> str:
        return replace(self.texts, added=less).draft(pieces)


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


class TokenCounter(Protocol):
    """How many tokens the target makes of a text, special ones included. Raises ConfigError where it cannot say."""

    @property
    def name(self) -> str: ...

    @property
    def is_free(self) -> bool:
        """Whether counting leaves the server as it was: a prompt that is run for its count is cached afterwards."""
        ...

    async def count(self, text: str) -> int: ...


@dataclass(frozen=True, slots=True)
class FolderCounter:
    """Implements `TokenCounter` by `tokenizer.json`."""

    folder: Path
    tokenizer: Any

    @property
    def name(self) -> str:
        return "the tokenizer in a folder"

    @property
    def is_free(self) -> bool:
        return True

    async def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)


@dataclass(frozen=True, slots=True)
class TokenizeCounter:
    """Implements `TokenCounter` by the server's `/tokenize` (colocate, vLLM, llama.cpp)."""

    target: Target

    @property
    def name(self) -> str:
        return "/tokenize"

    @property
    def is_free(self) -> bool:
        return True

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

    @property
    def is_free(self) -> bool:
        return False

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
    families = tokenizer_families(counter.tokenizer) if isinstance(counter, FolderCounter) else FAMILIES
    most = {} if counter.is_free else {"most_units": _UNITS_BY_USAGE}
    texts = await settle_async(find_exact_text(families, plan.seed, **most), counter.count)
    if target.endpoint != "chat":
        return TextPrompts(texts, counter, texts.added)
    usage = UsageCounter(target, plan.extra_body)
    said = "".join(texts.units[:_SAID_UNITS])
    plain = await counter.count(said) - texts.added
    once = await usage.count(said)
    thrice = await usage.count_fields(
        {"messages": [_says("user", said), _says("assistant", said), _says("user", said)]}
    )
    return TextPrompts(texts, counter, once - plain, thrice - once - 2 * plain, is_chat=True)


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


def _says(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}
