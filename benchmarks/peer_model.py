"""The random model that ours and the peers serve: the same float32 weights, and a word for every id.

A random model draws every id of its vocabulary, and the demo tokenizer names only the first 2,048 of them. A server
that sends text sends nothing for an id without a word, and its client cannot tell when that token came. So the rest of
the ids get words, which no merge makes: texts are tokenized as before. What is left without a text of its own, special
tokens and parts of characters, is never drawn greedily: its row of the tied embedding is zero, so its logit is. No id
ends an answer, because one of the servers cannot be asked to go on (`ignore_eos`).
"""

from __future__ import annotations

import json
from pathlib import Path

from random_model import SHAPES, write_random_model
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

WEIGHTS = "model.safetensors"


def write_peer_model(directory: Path, shape: str, *, seed: int = 0, max_model_len: int = 8192) -> Path:
    """A Hugging Face folder of `SHAPES[shape]`. Returns `directory`."""
    write_random_model(directory, SHAPES[shape], seed=seed, max_model_len=max_model_len)
    file = directory / "tokenizer.json"
    file.write_text(json.dumps(name_every_id(json.loads(file.read_text()), SHAPES[shape].vocab)))
    weights = load_file(directory / WEIGHTS)
    weights["model.embed_tokens.weight"][ids_without_text(file, SHAPES[shape].vocab)] = 0.0
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((directory / name).read_text())
        settings.pop("eos_token_id", None)
        (directory / name).write_text(json.dumps(settings, indent=1))
    return directory


def name_every_id(tokenizer: dict, size: int) -> dict:
    """The same tokenizer.json with words of bytes for ids that have none, up to `size`."""
    words = dict(tokenizer["model"]["vocab"])
    taken = set(words.values()) | {added["id"] for added in tokenizer["added_tokens"]}
    words |= {f"\u0120w{index}": index for index in range(size) if index not in taken}  # U+0120: a space, byte-level
    return tokenizer | {"model": tokenizer["model"] | {"vocab": words}}


def ids_without_text(file: Path, size: int) -> list[int]:
    """Special tokens and parts of characters: a server that sends text sends nothing for them, or not yet."""
    tokenizer = Tokenizer.from_file(str(file))
    texts = (tokenizer.decode([index], skip_special_tokens=True) for index in range(size))
    return [index for index, text in enumerate(texts) if not text.strip() or "\ufffd" in text]
