"""The share that a cache without bounds finds, against a comparison of every prompt's tokens with all before it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colocate.workload.prompts import lay_out, plain_tokens
from colocate.workload.rows import WorkloadRow
from colocate.workload.sharing import shared_tokens

BLOCK = 8
SINGLE = st.tuples(st.lists(st.integers(0, 2), max_size=4), st.integers(1, 40), st.none())
TURN = st.tuples(st.just([]), st.integers(1, 20), st.sampled_from("ab"))


def rows_of(drawn: list[tuple[list[int], int, str | None]]) -> list[WorkloadRow]:
    held: dict[str, int] = {}
    rows: list[WorkloadRow] = []
    for ids, own, session in drawn:
        prompt = own + held.get(session, 0) if session else own
        rows.append(WorkloadRow(float(len(rows)), prompt, 3, tuple(ids), BLOCK, session=session or ""))
        if session:
            held[session] = prompt + 3
    return rows


def common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@given(st.lists(SINGLE | TURN, min_size=1, max_size=12))
def test_what_is_found_is_the_longest_common_beginning(drawn: list[tuple[list[int], int, str | None]]) -> None:
    rows = rows_of(drawn)
    seen: list[list[int]] = []
    expected: list[int] = []
    for row, layout in zip(rows, lay_out(rows), strict=True):
        tokens = plain_tokens(layout.pieces)
        expected.append(max((common(tokens, before) for before in seen), default=0))
        seen.append(tokens + plain_tokens([(layout.answer, row.output_tokens)]))
    assert shared_tokens(rows) == expected
