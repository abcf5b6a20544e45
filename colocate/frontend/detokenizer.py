"""Token ids to text, one token at a time. A multi-byte character is never split; `flush` gives up on an unfinished one.

Two implementations of `Detokenizer`: a byte table where the tokenizer's decoder is byte-level (GPT-2, Llama 3, Qwen),
a sliding window over the decoder everywhere else (SentencePiece: what a token reads as depends on its neighbours).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

from colocate.types import TokenId

REPLACEMENT = "\ufffd"

# A run of tokens that never completes a character is printed as it is after this many tokens, so that neither the
# stream stalls nor the window grows: no character of UTF-8 has more than four bytes.
MAX_HELD_TOKENS = 8


class Detokenizer(Protocol):
    """State of one output text; owned by one choice."""

    def step(self, token_id: TokenId) -> str:
        """The text this token completes; "" while a character is unfinished or the token is special and skipped."""
        ...

    def flush(self) -> str:
        """The end: whatever is still held back, replacement characters included."""
        ...


def utf8_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


class ByteLevelDetokenizer:
    """`token_bytes[id]` is what the token adds to the byte stream; `b""` for a skipped special token."""

    __slots__ = ("_decode", "_token_bytes")

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._decode = utf8_decoder().decode

    def step(self, token_id: TokenId) -> str:
        if 0 <= token_id < len(self._token_bytes):
            return self._decode(self._token_bytes[token_id])
        return ""

    def flush(self) -> str:
        return self._decode(b"", True)


class WindowDetokenizer:
    """Decodes a short window twice per token: with and without the new tokens; the difference is new text.

    `decode` is a tokenizer's own: ids -> text. The window keeps the tokens of the last text given out as context.
    """

    __slots__ = ("_context", "_context_text", "_decode", "_held")

    def __init__(self, decode: Callable[[list[TokenId]], str]) -> None:
        self._decode = decode
        self._context: list[TokenId] = []
        self._context_text = ""
        self._held: list[TokenId] = []

    def step(self, token_id: TokenId) -> str:
        self._held.append(token_id)
        text = self._decode(self._context + self._held)
        unfinished = text.endswith(REPLACEMENT) and len(self._held) < MAX_HELD_TOKENS
        if unfinished or len(text) <= len(self._context_text):
            return ""
        return self._emit(text)

    def flush(self) -> str:
        if not self._held:
            return ""
        return self._emit(self._decode(self._context + self._held))

    def _emit(self, text: str) -> str:
        new = text[len(self._context_text) :]
        self._context, self._held = self._held, []
        self._context_text = self._decode(self._context)
        return new
