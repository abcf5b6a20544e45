"""Prompts of both calls as token ids: templates and tokenizing run in worker threads, within a time limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from colocate.errors import RequestError
from colocate.frontend.chat_template import ChatTemplate
from colocate.frontend.parameters import check_token_id, parse_request
from colocate.frontend.schemas import ChatMessage, Prompts
from colocate.frontend.text_workers import TextWorkers
from colocate.frontend.tokenizer import TextTokenizer, TokenizerFiles
from colocate.types import TokenId

# Parsing and checking a body of this size takes about as long as a turn of the event loop may.
LARGE_BODY_BYTES = 64 * 1024

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: list[TokenId]
    text: str | None  # as the client gave it; None for token ids
    param: str  # where in the request it stands


class PromptReader:
    def __init__(
        self, tokenizer: TextTokenizer, files: TokenizerFiles, workers: TextWorkers, max_model_len: int
    ) -> None:
        self.tokenizer = tokenizer
        self.eos_token_ids = files.eos_token_ids
        self._workers = workers
        self._max_chars = max_model_len * tokenizer.longest_token_chars
        self._max_model_len = max_model_len
        self._template = None
        if files.chat_template is not None:
            self._template = ChatTemplate(files.chat_template, files.special_tokens)

    async def parse(self, body: bytes, model: type[M]) -> M:
        """`parse_request`, off the event loop where the body is large."""
        if len(body) <= LARGE_BODY_BYTES:
            return parse_request(body, model)
        return await self._workers.run(lambda: parse_request(body, model), "body")

    async def completion(self, prompts: Prompts, add_special_tokens: bool) -> list[Prompt]:
        params = ["prompt"] if len(prompts) == 1 else [f"prompt[{index}]" for index in range(len(prompts))]
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if texts:
            ids = await self.encode(texts, params, add_special_tokens)
            return [Prompt(*row) for row in zip(ids, texts, params, strict=True)]
        tokens = [prompt for prompt in prompts if isinstance(prompt, list)]
        for token_ids, param in zip(tokens, params, strict=True):
            if len(token_ids) > self._max_model_len:
                raise self._too_long(param, f"{len(token_ids)} tokens")
            self._check_range(token_ids, param)
        return [Prompt(token_ids, None, param) for token_ids, param in zip(tokens, params, strict=True)]

    async def chat(
        self, messages: list[ChatMessage], add_generation_prompt: bool, extra: dict[str, Any] | None
    ) -> Prompt:
        """One prompt. The template writes BOS and the like itself, so tokenizing adds none."""
        template = self._template
        if template is None:
            message = "this model has no chat template; use /v1/completions"
            raise RequestError(message, param="messages", code="no_chat_template")
        plain = [_plain(message, index) for index, message in enumerate(messages)]
        text = await self._workers.run(lambda: template.render(plain, add_generation_prompt, extra or {}), "messages")
        [token_ids] = await self.encode([text], ["messages"], add_special_tokens=False)
        return Prompt(token_ids, text, "messages")

    async def encode(self, texts: list[str], params: list[str], add_special_tokens: bool) -> list[list[TokenId]]:
        for text, param in zip(texts, params, strict=True):
            if len(text) > self._max_chars:
                raise self._too_long(param, f"{len(text)} characters")
        encoded = await self._workers.run(lambda: self.tokenizer.encode(texts, add_special_tokens), params[0])
        for token_ids, param in zip(encoded, params, strict=True):
            if not token_ids:
                raise RequestError(f"{param}: no tokens in it", param=param)
            self._check_range(token_ids, param)
        return encoded

    def _too_long(self, param: str, size: str) -> RequestError:
        message = f"the model's context is {self._max_model_len} tokens; {param} has {size}"
        return RequestError(message, param=param, code="context_length_exceeded")

    async def decode(self, token_ids: list[TokenId], skip_special_tokens: bool) -> str:
        for index, token_id in enumerate(token_ids):
            check_token_id(token_id, self.tokenizer.vocab_size, f"tokens[{index}]")
        return await self._workers.run(lambda: self.tokenizer.decode(token_ids, skip_special_tokens), "tokens")

    def _check_range(self, token_ids: list[TokenId], param: str) -> None:
        if min(token_ids) < 0 or max(token_ids) >= self.tokenizer.vocab_size:
            for index, token_id in enumerate(token_ids):
                check_token_id(token_id, self.tokenizer.vocab_size, f"{param}[{index}]")


def _plain(message: ChatMessage, index: int) -> dict[str, Any]:
    """A message as templates know it: text content, and no role that only OpenAI's newer models have."""
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise RequestError(f"messages[{index}].content is required", param=f"messages[{index}].content")
        content = ""
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    plain = {"role": role, "content": content}
    if message.name is not None:
        plain["name"] = message.name
    return plain
