"""Answers of two runs held against each other, and recall asked over HTTP of an engine that says what we want."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from colocate.bench.quality import Agreement, agreement, chat_server, compare_answers, first_difference, recall_score
from colocate.bench.read import Run
from colocate.bench.records import RequestRow
from colocate.cli.recall import run_recall
from colocate.errors import ConfigError
from colocate.messages.client import Submit
from colocate.workload.recall import KEYS, recall_prompts
from tests.bench_rows import manifest
from tests.byte_tokenizer import write_model_dir
from tests.frontend_harness import RunningFrontend, start_frontend


def row(index: int, ids: tuple[int, ...] | None, outcome: str = "finished") -> RequestRow:
    fields = {"index": index, "scheduled_s": 0.0, "phase": "measured", "prompt_tokens": 1, "max_tokens": 4}
    return msgspec.convert({**fields, "outcome": outcome, "token_ids": ids}, RequestRow)


def run(*rows: RequestRow, **changes: object) -> Run:
    return Run(Path("run"), msgspec.structs.replace(manifest(), **changes), rows)


def test_by_hand() -> None:
    reference = run(row(0, (1, 2, 3, 4)), row(1, (5, 6)), row(2, (7, 8, 9)), row(3, (1,)), row(4, None, "failed"))
    other = run(row(0, (1, 2, 3, 4)), row(1, (5, 9)), row(2, (7, 8)), row(3, None, "timed_out"), row(4, (3,)))
    assert agreement(other, reference) == Agreement(
        compared=3,
        left_out=2,
        identical=1,
        identical_share=1 / 3,
        tokens=9,
        equal_tokens=4 + 1 + 2,
        equal_token_share=7 / 9,
        first_difference=1,
        median_difference=1.5,
    )
    assert agreement(reference, reference).identical_share == agreement(reference, reference).equal_token_share == 1


@pytest.mark.parametrize(
    ("own", "theirs", "first"), [([], [], None), ([1], [1], None), ([1], [2], 0), ([1], [1, 2], 1), ([1, 2], [1], 1)]
)
def test_the_first_difference(own: list[int], theirs: list[int], first: int | None) -> None:
    assert first_difference(own, theirs) == first


def test_nothing_compares() -> None:
    empty = compare_answers({1: [1]}, {2: [1]}, 1)
    assert (empty.compared, empty.left_out, empty.identical_share, empty.equal_token_share) == (0, 1, None, None)


@pytest.mark.parametrize("changes", [{"workload_sha256": "other"}, {"seed": 99}])
def test_runs_that_did_not_ask_the_same_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="do not compare"):
        agreement(run(row(0, (1,)), **changes), run(row(0, (1,))))
    with pytest.raises(ConfigError, match="kept its token ids"):
        agreement(run(row(0, None)), run(row(0, (1,))))


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[RunningFrontend]:
    frontend = start_frontend(write_model_dir(tmp_path), max_model_len=4096)
    yield frontend
    frontend.stop()


def knows_all_but(mistakes: int) -> object:
    """Answers the questions of seed 4 but for so many, by finding each in the prompt it was sent."""
    prompts = recall_prompts(10, 16, seed=4)

    def token(submit: Submit, position: int) -> int:
        text = bytes(token_id for token_id in submit.prompt_token_ids if token_id < 256).decode()
        (number,) = [number for number, prompt in enumerate(prompts) if prompt.text in text]
        prompt = prompts[number]
        value = prompt.answer if number >= mistakes else f"{(int(prompt.answer) + 1) % 1000:03d}"
        said = f"You said {prompt.key} = {value}.".encode()
        return said[position] if position < len(said) else 257

    return token


def test_right_answers_are_counted(frontend: RunningFrontend, capsys: pytest.CaptureFixture[str]) -> None:
    frontend.script.token = knows_all_but(0)  # type: ignore[assignment]
    server = chat_server(frontend.url)
    assert recall_score(server, 10, seed=4) == (10, 10)
    frontend.script.token = knows_all_but(3)  # type: ignore[assignment]
    assert recall_score(server, 10, seed=4) == (7, 10)
    assert run_recall(frontend.url, None, None, 10, 4, 16) == 1
    assert "7 of 10" in capsys.readouterr().out


def test_no_answer_is_a_wrong_answer(frontend: RunningFrontend) -> None:
    frontend.script.fail_at = 0
    with pytest.raises(ConfigError, match="no question was answered"):
        recall_score(chat_server(frontend.url), 3)


def test_refusals(frontend: RunningFrontend) -> None:
    with pytest.raises(ConfigError, match="nobody answers"):
        chat_server("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="has no model 'other'"):
        chat_server(frontend.url, "other")
    with pytest.raises(ConfigError, match="pairs"):
        recall_score(chat_server(frontend.url), 1, num_pairs=len(KEYS) + 1)
