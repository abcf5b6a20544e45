"""What the GPU suite computes without a GPU: floors, verdicts, its files, what it reads out of an event log."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from colocate.core.engine import Event
from colocate.core.outbox import Command
from colocate.messages.decode import DecodeRow, DecodeUpdate, StepReport, StepRow
from colocate.messages.prefill import PrefillBatch, PrefillDone, PrefillRow, PrefillRowDone
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model.config import ModelConfig, load_model_config
from colocate.model.layout import WeightLayout
from colocate.telemetry.event_log import LogRecord
from colocate.types import Role

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gpu import doctor, wheels
from gpu.floors import (
    Ceilings,
    Chunk,
    decode_bytes,
    decode_floor_s,
    decode_weight_bytes,
    floor_s,
    matrix_params,
    prefill_floor_s,
    prefill_flops,
)
from gpu.hand_over import read_hand_overs, step_cadence
from gpu.restart import first_after, settled_s
from gpu.sections import GROUP_LIMIT_S, GROUPS, SECTIONS, choose, estimate_s
from gpu.shapes import FULL, TINY, make_shapes
from gpu.sheet import GroupFile, SectionResult, Sheet, put_section, read_group, write_group
from gpu.targets import TARGETS, judge, target_rows, verdict_lines
from systems.peer import PeerJob
from systems.sglang import Sglang
from systems.vllm import Vllm

ROUND = Ceilings(bytes_per_s=4e12, flops_per_s=800e12)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    found = make_shapes(tmp_path_factory.mktemp("shapes"), FULL + TINY)
    return {name: load_model_config(path) for name, path in found.items()}


def test_shapes_have_the_published_sizes(models: dict[str, ModelConfig]) -> None:
    # The numbers of parameters that the model cards state: 8.03 and 8.19 billion.
    assert models["llama-3.1-8b"].num_params == 8_030_261_248
    assert models["qwen3-8b"].num_params == 8_190_735_360
    assert models["qwen3-8b"].qk_norm
    assert not models["llama-3.1-8b"].qk_norm
    assert {model.head_dim for name, model in models.items() if name in FULL} == {128}


def test_matrix_parameters_are_those_of_the_layout(models: dict[str, ModelConfig]) -> None:
    for model in models.values():
        layout = WeightLayout.of(model, "bfloat16")
        matrices = [e for e in layout.entries if len(e.shape) == 2 and e.name not in ("embed", "lm_head")]
        assert matrix_params(model) * 2 == sum(entry.nbytes for entry in matrices)
        (head,) = [entry for entry in layout.entries if entry.name == "lm_head"]
        assert decode_weight_bytes(model, "bfloat16") == matrix_params(model) * 2 + head.nbytes


def test_bytes_of_a_decode_step(models: dict[str, ModelConfig]) -> None:
    llama = models["llama-3.1-8b"]
    # 32 layers, keys and values, 8 heads of 128, 2 bytes: 128 KiB per token.
    one = decode_bytes(llama, "bfloat16", 1, 0)
    assert decode_bytes(llama, "bfloat16", 64, 2048) - one == (64 * 2049 - 1) * (128 << 10)
    # 15.01 GB of weights and 17.2 GB of KV at 4 TB/s.
    assert decode_floor_s(llama, "bfloat16", 64, 2048, ROUND) == pytest.approx(8.05e-3, rel=1e-2)


def test_flops_of_a_prefill(models: dict[str, ModelConfig]) -> None:
    llama = models["llama-3.1-8b"]
    head = 2 * llama.hidden_size * llama.vocab_size
    one = prefill_flops(llama, [Chunk(1)])
    assert one == 2 * matrix_params(llama) + head + 4 * 32 * 4096
    # Cut in two, a prompt has the same pairs of query and key, and one more row of logits.
    whole, parts = prefill_flops(llama, [Chunk(4096)]), prefill_flops(llama, [Chunk(1024), Chunk(3072, 1024)])
    assert parts - whole == head
    assert Chunk(3, 2).num_pairs == 3 + 4 + 5


def test_a_floor_is_the_slower_of_memory_and_arithmetic(models: dict[str, ModelConfig]) -> None:
    assert floor_s(4e12, 800e12 / 2, ROUND) == 1.0
    assert floor_s(4e12 / 2, 800e12, ROUND) == 1.0
    llama = models["llama-3.1-8b"]
    few, many = (prefill_floor_s(llama, "bfloat16", [Chunk(num)], ROUND) for num in (16, 8192))
    assert few == pytest.approx(15.0e9 / 4e12, rel=1e-2)  # the weights
    assert many == pytest.approx(2 * 6.98e9 * 8192 / 800e12, rel=0.2)  # the products, and attention


def test_every_target_is_judged_in_its_direction(tmp_path: Path) -> None:
    for target in TARGETS:
        step = target.goal * 0.01 or 0.01
        better = target.goal + (step if target.better == "higher" else -step)
        worse = target.goal - (step if target.better == "higher" else -step)
        assert target.is_met(target.goal)
        assert target.is_met(better)
        assert not target.is_met(worse)


def test_verdicts_name_what_was_not_measured_and_by_how_much_one_was_missed() -> None:
    data = {"targets": target_rows({"restart": (6.0, 0.0), "decode-bandwidth": (0.9, 1.0), "hand-over-bytes": (2, 0)})}
    group = GroupFile("live", True, "", sections={"restart": SectionResult("done", data=data)})
    found = {each.target.name: each for each in judge([group])}
    assert found["restart"].word == "missed by 20%"
    assert found["hand-over-bytes"].off == 2
    assert found["decode-bandwidth"].word == "met"
    assert found["concurrency"].word == "not measured"
    lines = verdict_lines(found.values())
    assert len(lines) == 1 + len(TARGETS)
    assert any("6 s" in line and "missed by 20%" in line for line in lines)


def test_a_section_cannot_invent_a_target() -> None:
    with pytest.raises(KeyError, match="no target"):
        target_rows({"speed": (1.0, None)})


def test_a_page_is_on_disk_after_every_figure(tmp_path: Path) -> None:
    path = tmp_path / "first.json"
    write_group(path, GroupFile("first", False, "command"))
    sheet = Sheet(path, "decode")
    sheet.put("ceilings", {"bytes_per_s": 4.0})
    sheet.add("points", {"batch": 1})
    sheet.add("points", {"batch": 2})
    put_section(path, "doctor", SectionResult("failed", error="Traceback"))

    found = read_group(path)

    assert found.sections["decode"].outcome == "running"
    assert found.sections["decode"].data == {"ceilings": {"bytes_per_s": 4.0}, "points": [{"batch": 1}, {"batch": 2}]}
    assert found.sections["doctor"].error == "Traceback"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "broken", [{"outcome": "fine"}, {"outcome": "done", "seconds": "3"}, {"outcome": "done", "figures": {}}]
)
def test_a_file_of_another_schema_is_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    path = tmp_path / "first.json"
    page = {"group": "first", "is_real": True, "command": "", "sections": {"doctor": broken}}
    path.write_text(json.dumps(page))
    with pytest.raises(msgspec.ValidationError):
        read_group(path)


def test_sections_fit_their_limits() -> None:
    assert estimate_s(choose(["first"])) < 240
    for group in GROUPS:
        assert estimate_s(choose([group])) < GROUP_LIMIT_S
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)
    assert not {section.name for section in SECTIONS} & set(GROUPS) - {"peers", "serving-llama", "serving-qwen"}
    assert next(section.name for section in choose(["decode", "first"])) == "environment"
    with pytest.raises(ValueError, match="no section"):
        choose(["decoding"])


PARAMS = SampleState(SamplingParams(max_tokens=4), 0)


def record(now_ns: int, event: Event, *commands: Command) -> LogRecord:
    return LogRecord(now_ns, event, msgspec.Raw(msgspec.msgpack.encode(list(commands))))


def test_a_hand_over_is_read_from_the_log() -> None:
    batch = PrefillBatch(1, [PrefillRow(7, 1, [1, 2, 3], 0, [4, 5], PARAMS)])
    join = DecodeUpdate(joins=[DecodeRow(7, 2, 9, 3, [4, 5, 6], PARAMS)])
    done = PrefillDone(1, [PrefillRowDone(7, 1, 9)], 50, 1_000, 1)
    first = StepReport(1, [StepRow(3, 1, 8)], started_ns=900, finished_ns=4_000)  # launched before the join was sent
    second = StepReport(2, [StepRow(3, 1, 8), StepRow(7, 2, 8)], started_ns=4_100, finished_ns=8_000)
    records = [
        record(10, StepReport(0, []), Command(Role.PREFILL, batch)),
        record(1_200, done, Command(Role.DECODE, join)),
        record(4_050, first),
        record(8_050, second),
    ]

    (found,) = read_hand_overs(records)

    assert found.seconds == pytest.approx(3.1e-6)
    assert found.beyond_s == pytest.approx(0.1e-6)  # the step under way took the rest
    assert found.same_blocks

    # A step launched after the join was sent is no excuse: that row should have been in it.
    late = [*records[:2], record(4_050, msgspec.structs.replace(first, started_ns=1_500)), records[3]]
    (found,) = read_hand_overs(late)
    assert found.beyond_s == found.seconds

    # Other blocks than those prefill wrote: KV was copied.
    moved = msgspec.structs.replace(join, joins=[msgspec.structs.replace(join.joins[0], block_table=[8, 9, 6])])
    (found,) = read_hand_overs([records[0], record(1_200, done, Command(Role.DECODE, moved)), *records[2:]])
    assert not found.same_blocks


def test_cadence_leaves_pauses_out() -> None:
    def step(number: int, started_ms: float, finished_ms: float, rows: int = 2) -> LogRecord:
        done = [StepRow(row, 1, 8) for row in range(rows)]
        return record(0, StepReport(number, done, [], [], int(started_ms * 1e6), int(finished_ms * 1e6)))

    steps = [step(1, 0, 5), step(2, 1, 10), step(3, 40, 45), step(4, 45.1, 50), step(5, 50, 58, rows=3)]
    assert step_cadence(steps) == {2: [pytest.approx(5e-3), pytest.approx(5e-3)]}


def test_when_a_worker_is_back() -> None:
    assert first_after([1.0, 2.0, 3.0, 4.0], 2.5) == 4.0  # the first may have been on its way
    assert first_after([1.0, 3.0], 2.5) == float("inf")
    eager, graphs = [(10.0 + n, 0.3) for n in range(3)], [(20.0 + n, 0.11) for n in range(6)]
    gaps = [(8.0, 0.1), (9.5, 1.5), *eager, *graphs]
    assert settled_s(gaps, normal=0.1, killed_s=8.0) == 24.0 - 8.0
    assert settled_s([*gaps[:2], *eager], normal=0.1, killed_s=8.0) is None
    assert settled_s([], 0.1, 0.0) is None


def test_the_doctors_figures_become_targets() -> None:
    plans = {"p84d48": {"shared": [3, 4]}, "p116d16": {"shared": []}}
    splits = {"a": [{"concurrency": value} for value in (0.97, 0.8, 0.99)], "b": [{"concurrency": 0.95}]}
    checks = [
        {"name": "disjoint", "status": "fail", "data": {"plans": plans}},
        {"name": "concurrent", "status": "pass", "data": {"splits": splits}},
        {"name": "switch", "status": "pass", "data": {"host_us": {"p99": 12.0}, "device_us": {"p99": 40.0}}},
        {"name": "hand_over", "status": "untestable", "data": {}},
    ]
    report = {"gpu": {"checks": checks}}
    found = doctor.measured(list(doctor.checks_of(report)))
    assert found["sm-overlap"][0] == 2
    assert found["concurrency"][0] == 0.95
    assert found["switch-host"][0] == pytest.approx(12e-6)
    assert "hand-over" not in found
    target_rows(found)


def test_peers_are_asked_for_the_same_thing(tmp_path: Path) -> None:
    job = PeerJob(model_dir=tmp_path, max_num_seqs=128, chunk_tokens=2048, max_model_len=4096)
    for system, chunk, rows in (
        (Vllm(), "--max-num-batched-tokens", "--max-num-seqs"),
        (Sglang(), "--chunked-prefill-size", "--max-running-requests"),
    ):
        words = system.command(job, 8123)
        assert words[words.index(chunk) + 1] == "2048"
        assert words[words.index(rows) + 1] == "128"
        assert words[words.index("--load-format") + 1] == "dummy"
        assert words[words.index("--port") + 1] == "8123"
        cached = system.command(replace(job, prefix_caching=True), 8123)
        assert cached != words
        assert system.stream_options["continuous_usage_stats"]


def test_wheels_are_pinned_and_leave_out_what_is_there(tmp_path: Path) -> None:
    names = wheels.wanted()
    assert {"msgspec", "pyzmq", "triton", "scipy"} <= {wheels.canonical(name) for name in names}
    assert len(names) == len({wheels.canonical(name) for name in names})
    words = wheels.download_arguments(["pyzmq", "Jinja2"], "3.12", ["manylinux_2_28_x86_64"], tmp_path)
    pins = wheels.pinned()
    assert words[-2:] == [pins["pyzmq"], pins["jinja2"]]
    assert words[words.index("--python-version") + 1] == "3.12"
    assert "--no-deps" in words
    unpinned = [name for name in names if wheels.canonical(name) not in pins]
    assert unpinned == []
