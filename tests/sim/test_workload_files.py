"""Workload files: each format reads as what it says, and a bad row is refused with its line and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.errors import ConfigError
from colocate.workload.read import read_lengths, read_workload
from colocate.workload.rows import WorkloadRow, make_workload, to_jsonl


def write(tmp_path: Path, text: str, name: str = "load.txt") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_our_own_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        WorkloadRow(0.0, 100, 5, prefix=(1, 2), block_tokens=16, slo_class="chat"),
        WorkloadRow(0.5, 30, 7, session="a"),
        WorkloadRow(2.0, 60, 1, session="a"),
    ]
    path = tmp_path / "load.jsonl"
    path.write_bytes(to_jsonl(make_workload("load", rows)))
    assert list(read_workload(path).rows) == rows


def test_mooncake_times_are_milliseconds_and_ids_are_blocks(tmp_path: Path) -> None:
    path = write(tmp_path, '{"timestamp": 1500, "input_length": 1000, "output_length": 3, "hash_ids": [7, 8]}\n')
    assert read_workload(path).rows == (WorkloadRow(1.5, 1000, 3, (7, 8), 512),)


def test_azure_csv_and_lengths(tmp_path: Path) -> None:
    azure = write(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0.000,374,44\n4.315,396,109\n", "azure.csv")
    assert read_workload(azure).rows == (WorkloadRow(0.0, 374, 44), WorkloadRow(4.315, 396, 109))
    assert read_lengths(azure) == [(374, 44), (396, 109)]
    lengths = write(tmp_path, "prompt_tokens,output_tokens\n1086,208\n14,543\n", "lengths.csv")
    assert read_lengths(lengths) == [(1086, 208), (14, 543)]


OURS = '{"arrival_s": 1.0, "prompt_tokens": 10, "output_tokens": 2}\n'
HEAD = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("text", "line", "problem", "remedy"),
    [
        ("", "", "is empty", "a workload is"),
        ("\n\n", "", "is empty", "a workload is"),
        (HEAD, "", "holds no request", "at least one row"),
        (OURS + OURS.replace("1.0", "0.5"), "line 2", "arrives at 0.5 s, after a row of 1.0 s", "sort the rows"),
        (OURS.replace("1.0", "-0.1"), "line 1", "arrives at -0.1 s", "shift them"),
        (HEAD + "0,1,1\n1,2\n", "line 3", "'1,2' is not", "a time in seconds"),
        (HEAD + "nan,1,1\n", "line 2", "'nan,1,1' is not", "a time in seconds"),
        (HEAD + "0,1.5,1\n", "line 2", "'0,1.5,1' is not", "whole numbers"),
        (HEAD + "0,0,1\n", "line 2", "has 0 prompt", "at least 1"),
        (HEAD + "2,5,1\n1,5,1\n", "line 3", "after a row of 2.0 s", "sort the rows"),
        ("time,tokens\n0,1\n", "line 1", "unknown columns time,tokens", "headed arrival_s"),
        ("prompt_tokens,output_tokens\n5,5\n", "", "no arrival times", "--lengths"),
        (OURS + "{broken\n", "line 2", "not a request", "arrival_s, prompt_tokens"),
        (OURS.replace("prompt_tokens", "tokens"), "line 1", "not a request", "arrival_s, prompt_tokens"),
        ('{"timestamp": 0, "input_length": 5}\n', "line 1", "not a request", "timestamp, input_length"),
        (
            '{"timestamp": 0, "input_length": 100, "output_length": 1, "hash_ids": [1, 2, 3]}\n',
            "line 1",
            "3 hash ids for 100 tokens",
            "--block-tokens",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, line: str, problem: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_workload(write(tmp_path, text))
    assert line in refused.value.where
    assert problem in refused.value.problem
    assert remedy in refused.value.remedy


def test_a_missing_file_and_a_binary_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_workload(tmp_path / "none.csv")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text"):
        read_workload(tmp_path / "bytes")


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (WorkloadRow(1.0, 15, 1, session="a"), "already holds 15"),
        (WorkloadRow(1.0, 40, 1, prefix=(3,), session="a"), "later turn"),
    ],
)
def test_a_turn_that_contradicts_its_conversation_is_refused(second: WorkloadRow, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_workload("chat", [WorkloadRow(0.0, 10, 5, session="a"), second])
