"""What `colocate bench` prints of a run folder."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from colocate.bench.records import RequestRow, ServerSample, Stages, TargetFacts
from colocate.cli.bench_figures import show
from tests.bench_rows import row, run, write_run


def printed(folder: Path, rows: Sequence[RequestRow], samples: Sequence[ServerSample] = (), **changes: object) -> str:
    """Runs of blanks are one."""
    write_run(folder, run(rows, samples, **changes))
    text = io.StringIO()
    show(folder, Console(file=text, width=120, soft_wrap=True, highlight=False, markup=False))
    return re.sub(" +", " ", text.getvalue())


def test_latencies_with_the_stages_that_the_server_told(tmp_path: Path) -> None:
    stages = Stages(0.001, 0.05, 0.1, 0.04, 0.002)
    text = printed(tmp_path, [row(0, 2.0, (2.2, 2.24), stages=stages), row(1, 3.0, (3.2, 3.24), stages=stages)])
    assert "ms p50 p90 p99 p99.9 mean" in text
    assert "TTFT 200.0 200.0 200.0 - 200.0" in text  # p99.9 of two values is no figure
    for name, value in (("tokenize", "1.0"), ("queue", "50.0"), ("prefill", "100.0"), ("decode", "40.0")):
        assert f"server: {name} {value}" in text
    assert (tmp_path / "figures.json").is_file()


def test_a_p99_9_that_has_its_evidence_is_shown(tmp_path: Path) -> None:
    gaps = [2.0 + index * 0.001 for index in range(1002)]
    assert "ITL 1.0 1.0 1.0 1.0 1.0" in printed(tmp_path, [row(0, 1.9, gaps)])


def test_the_server_is_shown_as_far_as_it_tells(tmp_path: Path) -> None:
    rows = [row(0, 2.0, (2.2, 2.24), cached_tokens=25)]
    silent = printed(tmp_path / "silent", [row(0, 2.0, (2.2, 2.24))])
    samples = [
        ServerSample(2.0, kv_usage=0.25, preemptions=1, switches=4, power_w=300.0, resident_bytes=3 << 20),
        ServerSample(3.0, kv_usage=0.75, preemptions=3, switches=4, power_w=500.0),
    ]
    told = printed(tmp_path / "told", rows, samples)
    for line in (
        "found in the prefix cache 25.0%",
        "KV in use, mean and peak 50.0%, 75.0%",
        "preemptions 2",
        "switches of plan 0",
        "power of the device, W 400",
        "joules per output token 200",  # 400 W for one second, two tokens
        "memory of the server, peak 3 MiB",
    ):
        assert line in told, line
        assert line.rpartition(" ")[0] not in silent


def test_a_server_that_ended_is_named_and_one_that_stumbled_is_not(tmp_path: Path) -> None:
    gone = {"outcome": "failed", "error_kind": "refused", "error": "Connection refused", "status": 0}
    good = row(0, 2.0, (2.2, 2.24))
    ended = printed(tmp_path / "ended", [good, row(1, 3.5, **gone), row(2, 4.0, **gone)])
    assert "note: the server had ended: from 3.5 s on nobody listened, 2 requests count as failed" in ended
    assert "failures 2 failed: refused" in ended
    assert "refused: Connection refused" in ended
    stumbled = printed(tmp_path / "stumbled", [good, row(1, 3.5, **gone), row(2, 4.0, (4.1, 4.2))])
    assert "nobody listened" not in stumbled


def test_a_class_that_nobody_defined_is_named(tmp_path: Path) -> None:
    text = printed(tmp_path, [row(0, 2.0, (2.2,), slo_class="batch"), row(1, 3.0, (3.2,))])
    assert "note: no --slo-class defines batch: judged as chat" in text
    assert "no --slo-class defines" not in printed(tmp_path / "known", [row(0, 2.0, (2.2,), slo_class="chat")])


def test_names_with_brackets_are_printed_as_they_are(tmp_path: Path) -> None:
    target = TargetFacts("http://127.0.0.1:8000", "vllm", "org/[bold]model", version="1.0[cpu]")
    assert "vllm 1.0[cpu], model org/[bold]model" in printed(tmp_path, [row(0, 2.0, (2.2,))], target=target)
