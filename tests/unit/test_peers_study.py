"""What the comparison with other servers computes without one: weights, gaps, tables, and what is not installed."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from outside_tool import (
    LOADS,
    PROFILE,
    SLOW,
    Load,
    bench_command,
    bench_figures,
    compare,
    device_flags,
    furthest,
    guidellm_command,
    guidellm_figures,
)
from outside_tool import table as rulers_table
from peer_arms import BEST_CHUNKS, CHUNKED, SETTINGS, chunk_arms, installed, read_best, rule, study_arms
from peer_figures import Seen, best_chunks, figures, medians, notes, split_gaps, table
from peer_model import name_every_id, write_peer_model
from peers import prompt_load, report, report_of
from random_model import DEMO, SHAPES
from safetensors.numpy import load_file
from systems.gguf_export import CONTROL, NORMAL, UNUSED, gguf_name, merges, rotary_rows, vocabulary
from systems.llama_cpp import LlamaCpp, export_gguf, read_version
from systems.peer import PeerJob, PeerServer, PeerSystem, package_version
from systems.sweep_config import document, peers
from systems.transformers_serve import TransformersServe
from systems.vllm import Vllm
from tokenizers import Tokenizer

from colocate.bench.records import RequestRow
from colocate.bench.systems.command import CommandSystem, parse_peers
from colocate.config.profile import load_profile

VARIABLES = ("PEER_VLLM_PYTHON", "PEER_TRANSFORMERS_PYTHON", "PEER_LLAMA_SERVER", "PEER_SGLANG_PYTHON")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / "absent"))


def test_rows_change_places_so_that_both_rotations_agree() -> None:
    """A dot product of rotated q and k is the same: halves on the rows as they were, neighbours on the rows moved."""
    rng = np.random.default_rng(0)
    heads, head_dim, hidden = 3, 8, 5
    q_rows, k_rows = rng.standard_normal((2, heads * head_dim, hidden)).astype(np.float32)
    x = rng.standard_normal((2, hidden))
    angles = 7.0 * 10000.0 ** (-np.arange(head_dim // 2) / (head_dim // 2))
    cos, sin = np.cos(angles), np.sin(angles)

    def halves(rows: np.ndarray, at: int) -> np.ndarray:
        a, b = np.split((rows @ x[at]).reshape(heads, head_dim), 2, axis=1)
        return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=1)

    def neighbours(rows: np.ndarray, at: int) -> np.ndarray:
        pairs = (rows @ x[at]).reshape(heads, head_dim // 2, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        return np.stack((a * cos - b * sin, b * cos + a * sin), axis=2)

    moved = rotary_rows(q_rows, heads), rotary_rows(k_rows, heads)
    unrotated = (x[1] @ k_rows.T).reshape(heads, head_dim)
    expected = (halves(q_rows, 0) * unrotated).sum(1)
    found = (neighbours(moved[0], 0).reshape(heads, -1) * (x[1] @ moved[1].T).reshape(heads, head_dim)).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.array_equal(moved[0], q_rows)


def test_every_tensor_of_a_llama_has_a_name() -> None:
    assert gguf_name("model.layers.11.self_attn.q_proj.weight") == "blk.11.attn_q.weight"
    assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    for name in ("model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_norm.weight", "visual.weight"):
        with pytest.raises(ValueError, match="not a tensor of a Llama"):
            gguf_name(name)


def test_the_vocabulary_has_every_id_once() -> None:
    tokenizer = {
        "model": {"vocab": {"<s>": 0, "a": 1, "b": 2}, "merges": [["a", "b"], "a a"]},
        "added_tokens": [{"id": 0, "content": "<s>", "special": True}, {"id": 4, "content": "w", "special": False}],
    }
    tokens, types = vocabulary(tokenizer, 5)
    assert tokens == ["<s>", "a", "b", "[unused3]", "w"]
    assert types == [CONTROL, NORMAL, NORMAL, UNUSED, NORMAL]
    assert merges(tokenizer) == ["a b", "a a"]


def test_words_for_every_id_leave_texts_as_they_were() -> None:
    before = json.loads((DEMO / "tokenizer.json").read_text())
    after = name_every_id(before, 4096)
    old, new = (Tokenizer.from_str(json.dumps(each)) for each in (before, after))
    text = "the first 12 words = 3 w2100 others"
    assert new.encode(text).ids == old.encode(text).ids
    assert new.get_vocab_size() == 4096
    assert [new.decode([index]).strip() for index in (2048, 4095)] == ["w2048", "w4095"]
    assert all(new.decode([index]) for index in range(300, 4096))


def test_the_model_of_the_study_never_ends_an_answer_by_itself(tmp_path: Path) -> None:
    folder = write_peer_model(tmp_path / "model", "30M")
    for name in ("config.json", "generation_config.json"):
        assert "eos_token_id" not in json.loads((folder / name).read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SHAPES["30M"].vocab
    rows = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    silent = [index for index, row in enumerate(rows) if not row.any()]
    assert {0, 1, 2, 3, 4, 5} < set(silent) < set(range(300))
    assert all(tokenizer.decode([index]).strip() for index in range(len(rows)) if index not in silent)


def row(
    scheduled_s: float, token_s: tuple[float, ...], phase: str = "measured", outcome: str = "finished"
) -> RequestRow:
    return RequestRow(
        index=0, scheduled_s=scheduled_s, phase=phase, prompt_tokens=16, max_tokens=4, outcome=outcome,
        sent_s=scheduled_s, token_s=token_s, output_tokens=len(token_s),
    )  # type: ignore[arg-type]  # fmt: skip


def test_gaps_are_split_by_the_prompts_that_they_touch() -> None:
    stream = row(0.0, (1.0, 2.0, 3.5, 4.0, 5.0, 9.0), outcome="cut_off")
    seen = Seen([stream], [row(2.5, (3.0,))], 1.5, 6.0)
    # 2.0 .. 3.5 holds the prompt; 5.0 .. 9.0 ends outside.
    assert split_gaps(seen) == ([0.5, 1.0, 1.0], [1.5])
    # One that was never answered is being prefilled to the end.
    seen = Seen([stream], [row(3.8, (), outcome="cut_off")], 1.5, 6.0)
    assert split_gaps(seen) == ([1.0, 1.5], [0.5, 1.0])


def test_figures_of_a_round_and_their_medians() -> None:
    stream = row(0.0, (1.0, 2.0, 3.5, 4.0, 5.0, 9.0), outcome="cut_off")
    seen = Seen([stream], [row(0.5, (0.9,), "warmup"), row(2.5, (3.0,)), row(4.5, (), outcome="cut_off")], 1.5, 6.0)
    found = figures(seen)
    assert found["ttft_p50_s"] == 0.5  # neither the warm-up's nor the unanswered one's
    assert (found["num_prompts"], found["num_prompts_unanswered"], found["num_failed"]) == (2, 1, 0)
    assert found["output_tokens_per_s"] == pytest.approx(4 / 4.5)
    empty = figures(Seen([], [], 0.0, 1.0))
    assert empty["ttft_p50_s"] is None and empty["output_tokens_per_s"] == 0.0
    assert medians([{"a": 1.0, "b": None}, {"a": 3.0, "b": 5.0}]) == {"a": 2.0, "b": 5.0}
    assert medians([{"start_s": 40.0}, {"start_s": 12.0}]) == {"start_s": 12.0}  # the first one compiled


def test_long_prompts_come_after_the_warm_up_and_end_inside() -> None:
    for study in SETTINGS.values():
        load = prompt_load(study)
        due_s = [each.arrival_s for each in load.rows]
        assert due_s[0] < study.warmup_s < due_s[1]
        assert load.duration_s - due_s[-1] >= study.every_s / 2


def test_the_table_sets_ratios_beside_ours() -> None:
    ours = {"ttft_p50_s": 2.0, "itl_prefill_p99_s": 0.02, "output_tokens_per_s": 100.0, "memory_bytes": 2.0**30}
    lines = table({"colocate elastic": ours, "other": ours | {"ttft_p50_s": 1.0, "memory_bytes": None}}).splitlines()
    assert "2,000 ms |" in lines[2] and "x)" not in lines[2]
    assert "1,000 ms (0.50x)" in lines[3] and "20.0 ms (1.00x)" in lines[3]
    assert "1,024 MiB" in lines[2] and "1,024 MiB" not in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_what_the_table_does_not_show_is_noted() -> None:
    fine = {"num_failed": 0, "num_prompts_unanswered": 0, "tokens_per_event": 1.0}
    rounds = {"a": [fine, fine], "b": [fine | {"num_failed": 2, "tokens_per_event": 3.5, "num_prompts_unanswered": 1}]}
    assert notes(rounds, 2) == [
        "b: measured in 1 of 2 rounds",
        "b: 2 requests failed",
        "b: 1 long prompts had no answer in time and are not in its TTFT",
        "b: 3.50 tokens came together, so its ITL is not that of single tokens",
    ]
    written = report(rounds, 2, {"colocate": "abc", "vllm": "0.32.0"}, rule((64, 128))).splitlines()
    assert written[0].startswith("| server | TTFT")
    assert "Versions: colocate abc, vllm 0.32.0." in written
    assert "the best chunk of 64, 128 tokens" in written[-5]
    assert written[-1].startswith("b: 3.50")
    record = {"rounds": rounds, "num_rounds": 2, "versions": {"colocate": "abc", "vllm": "0.32.0"}}
    assert report_of(record | {"chosen_by": rule((64, 128))}).splitlines() == written


def test_the_best_chunk_has_the_smallest_product() -> None:
    results = {
        "x 128": {"ttft_p50_s": 4.0, "itl_prefill_p99_s": 0.1, "num_prompts_unanswered": 0},
        "x 512": {"ttft_p50_s": 1.5, "itl_prefill_p99_s": 0.2, "num_prompts_unanswered": 0},
        "x 1024": {"ttft_p50_s": 1.0, "itl_prefill_p99_s": 0.25, "num_prompts_unanswered": 1},
        "y 128": {"ttft_p50_s": None, "itl_prefill_p99_s": 0.1, "num_prompts_unanswered": 3},
    }
    sizes = {name: {f"{name} {tokens}": tokens for tokens in (128, 512, 1024)} for name in ("x", "y")}
    assert best_chunks(results, sizes) == {"x": 512}


def test_each_system_is_measured_with_each_chunk_and_compared_with_its_best(tmp_path: Path) -> None:
    assert len({arm.name for arm in chunk_arms((64, 128))}) == 2 * len(CHUNKED)
    best, chosen_by = read_best(BEST_CHUNKS)
    assert set(best) == set(CHUNKED)
    assert "the best chunk of" in chosen_by and all(f" {tokens}" in chosen_by for tokens in best.values())
    names = [arm.name for arm in study_arms(best)]
    assert {f"{name} {tokens}" for name, tokens in best.items()} < set(names)
    assert {"vllm", "llama.cpp", "transformers", "colocate elastic"} < set(names)
    assert read_best(tmp_path / "absent") == ({}, "")


@pytest.mark.usefixtures("nothing_installed")
def test_what_is_not_installed_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = study_arms(dict.fromkeys(CHUNKED, 512))
    arms, versions, left_out = installed(wanted, [])
    assert [arm.name for arm in arms] == ["colocate static p1d1", "colocate elastic", "colocate chunked 512"]
    assert versions == {}
    assert len(left_out) == len(wanted) - len(arms) == 6
    assert left_out[0] == "vllm: vllm is not installed, see benchmarks/systems/"
    assert [arm.name for arm in installed(wanted, ["colocate e"])[0]] == ["colocate elastic"]
    assert document(peers(Path("m.gguf")), Path("m.gguf"), 8) == {"peers": {}}
    assert "llama.cpp: llama.cpp is not installed" in capsys.readouterr().err


def test_a_version_is_asked_of_the_interpreter_that_has_the_package(tmp_path: Path) -> None:
    assert package_version(Path(sys.executable), "numpy") == np.__version__
    assert package_version(Path(sys.executable), "numpy", "no-such-distribution", "numpy") == np.__version__
    assert package_version(Path(sys.executable), "json") == "unknown"  # of no distribution
    assert package_version(Path(sys.executable), "no_such_package") is None
    assert package_version(tmp_path / "python", "numpy") is None
    assert read_version("noise\nversion: 7062 (0c1e570)\nbuilt with cc\n") == "7062 (0c1e570)"
    assert read_version("llama") == "unknown"


def test_an_export_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEER_GGUF_PYTHON", sys.executable)
    with pytest.raises(RuntimeError, match=r"gguf_export\.py .* ended with 1:\n(.|\n)*Error"):
        export_gguf(tmp_path, tmp_path / "model.gguf")


def test_a_chunk_of_its_own_choice_is_not_named(tmp_path: Path) -> None:
    systems: list[PeerSystem] = [Vllm(cpu=True), LlamaCpp(), TransformersServe()]
    for system in systems:
        default = system.command(PeerJob(model_dir=tmp_path, chunk_tokens=None), 8000)
        chunked = system.command(PeerJob(model_dir=tmp_path, chunk_tokens=256), 8000)
        flags = system.chunk_flags(256)
        assert not any(flag in default for flag in flags if flag.startswith("-"))
        assert any(chunked[at : at + len(flags)] == flags for at in range(len(chunked)))
        assert str(tmp_path) in default


def test_weights_are_loaded_where_the_job_says_so(tmp_path: Path) -> None:
    server = PeerServer(
        Vllm(cpu=True, all_cores=True), PeerJob(model_dir=tmp_path, dtype="float32", dummy_weights=False)
    )
    launch = server.launch(("--x",), 8123)
    words = " ".join(launch.command)
    assert "--load-format auto --dtype float32" in words and words.endswith(" --x")
    assert "--gpu-memory-utilization" not in words
    assert launch.environ["VLLM_CPU_KVCACHE_SPACE"] == "1" and launch.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"
    assert (launch.url, launch.model, launch.ready_path) == ("http://127.0.0.1:8123", "bench", "/health")


def test_a_sweep_takes_the_peers_that_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEER_TRANSFORMERS_PYTHON", sys.executable)
    system = TransformersServe()
    if system.version() is None:
        pytest.skip("transformers is not installed here")
    described = document({"transformers": system}, None, 8)["peers"]
    entry = parse_peers("peers", described)["transformers"]
    launch = CommandSystem("transformers", entry, "/models/m").launch(entry.variants["chunk256"], 8001)
    assert launch.command[-2:] == ("--cb-max-batch-tokens", "256")
    assert "/models/m" in launch.command and "8001" in launch.command
    assert launch.model == launch.environ["HF_HUB_CACHE"] == "/models/m"


def test_both_rulers_are_read_by_the_same_definitions() -> None:
    report: dict[str, Any] = {
        "benchmarks": [
            {
                "duration": 1.5,
                "metrics": {
                    "request_totals": {"successful": 2},
                    "time_to_first_token_ms": {"successful": {"median": 200.0}},
                    "inter_token_latency_ms": {"successful": {"median": 10.0}},
                    "request_latency": {"successful": {"median": 0.5}},
                    "prompt_token_count": {"successful": {"median": 128}},
                    "output_token_count": {"successful": {"median": 3, "total_sum": 6}},
                },
            }
        ]
    }
    printed = {
        "num_finished": 2,
        "ttft_s": {"p50": 0.2},
        "tpot_s": {"p50": 0.0105},
        "e2e_s": {"p50": 0.5},
    }
    shared = {"prompt_tokens": 128, "outcome": "finished", "output_tokens": 3}
    rows = [
        shared | {"scheduled_s": 1.0, "end_s": 1.25},
        shared | {"scheduled_s": 2.0, "end_s": 2.1, "outcome": "failed", "output_tokens": 0},
        shared | {"scheduled_s": 2.0, "end_s": 2.5},
    ]
    theirs, ours = guidellm_figures(report), bench_figures(printed, rows)
    assert set(theirs) == set(ours)
    found = compare([theirs], [ours])
    assert found["ttft_p50_s"] == pytest.approx((0.2, 0.2, 0.0))
    assert found["itl_p50_s"] == pytest.approx((0.010, 0.0105, 0.05))
    assert found["output_tokens_per_s"] == pytest.approx((4.0, 4.0, 0.0))
    assert furthest(found) == pytest.approx(0.05)
    assert "| mean gap of a request, p50 | 10.00 ms | 10.50 ms | +5.0% |" in rulers_table(found).splitlines()
    report["benchmarks"][0]["metrics"]["request_totals"] = {"successful": 0, "errored": 2}
    with pytest.raises(RuntimeError, match="guidellm had no answer"):
        guidellm_figures(report)


def test_the_outside_tool_gets_the_same_load(tmp_path: Path) -> None:
    load = Load(rate=2.5, num_requests=7, prompt_tokens=100, output_tokens=9)
    words = guidellm_command("guidellm", "http://h:1", "m", tmp_path, load, tmp_path / "o.json", 3)
    given = dict(zip(words[2::2], words[3::2], strict=False))
    assert json.loads(given["--data"]) == {"kind": "synthetic_text", "prompt_tokens": 100, "output_tokens": 9}
    assert given["--profile"] == "kind=constant,rate=2.5"
    assert given["--seed"] == "kind=static,value=3"
    assert given["--constraint"] == "kind=max_requests,count=7"
    words = bench_command("http://h:1", "m", tmp_path, load, tmp_path / "run", 3)
    given = dict(pairwise(words))
    assert (given["--lengths"], given["--rate"], given["--arrivals"]) == ("100/9", "2.5", "constant")
    assert (given["--num-prompts"], given["--seed"], given["--prompts"]) == ("7", "3", "text")
    assert given["--tokenizer"] == str(tmp_path)


def test_the_rulers_meet_on_a_device_that_takes_no_core(tmp_path: Path) -> None:
    flags = device_flags("emulated", tmp_path)
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    profile = load_profile(Path(given["--profile"]))
    assert (given["--device"], given["--units"]) == ("emulated", "132")
    usual = load_profile(PROFILE)
    assert profile.shares[-1].decode.c == pytest.approx(SLOW * usual.shares[-1].decode.c)
    assert device_flags("cpu", tmp_path) == ("--units", "1")
    assert set(LOADS) == {"cpu", "emulated"}
