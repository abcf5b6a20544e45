"""The model's tokenizer as the frontend uses it: text <-> ids, special tokens, and the bytes of every token."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from colocate.errors import ConfigError
from colocate.frontend.detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer
from colocate.types import TokenId


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a model directory says about its tokens, beyond `tokenizer.json`."""

    tokenizer_config: dict[str, Any]
    chat_template: str | None
    special_tokens: dict[str, str]  # bos_token, eos_token, ... -> text, as chat templates use them
    eos_token_ids: tuple[TokenId, ...]


class TextTokenizer:
    """Immutable after construction; `encode` and `decode` release the interpreter lock and may run in any thread."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size  # of the model: ids a client may send
        self.special_ids = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        self.longest_token_chars = max((len(token) for token in vocab), default=1)
        self._token_bytes: list[bytes] | None = None
        self._shown_bytes: list[bytes] | None = None
        if _is_byte_level(json.loads(tokenizer.to_str())["decoder"]):
            self._token_bytes = _byte_table(vocab, vocab_size)
            self._shown_bytes = [
                b"" if token_id in self.special_ids else raw for token_id, raw in enumerate(self._token_bytes)
            ]

    def encode(self, texts: list[str], add_special_tokens: bool) -> list[list[TokenId]]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: list[TokenId], skip_special_tokens: bool = False) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def detokenizer(self, skip_special_tokens: bool) -> Detokenizer:
        if self._token_bytes is not None and self._shown_bytes is not None:
            return ByteLevelDetokenizer(self._shown_bytes if skip_special_tokens else self._token_bytes)
        return WindowDetokenizer(self._window_decode(skip_special_tokens))

    def _window_decode(self, skip_special_tokens: bool) -> Callable[[list[TokenId]], str]:
        return lambda token_ids: self.decode(token_ids, skip_special_tokens)

    def token_bytes(self, token_id: TokenId) -> bytes:
        """The bytes of one token by itself, special tokens shown."""
        if self._token_bytes is not None:
            return self._token_bytes[token_id] if 0 <= token_id < len(self._token_bytes) else b""
        piece = self._tokenizer.id_to_token(token_id) or ""
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    def token_text(self, token_id: TokenId) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")


def _is_byte_level(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    if decoder["type"] == "Sequence":
        return all(part["type"] == "ByteLevel" for part in decoder["decoders"])
    return bool(decoder["type"] == "ByteLevel")


def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE writes every byte as one printable character: the printable Latin-1 bytes stand for themselves,
    the others take the code points from 256 on, in order (Radford et al. 2019, section 2.2 and its reference code)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _byte_table(vocab: dict[str, TokenId], vocab_size: int) -> list[bytes]:
    byte_of = _byte_of_char()
    table = [b""] * max(vocab_size, max(vocab.values(), default=-1) + 1)
    for token, token_id in vocab.items():
        try:
            table[token_id] = bytes([byte_of[char] for char in token])
        except KeyError:  # an added token, written as plain text
            table[token_id] = token.encode()
    return table


def load_tokenizer(model_dir: Path, vocab_size: int) -> tuple[TextTokenizer, TokenizerFiles]:
    """Raises ConfigError naming the file that is missing or broken."""
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(str(path), "no tokenizer", "a model directory needs tokenizer.json beside config.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(str(path), f"not a readable tokenizer: {error}", "download the file again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TextTokenizer(tokenizer, vocab_size), load_tokenizer_files(model_dir, tokenizer)


def load_tokenizer_files(model_dir: Path, tokenizer: Tokenizer) -> TokenizerFiles:
    tokenizer_config = _read_json(model_dir / "tokenizer_config.json")
    special_tokens = _special_tokens(_read_json(model_dir / "special_tokens_map.json"), tokenizer_config)
    eos = _declared_eos(model_dir)
    if (token := special_tokens.get("eos_token")) and (token_id := tokenizer.token_to_id(token)) is not None:
        eos.append(token_id)
    template_file = model_dir / "chat_template.jinja"
    template = template_file.read_text("utf-8") if template_file.is_file() else _inline_template(tokenizer_config)
    return TokenizerFiles(tokenizer_config, template, special_tokens, tuple(dict.fromkeys(eos)))


def _special_tokens(*sources: dict[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for source in sources:
        for name, value in source.items():
            content = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(content, str):
                tokens[name] = content
    return tokens


def _declared_eos(model_dir: Path) -> list[TokenId]:
    for name in ("generation_config.json", "config.json"):
        declared = _read_json(model_dir / name).get("eos_token_id")
        if declared is not None:
            return list(declared) if isinstance(declared, list) else [declared]
    return []


def _inline_template(tokenizer_config: dict[str, Any]) -> str | None:
    """`chat_template` is one template or a list of named ones, of which "default" is taken."""
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(str(path), f"not JSON: {error}", "download the file again") from None
    if not isinstance(value, dict):
        raise ConfigError(str(path), "expected a JSON object", "download the file again")
    return value
