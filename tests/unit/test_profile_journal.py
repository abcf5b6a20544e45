"""The journal: whole lines only, and only of the same run."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from colocate.core.plan import build_plan_table
from colocate.errors import ConfigError
from colocate.runtime.profiling.journal import Header, Journal, Measured, Visit, header_of, read_journal
from colocate.runtime.profiling.schedule import all_setups
from tests.profiling_world import CONFIG, FACTS, job


def header() -> Header:
    return header_of(CONFIG, FACTS, job(Path("j")))


def write(path: Path, count: int) -> list[Visit]:
    journal = Journal(path, header())
    for number in range(count):
        journal.append(Visit("setup", number, float(number), 0.0, [Measured("decode", 1, 0, 10.5, 1, [0.25, 0.5])]))
    journal.close()
    return journal.visits


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    visits = write(tmp_path / "deep" / "j.jsonl", 3)
    assert read_journal(tmp_path / "deep" / "j.jsonl")[1] == visits


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_cut_short_is_dropped_and_the_next_one_starts_clean(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j.jsonl"
    visits = write(path, 3)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path, header())
    assert journal.visits == visits[:2] and journal.spent_s == 1.0
    journal.append(visits[2])
    journal.close()
    assert read_journal(path)[1] == visits


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "other"), ("units", 8), ("max_num_seqs", 1), ("seed", 7), ("colocate", "9.9"), ("decode_shares", (8,))],
)
def test_another_run_is_not_mixed_in(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "j.jsonl"
    write(path, 1)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=f"{name} .*--no-resume"):
        Journal(path, structs.replace(header(), **{name: value}))
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{}\n", b"not json\n", b'{"type":"Visit"}\n'])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="--no-resume"):
        Journal(path, header())


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    write(path, 1)
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":99'))
    with pytest.raises(ConfigError, match="version 99"):
        read_journal(path)


def test_the_armed_splits_of_a_run_can_be_told_from_its_journal(tmp_path: Path) -> None:
    facts = structs.replace(FACTS, total_units=132, unit_granularity=8, decode_shares=(16, 48))
    Journal(tmp_path / "j.jsonl", header_of(CONFIG, facts, job(Path("j")))).close()
    found, _, _ = read_journal(tmp_path / "j.jsonl")
    setups = all_setups(build_plan_table(found.units, found.granularity, found.decode_shares))
    assert setups == all_setups(build_plan_table(132, 8, (16, 48)))
    assert {setup.name for setup in setups} >= {"decode on 16", "decode on 48", "decode on 132", "both under p84d48"}
    assert "decode on 24" not in {setup.name for setup in setups}
