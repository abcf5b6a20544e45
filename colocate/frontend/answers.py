"""The bodies of both generation calls in OpenAI's shapes, streamed and whole.

The constant parts of a stream's events are rendered once per choice; per event only the text is encoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from colocate.frontend.generation import ScoredToken, Update
from colocate.frontend.tokenizer import TextTokenizer
from colocate.types import TokenId

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keep-alive\n\n"


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompts: KV found, not computed again

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerContext:
    """What every event and body of one HTTP request says."""

    answer_id: str
    model: str
    created_s: int
    prompts: list[list[TokenId]]  # of each prompt; choice i belongs to prompt i // n
    n: int
    logprobs: bool
    return_token_ids: bool
    include_usage: bool
    running_usage: bool  # in every chunk, not only in the last
    tokenizer: TextTokenizer
    hidden_ids: frozenset[TokenId]  # special tokens that are not in the text: they take no room in offsets

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.answer_id, "object": kind, "created": self.created_s, "model": self.model}

    @property
    def is_plain(self) -> bool:
        """Whether events differ in their text alone."""
        return not (self.logprobs or self.return_token_ids or self.running_usage)

    def chunk_usage(self, index: int, num_tokens: int) -> dict[str, int] | None:
        """Of a chunk that is not the last: its choice so far, where that was asked for, without details, as vLLM."""
        if not self.running_usage:
            return None
        num_prompt_tokens = len(self.prompt_of(index))
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": num_prompt_tokens + num_tokens,
        }

    def prompt_of(self, index: int) -> list[TokenId]:
        return self.prompts[index // self.n]


class Answer(Protocol):
    """Renders one HTTP request's output. Keeps text offsets, so every update is rendered exactly once, in order."""

    def opening(self) -> bytes:
        """Events before the first token."""
        ...

    def event(self, update: Update) -> bytes:
        """One SSE event."""
        ...

    def closing(self, extra: dict[str, Any]) -> bytes:
        """The last event: no choices, but what `extra` names (usage, stages)."""
        ...

    def whole(self, updates: list[Update], extra: dict[str, Any]) -> bytes:
        """The body of an answer that is not streamed; one update per choice, in order, and `extra`."""
        ...


def error_event(error: dict[str, Any]) -> bytes:
    """After the first byte there is no status left to set: OpenAI clients raise APIError on this event."""
    return b"data: " + orjson.dumps({"error": error}) + b"\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _split_template(value: dict[str, Any]) -> tuple[bytes, bytes]:
    """An event with a hole where the text "\\u0000" stands: what comes before the hole, and after."""
    before, after = _event(value).split(b'"\\u0000"')
    return before, after


HOLE = "\x00"


@dataclass(slots=True)
class CompletionAnswer:
    context: AnswerContext
    _templates: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    _offsets: dict[int, int] = field(default_factory=dict)  # choice -> characters of scored tokens so far
    _prompt_sent: set[int] = field(default_factory=set)

    def opening(self) -> bytes:
        return b""

    def event(self, update: Update) -> bytes:
        context = self.context
        if update.finish is None and context.is_plain:
            template = self._templates.get(update.index)
            if template is None:
                template = _split_template(self._chunk(Update(update.index, HOLE)))
                self._templates[update.index] = template
            return template[0] + orjson.dumps(update.text) + template[1]
        return _event(self._chunk(update))

    def _chunk(self, update: Update) -> dict[str, Any]:
        chunk = self.context.head("text_completion")
        chunk["choices"] = [self._choice(update)]
        if self.context.include_usage:
            chunk["usage"] = self.context.chunk_usage(update.index, update.num_tokens)
        return chunk

    def _choice(self, update: Update) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": update.index,
            "text": update.text,
            "logprobs": self._logprobs(update) if self.context.logprobs else None,
            "finish_reason": None if update.finish is None else update.finish.value,
        }
        if update.finish is not None:
            choice["stop_reason"] = update.stop_reason
        if self.context.return_token_ids:
            choice["token_ids"] = update.token_ids
            first = update.index not in self._prompt_sent
            self._prompt_sent.add(update.index)
            choice["prompt_token_ids"] = self.context.prompt_of(update.index) if first else None
        return choice

    def _logprobs(self, update: Update) -> dict[str, Any]:
        tokens: list[str] = []
        token_logprobs: list[float | None] = []
        top_logprobs: list[dict[str, float] | None] = []
        text_offset: list[int] = []
        text_of = self.context.tokenizer.token_text
        offset = self._offsets.get(update.index, 0)
        for scored in update.scored:
            text = text_of(scored.token_id)
            tokens.append(text)
            token_logprobs.append(scored.logprob)
            top_logprobs.append(None if scored.logprob is None else _top_by_text(scored, text, self.context.tokenizer))
            text_offset.append(offset)
            if scored.token_id not in self.context.hidden_ids:
                offset += len(text)
        self._offsets[update.index] = offset
        return {
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": top_logprobs,
            "text_offset": text_offset,
        }

    def closing(self, extra: dict[str, Any]) -> bytes:
        return _event({**self.context.head("text_completion"), "choices": [], **extra})

    def whole(self, updates: list[Update], extra: dict[str, Any]) -> bytes:
        body = self.context.head("text_completion")
        body["choices"] = [self._choice(update) for update in updates]
        body |= extra
        return orjson.dumps(body)


def _top_by_text(scored: ScoredToken, text: str, tokenizer: TextTokenizer) -> dict[str, float]:
    """OpenAI keys alternatives by text and adds the sampled token; of two tokens that read alike the likelier stays."""
    top: dict[str, float] = {}
    for token_id, logprob in scored.top:
        top.setdefault(tokenizer.token_text(token_id), logprob)
    if scored.logprob is not None:
        top.setdefault(text, scored.logprob)
    return top


@dataclass(slots=True)
class ChatAnswer:
    context: AnswerContext
    _templates: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def opening(self) -> bytes:
        """The role of every choice."""
        events = []
        for index in range(self.context.n):
            chunk = self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}}, None, 0)
            if index == 0 and self.context.return_token_ids:
                chunk["prompt_token_ids"] = self.context.prompts[0]
            events.append(_event(chunk))
        return b"".join(events)

    def event(self, update: Update) -> bytes:
        context = self.context
        if update.finish is None and context.is_plain:
            template = self._templates.get(update.index)
            if template is None:
                template = _split_template(self._update_chunk(Update(update.index, HOLE)))
                self._templates[update.index] = template
            return template[0] + orjson.dumps(update.text) + template[1]
        return _event(self._update_chunk(update))

    def _update_chunk(self, update: Update) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": update.index, "delta": {"content": update.text}}
        choice["logprobs"] = self._logprobs(update)
        if self.context.return_token_ids:
            choice["token_ids"] = update.token_ids
        if update.finish is not None:
            choice["stop_reason"] = update.stop_reason
        return self._chunk(choice, None if update.finish is None else update.finish.value, update.num_tokens)

    def _chunk(self, choice: dict[str, Any], finish_reason: str | None, num_tokens: int) -> dict[str, Any]:
        choice.setdefault("logprobs", None)
        choice["finish_reason"] = finish_reason
        chunk = self.context.head("chat.completion.chunk")
        chunk["choices"] = [choice]
        if self.context.include_usage:
            chunk["usage"] = self.context.chunk_usage(choice["index"], num_tokens)
        return chunk

    def _logprobs(self, update: Update) -> dict[str, Any] | None:
        if not self.context.logprobs:
            return None
        content = []
        for scored in update.scored:
            entry = self._scored(scored.token_id, scored.logprob)
            entry["top_logprobs"] = [self._scored(token_id, logprob) for token_id, logprob in scored.top]
            content.append(entry)
        return {"content": content, "refusal": None}

    def _scored(self, token_id: TokenId, logprob: float | None) -> dict[str, Any]:
        raw = self.context.tokenizer.token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    def closing(self, extra: dict[str, Any]) -> bytes:
        return _event({**self.context.head("chat.completion.chunk"), "choices": [], **extra})

    def whole(self, updates: list[Update], extra: dict[str, Any]) -> bytes:
        body = self.context.head("chat.completion")
        body["choices"] = [self._message(update) for update in updates]
        body |= extra
        if self.context.return_token_ids:
            body["prompt_token_ids"] = self.context.prompts[0]
        return orjson.dumps(body)

    def _message(self, update: Update) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": update.index,
            "message": {"role": "assistant", "content": update.text, "refusal": None},
            "logprobs": self._logprobs(update),
            "finish_reason": None if update.finish is None else update.finish.value,
            "stop_reason": update.stop_reason,
        }
        if self.context.return_token_ids:
            choice["token_ids"] = update.token_ids
        return choice
