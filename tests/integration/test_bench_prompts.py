"""What the client sends: exact token counts, shared prefixes, and turns that hold their answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.bench.run import run_bench
from colocate.workload.patterns import PATTERNS
from colocate.workload.recipe import Recipe, cook
from colocate.workload.rows import WorkloadRow
from tests.bench_runs import load_of, plan_for, rows_in
from tests.golden_server import (
    FIRST_ID,
    Script,
    count_prompt,
    golden_process,
)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("has_tokenize", [True, False])
def test_text_prompts_have_exactly_the_tokens_planned(tmp_path: Path, endpoint: str, has_tokenize: bool) -> None:
    rows = [WorkloadRow(index / 100, 20 + 7 * index, 2) for index in range(10)]
    script = Script(takes_ids=False, has_tokenize=has_tokenize, tells="usage")
    with golden_process(script) as golden:
        manifest = run_bench(plan_for(golden, tmp_path / "run", load_of(*rows), endpoint=endpoint), quiet=True)
        sent = golden.runs()
    field = "messages" if endpoint == "chat" else "prompt"
    assert [count_prompt({field: each.prompt}) for each in sent] == [row.prompt_tokens for row in rows]
    assert manifest.client["prompt_counts"] == {"told": 10, "off": 0, "largest_error": 0}


def test_equal_prefixes_are_equal_text_and_seeds_differ(tmp_path: Path) -> None:
    rows = [WorkloadRow(index / 100, 40, 1, prefix=(index % 2,), block_tokens=16) for index in range(4)]
    texts = []
    for seed in (0, 0, 1):
        with golden_process(Script(takes_ids=False)) as golden:
            run_bench(plan_for(golden, tmp_path / str(len(texts)), load_of(*rows), seed=seed), quiet=True)
            texts.append([each.prompt.split() for each in golden.runs()])
    first, again, other = texts
    assert first == again != other
    assert first[0][:16] == first[2][:16] != first[1][:16]
    assert first[0] != first[2]


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_later_turn_waits_for_the_answer_and_holds_it(tmp_path: Path, endpoint: str) -> None:
    rows = (WorkloadRow(0.0, 30, 4, session="a"), WorkloadRow(0.0, 60, 3, session="a"))
    script = Script(delays_s=(0.05,), takes_ids=endpoint == "completions")
    with golden_process(script) as golden:
        run_bench(plan_for(golden, tmp_path / "run", load_of(*rows), endpoint=endpoint), quiet=True)
        first, second = (each.prompt for each in golden.runs())
    one, two = rows_in(tmp_path / "run")
    assert one.end_s is not None
    assert two.sent_s is not None
    assert two.sent_s >= two.scheduled_s >= one.end_s
    assert (one.outcome, two.outcome) == ("finished", "finished")
    if endpoint == "completions":
        assert len(second) == 60
        assert second[:34] == [*first, *range(FIRST_ID, FIRST_ID + 4)]
    else:
        assert [message["role"] for message in second] == ["user", "assistant", "user"]
        assert second[1]["content"] == " w0 w1 w2 w3"
        assert count_prompt({"messages": second}) == 60


@pytest.mark.parametrize("pattern", [*PATTERNS])
def test_patterns_are_served_with_their_lengths(tmp_path: Path, pattern: str) -> None:
    load = cook(Recipe(rates=(40.0,), lengths=("20/3",), pattern=pattern, duration_s=0.5), 3)
    with golden_process() as golden:
        run_bench(plan_for(golden, tmp_path / "run", load), quiet=True)
        sent = golden.runs()
    assert [len(each.prompt) for each in sent] == [row.prompt_tokens for row in load.rows]
    assert {row.outcome for row in rows_in(tmp_path / "run")} == {"finished"}
