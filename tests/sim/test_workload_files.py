"""Workload files: each format reads as what it says, and a bad row is refused with its line and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.errors import ConfigError
from colocate.workload.read import Reading, read_lengths, read_trace, read_workload
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
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST_3 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


@pytest.mark.parametrize(
    "times",
    [
        ("2023-11-16 18:15:46.6805900", "2023-11-16 18:15:50.9951690"),
        ("2024-05-10 23:59:58.000000+00:00", "2024-05-11 00:00:02.314579+00:00"),
    ],
)
def test_raw_azure_times_count_from_the_first_row(tmp_path: Path, times: tuple[str, str]) -> None:
    path = write(tmp_path, f"{AZURE}{times[0]},374,44\r\n{times[1]},396,109\r\n")
    first, second = read_workload(path).rows
    assert first == WorkloadRow(0.0, 374, 44)
    assert second.arrival_s == pytest.approx(4.314579, abs=1e-6)


def test_burstgpt_conversations_hold_while_their_prompts_grow(tmp_path: Path) -> None:
    turns = [(100, "a", 10, 5), (101, "", 7, 7), (102, "a", 20, 5), (103, "a", 20, 5), (104, "a", 40, 5)]
    text = "".join(f"{at}.0,{name},3,GPT-4,{prompt},{out},0,x\n" for at, name, prompt, out in turns)
    rows = read_workload(write(tmp_path, BURST_3 + text)).rows
    assert [row.arrival_s for row in rows] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [row.session for row in rows] == ["a", "", "a", "a/2", "a/2"]


def test_columns_are_found_by_name_and_others_are_let_be(tmp_path: Path) -> None:
    path = write(tmp_path, "output_tokens, note ,arrival_s,prompt_tokens\n5,x,0.5,9\n\n6,y,0.5,8\n")
    assert read_workload(path).rows == (WorkloadRow(0.5, 9, 5), WorkloadRow(0.5, 8, 6))


def test_failed_requests_are_left_out_and_counted_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path, BURST + "5,GPT-4,9,9,18,API log\n6,GPT-4,9,0,9,API log\n8,GPT-4,7,3,10,API log\n")
    trace = read_trace(path, Reading(skip_empty=True))
    assert [row.arrival_s for row in trace.workload.rows] == [0.0, 3.0]
    assert (trace.num_skipped, trace.format) == (1, "BurstGPT")


def test_an_unsorted_trace_is_sorted_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE + "2024-05-10 00:00:09,5,7\n2024-05-10 00:00:08,6,7\n2024-05-10 00:00:10,7,7\n")
    rows = read_trace(path, Reading(sort=True)).workload.rows
    assert [(row.arrival_s, row.prompt_tokens) for row in rows] == [(0.0, 6), (1.0, 5), (2.0, 7)]


def test_what_arrives_late_is_not_even_read(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "0,5,5\n1,5,5\n2,5,5\nnot a row\n")
    load = read_workload(path, until_s=1.5)
    assert (len(load.rows), load.duration_s) == (2, 1.5)
    with pytest.raises(ConfigError, match="line 5"):
        read_workload(path)
    with pytest.raises(ConfigError, match=r"nothing of load\.txt arrives before"):
        read_workload(write(tmp_path, HEAD + "3,5,5\n"), until_s=1.5)


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    "text",
    [
        '[{"conversations": [{"from": "human", "value": "a b c"}, {"from": "gpt", "value": "d e"}]},\n'
        '{"conversations": [{"from": "human", "value": "alone"}]}]',
        '{"conversations": [{"role": "user", "content": "a b c"}, {"role": "assistant", "content": "d e"}]}\n',
        '{"prompt": "a b c", "output_len": 2}\n',
        '{"prompt": "a b c", "output_tokens": 2}\n\n',
        '[{"prompt_len": 3, "output_len": 2}, {"prompt_len": 3, "output_len": 0}]',
    ],
)
def test_datasets_give_their_lengths(tmp_path: Path, text: str) -> None:
    assert read_lengths(write(tmp_path, text), words) == [(3, 2)]


@pytest.mark.parametrize(
    ("text", "where", "problem", "remedy"),
    [
        (
            '{"prompt": "a b", "output_len": 2}\n{"prompt": "a"}\n',
            "line 2",
            "lacks the field output_len",
            "an entry is",
        ),
        ('[{"output_len": 2}]', "entry 1", "lacks the field prompt", "an entry is"),
        ('[{"prompt": "a", "output_len": "2"}]', "entry 1", "output_len is '2'", "whole number"),
        ('[{"prompt_len": -1, "output_len": 2}]', "entry 1", "prompt_len is -1", "whole number"),
        ('[{"conversations": [{"said": "a"}, {}]}]', "entry 1", "a turn without value", "an entry is"),
        ("[]", "", "no prompt that has an answer", "an entry is"),
        ("[3]", "entry 1", "is not an object", "an entry is"),
        ("[{]", "", "is not JSON", "an entry is"),
    ],
)
def test_bad_datasets_are_refused(tmp_path: Path, text: str, where: str, problem: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_lengths(write(tmp_path, text), words)
    assert where in refused.value.where
    assert problem in refused.value.problem
    assert remedy in refused.value.remedy


def test_texts_need_somebody_who_counts_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody says how many tokens"):
        read_lengths(write(tmp_path, '[{"prompt": "a", "output_len": 2}]'))


@pytest.mark.parametrize(
    ("text", "line", "problem", "remedy"),
    [
        ("", "", "is empty", "a workload is"),
        ("\n\n", "", "is empty", "a workload is"),
        (HEAD, "", "holds no request", "at least one row"),
        (OURS + OURS.replace("1.0", "0.5"), "line 2", "arrives at 0.5 s, after a row of 1.0 s", "sort the rows"),
        (OURS.replace("1.0", "-0.1"), "line 1", "arrives at -0.1 s", "shift them"),
        (HEAD + "0,1,1\n1,2\n", "line 3", "'1,2' has 2 fields where the header names 3", "output_tokens"),
        (HEAD + "nan,1,1\n", "line 2", "arrival_s is 'nan', not a time", "seconds after the start"),
        (HEAD + "0,1.5,1\n", "line 2", "prompt_tokens is '1.5', not a number", "whole number"),
        (HEAD + "0,0,1\n", "line 2", "has 0 prompt", "at least 1"),
        (HEAD + "0,-3,1\n", "line 2", "has -3 prompt", "at least 1"),
        (HEAD + "0,5,\n", "line 2", "output_tokens is '', not a number", "whole number"),
        ("arrival_s,prompt_tokens\n0,1\n", "line 1", "lacks the column output_tokens", "arrivals is headed"),
        (AZURE + "2024-05-10 00:00:00.009930+00:00,0,7\n", "line 2", "has 0 prompt", "--skip-empty"),
        (AZURE + "2024-05-10,5,-7\n", "line 2", "has 5 prompt and -7 output", "at least 1"),
        (AZURE + "yesterday,5,7\n", "line 2", "TIMESTAMP is 'yesterday', not a time", "2024-05-10 00:00:00"),
        (
            AZURE + "2024-05-10 00:00:09,5,7\n2024-05-10 00:00:08,5,7\n",
            "line 3",
            "arrives at -1.0 s, after a row of 0.0 s",
            "--sort",
        ),
        (AZURE.replace(",GeneratedTokens", ""), "line 1", "lacks the column GeneratedTokens", "Azure LLM is headed"),
        (
            BURST + "5,ChatGPT,300,0,300,API log\n",
            "line 2",
            "300 prompt and 0 output tokens: a request that failed",
            "--skip",
        ),
        (BURST + "5,ChatGPT,300\n", "line 2", "has 3 fields where the header names 6", "Request tokens"),
        ('[{"prompt_len": 5, "output_len": 6}]', "", "no arrival times", "--lengths"),
        (HEAD + "2,5,1\n1,5,1\n", "line 3", "after a row of 2.0 s", "sort the rows"),
        ("time,tokens\n0,1\n", "line 1", "unknown columns time,tokens", "headed arrival_s"),
        ("prompt_tokens,output_tokens\n5,5\n", "", "no arrival times", "--lengths"),
        (OURS + "{broken\n", "line 2", "not a request", "arrival_s, prompt_tokens"),
        (OURS.replace("prompt_tokens", "tokens"), "line 1", "not a request", "arrival_s, prompt_tokens"),
        (
            '{"timestamp": 0, "input_length": 5}\n',
            "line 1",
            "required field `output_length`",
            "timestamp, input_length",
        ),
        (
            '{"input_length": 5, "output_length": 5}\n',
            "line 1",
            "required field `timestamp`",
            "timestamp, input_length",
        ),
        (OURS + '{"arrival_s": 2.0, "prompt_tokens": 5}\n', "line 2", "required field `output_tokens`", "arrival_s"),
        (OURS.replace("}", ', "words": 3}'), "line 1", "unknown field `words`", "arrival_s, prompt_tokens"),
        ("arrival_s,output_tokens\n0,1\n", "line 1", "lacks the column prompt_tokens", "arrivals is headed"),
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
    for data in (b"\xff\xfe\x00", HEAD.encode("utf-16"), b"\x1f\x8b\x08\x00", HEAD.encode() + b"0,5,5\n\xe9,5,5\n"):
        (tmp_path / "bytes").write_bytes(data)
        with pytest.raises(ConfigError, match="is not text"):
            read_workload(tmp_path / "bytes")


def test_a_mark_of_byte_order_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "load.csv").write_bytes(b"\xef\xbb\xbf" + HEAD.encode() + b"0,5,6\n")
    assert read_workload(tmp_path / "load.csv").rows == (WorkloadRow(0.0, 5, 6),)


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
