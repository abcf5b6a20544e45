"""Datasets of prompts and answers, as `vllm bench serve` and `sglang.bench_serving` take them: their lengths alone.

| dataset | one entry | from |
|---|---|---|
| ShareGPT | `{"conversations": [{"value": "..."}, {"value": "..."}]}`; `content` for `value` | its first two turns |
| custom | `{"prompt": "...", "output_len": 9}`; `output_tokens` for `output_len` | the prompt, and the number |
| counted | `{"prompt_len": 9, "output_len": 9}` | the numbers |

Entries stand in one JSON list or one to a line. Texts must be counted by somebody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from colocate.errors import ConfigError
from colocate.workload.lengths import LengthPair

Count = Callable[[str], int]
DATASET_FIELDS = ("conversations", "conversation", "prompt", "prompt_len")
DATASET_HELP = '{"conversations": [...]}, {"prompt": "...", "output_len": 9} or {"prompt_len": 9, "output_len": 9}'


def is_dataset(text: str) -> bool:
    """Whether a file that begins so is one of these: a list, or an object with one of their fields."""
    start = text.lstrip()
    if start.startswith("["):
        return True
    try:
        entry = msgspec.json.decode(start)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return False
    return isinstance(entry, dict) and any(field in entry for field in DATASET_FIELDS)


def dataset_lengths(where: str, lines: Sequence[str], count: Count | None) -> tuple[list[LengthPair], int]:
    """Lengths of all entries that have a prompt and an answer, and how many have none. Raises ConfigError."""
    pairs: list[LengthPair] = []
    num_without = 0
    for place, entry in _entries(where, lines):
        pair = _pair(place, entry, count)
        if min(pair) < 1:
            num_without += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise ConfigError(where, "holds no prompt that has an answer", f"an entry is {DATASET_HELP}")
    return pairs, num_without


def _entries(where: str, lines: Sequence[str]) -> Iterable[tuple[str, Any]]:
    if not lines[0].lstrip().startswith("["):
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{where}: line {number}", _decode(f"{where}: line {number}", line)
        return
    entries = _decode(where, "\n".join(lines))
    for number, entry in enumerate(entries, 1):
        yield f"{where}: entry {number}", entry


def _decode(where: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(where, f"is not JSON: {error}", f"an entry is {DATASET_HELP}") from None


def _pair(where: str, entry: Any, count: Count | None) -> LengthPair:
    if not isinstance(entry, dict):
        raise ConfigError(where, "is not an object", f"an entry is {DATASET_HELP}")
    turns = entry.get("conversations", entry.get("conversation"))
    if turns is not None:
        said = _said(where, turns)
        return (0, 0) if len(said) < 2 else (_count(where, said[0], count), _count(where, said[1], count))
    output = entry.get("output_len", entry.get("output_tokens"))
    prompt = entry.get("prompt_len", entry.get("prompt"))
    if prompt is None or output is None:
        missing = "prompt" if prompt is None else "output_len"
        raise ConfigError(where, f"lacks the field {missing}", f"an entry is {DATASET_HELP}")
    prompt_tokens = _count(where, prompt, count) if isinstance(prompt, str) else prompt
    for field, tokens in (("prompt_len", prompt_tokens), ("output_len", output)):
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
            raise ConfigError(where, f"{field} is {tokens!r}, not a number of tokens", "give a whole number of tokens")
    return prompt_tokens, output


def _said(where: str, turns: Any) -> list[str]:
    if not isinstance(turns, list):
        raise ConfigError(where, "conversations is not a list", f"an entry is {DATASET_HELP}")
    said: list[str] = []
    for turn in turns[:2]:
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if not isinstance(text, str):
            raise ConfigError(where, "has a turn without value or content", f"an entry is {DATASET_HELP}")
        said.append(text)
    return said


def _count(where: str, text: str, count: Count | None) -> int:
    if count is None:
        problem = "holds text, and nobody says how many tokens it is"
        raise ConfigError(where, problem, "first run `colocate workload convert FILE --tokenizer DIR -o lengths.csv`")
    return count(text)
