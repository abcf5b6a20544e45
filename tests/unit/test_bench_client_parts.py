"""Small parts of the bench client: commands without keys, addresses, other servers' metrics, text prompts."""

from __future__ import annotations

import math
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from colocate.bench.exact_text import find_exact_text, settle_async
from colocate.bench.http import parse_url, request_bytes
from colocate.bench.manifest import git_facts, written_command
from colocate.bench.plan import BenchPlan
from colocate.bench.prompts import TextPrompts
from colocate.bench.records import TargetFacts
from colocate.bench.target import Target
from colocate.bench.watch import Totals, Watcher, differences, read_series
from colocate.cli.bench import Ask, bench_plan, class_text, slo_texts
from colocate.config.slo import parse_slo_classes
from colocate.errors import ConfigError
from colocate.workload.prompts import PromptLayout
from colocate.workload.recipe import Recipe
from colocate.workload.rows import WorkloadRow, make_workload


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (["/a/b/colocate", "bench", "--api-key", "k", "-x"], ("colocate", "bench", "--api-key", "***", "-x")),
        (["colocate", "bench", "--api-key=k"], ("colocate", "bench", "--api-key=***")),
        (
            ["__main__.py", "bench", "--header", "Authorization=k"],
            ("colocate", "bench", "--header", "Authorization=***"),
        ),
        (["colocate", "sweep", "--header=Authorization=k"], ("colocate", "sweep", "--header=Authorization=***")),
    ],
)
def test_commands_are_written_without_keys(given: list[str], written: tuple[str, ...]) -> None:
    assert written_command(given) == written


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("http://h:1/v1", "http://h:1"),
        ("http://h:1/v1/", "http://h:1"),
        ("http://h/proxy/v1", "http://h:80/proxy"),
        ("http://[::1]:7", "http://[::1]:7"),
        ("https://h", "https://h:443"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert parse_url(text).url == url


@pytest.mark.parametrize("text", ["ftp://h", "http://", "http://h:port", "http://h:99999"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_url(text)


@pytest.mark.parametrize("header", [("a\r\nb", "c"), ("a", "b\nc"), ("", "c"), ("ä", "c")])
def test_a_header_cannot_smuggle_another(header: tuple[str, str]) -> None:
    with pytest.raises(ConfigError):
        request_bytes(parse_url("h:1"), "GET", "/", b"", dict([header]))


def test_the_state_of_a_checkout_is_read_without_writing_to_it(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    file = tmp_path / "file"
    file.write_text("a")
    git("add", "file")
    git("commit", "-qm", "x")
    os.utime(file, (1, 1))  # plain `git status` would look again and note the new time in its index
    index = (tmp_path / ".git" / "index").read_bytes()
    assert git_facts(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert (tmp_path / ".git" / "index").read_bytes() == index
    file.write_text("b")
    assert git_facts(tmp_path)["dirty"] is True
    assert git_facts(tmp_path / "nowhere") == {}


METRICS = """# HELP vllm:num_requests_running x
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
vllm:num_preemptions_total{engine="1",model_name="m"} 3.0
vllm:prompt_tokens_total{a="x y} z"} 1e3
colocate_plan_residency_seconds_total{plan="p1d1"} 2.5
no number
bad{} NaN1
"""


def test_metrics_are_read_with_their_labels() -> None:
    series = read_series(METRICS)
    assert [value for _, value in series["vllm:num_preemptions_total"]] == [4.0, 3.0]
    assert series["colocate_plan_residency_seconds_total"] == [({"plan": "p1d1"}, 2.5)]
    assert "bad" not in series


def test_figures_are_what_lies_between_two_looks() -> None:
    before = Totals({"preemptions": 4.0, "switches": 9.0}, {"a": 1.0, "b": 2.0}, energy_j=10.0, cpu_s=1.0)
    after = Totals({"preemptions": 7.0, "switches": 2.0, "new": 3.0}, {"a": 2.0, "b": 2.0, "c": 3.0}, 25.0, 3.5)
    residency, figures = differences(before, after)
    assert residency == {"a": 0.25, "c": 0.75}
    # A counter that fell belongs to another life of the server.
    assert figures == {"preemptions": 3.0, "new": 3.0, "energy_j": 15.0, "server_cpu_s": 2.5}


def test_switches_of_many_looks_are_each_written_once() -> None:
    target = Target(parse_url("http://192.0.2.1:1"), {}, "completions", TargetFacts("", "colocate", "m"), {}, True)
    watcher = Watcher(target, lambda: 0.0, lambda _: None)

    def told(seq: int, decided_s: float, now_s: float, decode_ms: float | None) -> dict[str, object]:
        return {"seq": seq, "from": "a", "to": "b", "reason": "", "age_s": now_s - decided_s} | {
            "prefill_applied_ms": 2.0,
            "decode_applied_ms": decode_ms,
        }

    for now_s, known in ((5.0, range(1, 5)), (6.0, range(2, 8))):  # number n was decided at second n - 1.5
        for seq in known:
            watcher.note_switch(told(seq, seq - 1.5, now_s, None if seq == now_s - 1 else 4.0), now_s)
    assert list(watcher.switches) == [2, 3, 4, 5, 6, 7]  # 1 was before the run
    assert [switch.decided_s for switch in watcher.switches.values()] == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    # What was not applied at the first look is at the second; 5 never is.
    assert [switch.decode_applied_s for switch in watcher.switches.values()] == [
        0.504,
        1.504,
        2.504,
        None,
        4.504,
        5.504,
    ]


@dataclass
class _Clumps:
    """A tokenizer of so many characters to a token, and one token before every text."""

    characters: int
    is_free: bool = True
    name: str = "clumps"

    async def count(self, text: str) -> int:
        return 1 + -(-len(text) // self.characters)


@pytest.mark.parametrize("is_chat", [False, True])
async def test_prompts_are_counted_one_by_one_where_units_are_not_one_token(is_chat: bool) -> None:
    counter = _Clumps(7)
    texts = await settle_async(find_exact_text(), counter.count)
    template = 5 if is_chat else 0
    prompts = TextPrompts(texts, counter, texts.added + template, is_chat=is_chat)
    layouts = [PromptLayout(((number, length),), number) for number, length in enumerate((12, 50, 51, 333), 1)]
    for layout in layouts:
        await prompts.settle(layout)
        fields = prompts.fields(layout, {})
        text = fields["messages"][0]["content"] if is_chat else fields["prompt"]  # type: ignore[index]
        assert await counter.count(text) + template == layout.pieces[0][1]
    assert prompts.kind == "text, counted by clumps one by one"
    shorter_than_what_is_added = PromptLayout(((9, 1),), 9)
    await prompts.settle(shorter_than_what_is_added)
    assert prompts.fields(shorter_than_what_is_added, {})


async def test_prompts_are_not_counted_ahead_by_running_them() -> None:
    counter = _Clumps(7, is_free=False)
    texts = await settle_async(find_exact_text(), counter.count)
    prompts, layout = TextPrompts(texts, counter, texts.added), PromptLayout(((1, 400),), 1)
    drafted = prompts.fields(layout, {})
    await prompts.settle(layout)
    assert prompts.fields(layout, {}) == drafted
    assert await counter.count(str(drafted["prompt"])) == pytest.approx(400, rel=0.1)
    assert prompts.kind == "text, counted by clumps at their mean length"


async def test_questions_put_to_a_model_are_short() -> None:
    lengths: list[int] = []

    async def count(text: str) -> int:
        lengths.append(len(text.split()))
        return 2 + lengths[-1]

    texts = await settle_async(find_exact_text(most_units=8), count)
    assert (len(texts.units), texts.added, max(lengths)) == (8, 2, 400)


def test_classes_are_written_as_they_are_read() -> None:
    texts = ("chat: ttft 300 ms, tpot 50 ms", "long: ttft 1 s, ttft_per_token 1.5 ms, itl 0.2 s", "batch: none")
    classes = parse_slo_classes(texts, "test")
    assert parse_slo_classes([class_text(each) for each in classes], "test") == classes
    assert slo_texts((), ("ttft 1 s",)) == ("target: ttft 1000 ms",)
    with pytest.raises(ConfigError, match="choose one of"):
        slo_texts((), ("nobody",))


_OF_RECIPE = ("rates", "duration_s", "trace", "speed", "arrivals")


def _ask(**more: object) -> BenchPlan:
    recipe = {name: more.pop(name) for name in _OF_RECIPE if name in more}
    lengths = () if "trace" in recipe else ("8/2",)
    return bench_plan(Ask(url="h:1", recipe=Recipe(lengths=lengths, **recipe), **more))  # type: ignore[arg-type]


def test_phases_come_on_top_of_what_is_measured() -> None:
    plan = _ask(rates=(2.0,), duration_s=30.0, warmup_s=4.0, cooldown_s=1.0)
    assert (plan.workload.duration_s, plan.warmup_s, plan.cooldown_s, plan.rate) == (35.0, 4.0, 1.0, 2.0)
    assert _ask(rates=(2.0,)).workload.duration_s == 65.0


def test_a_number_of_requests_is_exact() -> None:
    assert len(_ask(rates=(3.0,), num_prompts=41).workload.rows) == 41
    closed = _ask(concurrency=3, num_prompts=17)
    assert len(closed.workload.rows) == 17
    assert closed.warmup_s == 0
    assert len(_ask(rates=(3.0,), num_prompts=30, arrivals="gamma:9").workload.rows) == 30


def test_a_trace_is_offered_as_it_is(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,2\n1,6,2\n2,7,2\n3,8,2\n")
    assert [row.prompt_tokens for row in _ask(trace=trace).workload.rows] == [5, 6, 7, 8]
    assert [row.arrival_s for row in _ask(trace=trace, speed=2.0).workload.rows] == [0, 0.5, 1, 1.5]
    assert len(_ask(trace=trace, duration_s=1.5, warmup_s=0.0).workload.rows) == 2
    assert len(_ask(trace=trace, concurrency=2).workload.rows) == 4
    timed = _ask(trace=trace, rates=(0.5,), duration_s=3.0, warmup_s=1.0)
    assert [row.arrival_s for row in timed.workload.rows] == [0.0, 2.0]
    assert (timed.workload.duration_s, timed.rate) == (4.0, 0.5)
    for more in ({}, {"concurrency": 2}):
        with pytest.raises(ConfigError, match=r"t\.csv holds 4 requests"):
            _ask(trace=trace, num_prompts=5, **more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rates": (1.0,), "concurrency": 2},
        {"rates": (1.0,), "duration_s": 5.0, "num_prompts": 3},
        {"concurrency": 0, "num_prompts": 3},
        {"concurrency": 2, "num_prompts": 3, "cooldown_s": 1.0},
        {"rates": (1.0,), "num_prompts": 0},
        {"rates": (0.0,), "num_prompts": 5},
        {"rates": (math.inf,), "num_prompts": 5},
        {"concurrency": 2, "duration_s": math.inf},
        {"rates": (1.0,), "warmup_s": math.nan},
        {"rates": (1.0,), "drain_s": math.nan},
        {"rates": (1.0,), "endpoint": "embeddings"},
        {"rates": (1.0,), "endpoint": "chat", "prompts": "ids"},
        {"rates": (1.0,), "timeout_s": 0.0},
        {"rates": (1.0,), "extra_body": "[1]"},
        {"rates": (1.0,), "header": ("nothing",)},
        {"rates": (1.0,), "default_slo_class": "x"},
        {"rates": (1.0,), "slo_class": ("x: ttft 1",)},
    ],
)
def test_contradictions_are_refused(more: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        _ask(**more)


def test_phases_that_leave_nothing_are_refused() -> None:
    load = make_workload("x", [WorkloadRow(0.0, 1, 1)], 3.0)
    with pytest.raises(ConfigError, match="nothing to measure"):
        BenchPlan(url="h", workload=load, out=Path("x"), warmup_s=2.0, cooldown_s=1.0)
