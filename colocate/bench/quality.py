"""Whether an arm still says what it should: its tokens against a reference run's, and recall of pairs in the prompt.

Two runs compare where they asked the same: the same workload and seed, greedy, with the token ids kept
(`bench --keep-token-ids`). Without `--deterministic` sums are made in another order under another plan, batch or share,
so a token whose two best candidates are close may differ, and everything behind it: the share of equal tokens up to the
first difference says more than the share of equal answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import NamedTuple, Protocol

import orjson
from msgspec import Struct

from colocate.bench.http import Address, HttpError, ask, parse_url, resolve
from colocate.bench.read import Run
from colocate.bench.records import RequestRow
from colocate.bench.stream import message_of
from colocate.errors import ConfigError
from colocate.workload.recall import KEYS, recall_prompts

RECALL_PAIRS = 16  # of 2 to 40 that the demo model was trained on
_AT_ONCE = 8
_MAX_TOKENS = 24  # `You said zor = 417.` and some more
_TIMEOUT_S = 120.0


class Agreement(Struct, frozen=True):
    """Greedy answers of one run against those of a reference. Shares are 0 to 1; None where nothing compares."""

    compared: int  # requests that finished in both with their ids
    left_out: int  # the others of the reference
    identical: int
    identical_share: float | None  # identical / compared
    tokens: int  # of the compared answers, the longer of each two
    equal_tokens: int  # before the first difference of each
    equal_token_share: float | None  # equal_tokens / tokens
    first_difference: int | None  # the earliest output position at which any two differ, from 0
    median_difference: float | None  # of those that differ


def agreement(run: Run, reference: Run) -> Agreement:
    """Raises ConfigError where the runs did not ask the same, or kept no token ids."""
    for what, own, theirs in (
        ("workload", run.manifest.workload_sha256, reference.manifest.workload_sha256),
        ("seed", run.manifest.seed, reference.manifest.seed),
        ("model", run.manifest.target.model, reference.manifest.target.model),
    ):
        if own != theirs:
            problem = f"its {what} is {own}, that of {reference.folder} is {theirs}: their answers do not compare"
            raise ConfigError(str(run.folder), problem, f"name two runs of the same {what}")
    return compare_answers(_answers(run), _answers(reference), len(reference.rows))


def compare_answers(
    answers: Mapping[int, Sequence[int]], reference: Mapping[int, Sequence[int]], num_asked: int
) -> Agreement:
    """Token ids by request. An answer that is the beginning of the other differs where it ends."""
    both = [(answers[index], ids) for index, ids in sorted(reference.items()) if index in answers]
    firsts = [first_difference(own, ids) for own, ids in both]
    differing = [first for first in firsts if first is not None]
    num_tokens = sum(max(len(own), len(ids)) for own, ids in both)
    num_equal = sum(len(ids) if first is None else first for first, (_, ids) in zip(firsts, both, strict=True))
    num_identical = len(both) - len(differing)
    return Agreement(
        compared=len(both),
        left_out=num_asked - len(both),
        identical=num_identical,
        identical_share=num_identical / len(both) if both else None,
        tokens=num_tokens,
        equal_tokens=num_equal,
        equal_token_share=num_equal / num_tokens if num_tokens else None,
        first_difference=min(differing, default=None),
        median_difference=float(median(differing)) if differing else None,
    )


def first_difference(own: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first position at which they differ; None where they are equal."""
    for position, one, other in zip(count(), own, theirs, strict=False):
        if one != other:
            return position
    return None if len(own) == len(theirs) else min(len(own), len(theirs))


def _answers(run: Run) -> dict[int, Sequence[int]]:
    finished: Iterable[RequestRow] = (row for row in run.rows if row.outcome == "finished")
    kept: dict[int, Sequence[int]] = {row.index: row.token_ids for row in finished if row.token_ids is not None}
    if not kept:
        raise ConfigError(str(run.folder), "no finished request kept its token ids", "run with --keep-token-ids")
    return kept


class RecallScore(NamedTuple):
    """A question that got no answer is not right."""

    right: int
    asked: int


class RecallTarget(Protocol):
    """A server that answers chats; `bench.target.Target` is one."""

    @property
    def address(self) -> Address: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def model(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ChatServer:
    """A `RecallTarget` known by its address."""

    address: Address
    headers: Mapping[str, str]
    model: str


def chat_server(url: str, model: str | None = None, api_key: str | None = None) -> ChatServer:
    """The server at `url` and the first model it lists. Raises ConfigError where nobody answers as one should."""
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}

    async def look() -> ChatServer:
        address = await resolve(parse_url(url))
        try:
            answer = await ask(address, "GET", "/v1/models", headers)
        except HttpError as error:
            raise ConfigError(address.url, f"nobody answers there: {error}", "start the server") from None
        if answer.status != 200:
            said = message_of(bytes(answer.content))
            raise ConfigError(address.url, f"/v1/models answers {answer.status}: {said}", "give the server's own key")
        try:
            names = [str(known["id"]) for known in orjson.loads(bytes(answer.content))["data"]]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise ConfigError(address.url, "lists no models as OpenAI's API does", "check the address") from None
        if not names or (model is not None and model not in names):
            problem = f"has no model {model!r}" if names else "has no model"
            raise ConfigError(address.url, problem, f"it has: {', '.join(names) or 'none'}")
        return ChatServer(address, headers, model or names[0])

    return asyncio.run(look())


def recall_score(
    target: RecallTarget, num_questions: int = 50, seed: int = 0, num_pairs: int = RECALL_PAIRS
) -> RecallScore:
    """Ask for one of `num_pairs` pairs, `num_questions` times, greedily, and count exact answers.

    The questions are the same for the same seed. The embedded demo model answers all of them, with any arm that
    computes what it should; other models need not know how to answer. Raises ConfigError where none was answered.
    """
    if not 2 <= num_pairs <= len(KEYS):
        raise ConfigError("--pairs", f"{num_pairs} pairs", f"name 2 to {len(KEYS)}")
    return asyncio.run(_ask_all(target, num_questions, seed, num_pairs))


async def _ask_all(target: RecallTarget, num_questions: int, seed: int, num_pairs: int) -> RecallScore:
    turn = asyncio.Semaphore(_AT_ONCE)
    problems: list[str] = []

    async def answer_of(text: str) -> str | None:
        async with turn:
            try:
                return await _answer(target, text)
            except HttpError as error:
                problems.append(str(error))
                return None

    prompts = recall_prompts(num_questions, num_pairs, seed)
    answers = await asyncio.gather(*(answer_of(prompt.text) for prompt in prompts))
    if problems and not any(answer is not None for answer in answers):
        raise ConfigError(target.address.url, f"no question was answered: {problems[0]}", "look into the server's log")
    right = sum(
        answer is not None and prompt.is_answered_by(answer) for prompt, answer in zip(prompts, answers, strict=True)
    )
    return RecallScore(right, len(prompts))


async def _answer(target: RecallTarget, text: str) -> str:
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": _MAX_TOKENS,
    }
    answer = await ask(target.address, "POST", "/v1/chat/completions", target.headers, orjson.dumps(body), _TIMEOUT_S)
    if answer.status != 200:
        raise HttpError(f"http_{answer.status}", message_of(bytes(answer.content)))
    try:
        return str(orjson.loads(bytes(answer.content))["choices"][0]["message"]["content"])
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        raise HttpError("not_openai", "the answer holds no message") from None
