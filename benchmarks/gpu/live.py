"""A live daemon of a shape with random weights, its client and its loads: what sections that serve have in common."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from open_loop import USAGE, LiveRun, offer
from policy_study.loads import CHAT, PER_TOKEN, SHAREGPT, TRACES
from server import Server, running_server

from colocate.config.slo import SloClass
from colocate.workload.lengths import FixedLengths, TraceLengths
from colocate.workload.read import read_lengths, read_workload
from colocate.workload.rows import Workload, WorkloadRow, make_workload
from colocate.workload.scale import at_rate, first_seconds
from colocate.workload.segments import Segment, synthetic
from gpu.setting import Setting

NAME = "bench"
ADMIN_KEY = "suite"
READY_S = 300.0
TRACE_FILES = {
    "azure-conv": "azure_llm_2023_conv.csv",
    "azure-code": "azure_llm_2023_code.csv",
    "mooncake": "mooncake_fast25_conversation_head1500.jsonl",
}
LOADS: Mapping[str, SloClass] = {
    "chat": CHAT, "azure-conv": CHAT, "azure-code": PER_TOKEN, "mooncake": PER_TOKEN,
}  # fmt: skip


def serve_words(setting: Setting, model: Path, *flags: str) -> list[str]:
    """Arguments of `colocate serve`. What the caller names last wins."""
    sizes = (
        "--max-num-seqs",
        str(setting.max_num_seqs),
        "--max-num-batched-tokens",
        str(setting.max_num_batched_tokens),
    )
    common = ("--device", "cuda", "--load-format", "dummy", "--dtype", setting.dtype, "--served-model-name", NAME)
    quick = ("--log-level", "warning", "--drain-timeout-s", "5", "--admin-key", ADMIN_KEY, "--max-queue", "4096")
    memory = ("--kv-memory", "16MiB") if setting.is_smoke else ("--max-model-len", str(setting.max_model_len))
    return [str(model), *common, *sizes, *quick, *memory, *setting.serve_flags, *flags]


@contextlib.contextmanager
def serving(setting: Setting, model: Path, *flags: str) -> Iterator[Server]:
    with running_server(*serve_words(setting, model, *flags), ready_timeout_s=READY_S) as server:
        yield server


def pin(server: Server, plan: str | None) -> None:
    """Hold this plan whatever the policy says; None gives it back to the policy."""
    request = urllib.request.Request(
        f"{server.url}/control/plan",
        json.dumps({"plan": plan}).encode(),
        {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        reply.read()


def make_load(name: str, setting: Setting, rate: float, seed: int = 0) -> Workload:
    """`chat` draws lengths of ShareGPT; the others are windows of their traces, offered at `rate`. Requests longer than
    the model takes are left out, answers are cut: a run lasts as long as its longest answer."""
    if setting.is_smoke:
        return synthetic(name, [Segment(setting.load_s, rate, FixedLengths(24, 4))], seed=seed)
    if name == "chat":
        lengths = TraceLengths(read_lengths(SHAREGPT))
        return _cut(synthetic(name, [Segment(setting.load_s, rate, lengths)], seed=seed), setting)
    whole = at_rate(_cut(read_workload(TRACES / TRACE_FILES[name]), setting), rate)
    return first_seconds(whole, setting.load_s)


def _cut(workload: Workload, setting: Setting) -> Workload:
    rows: list[WorkloadRow] = []
    for row in workload.rows:
        output_tokens = min(row.output_tokens, setting.max_answer)
        if row.prompt_tokens + output_tokens <= setting.max_model_len:
            rows.append(msgspec.structs.replace(row, output_tokens=output_tokens))
    return make_workload(workload.name, rows)


def drive(
    workload: Workload,
    port: int,
    setting: Setting,
    slo: SloClass,
    *,
    seed: int = 0,
    stream_options: Mapping[str, bool] = USAGE,
) -> tuple[LiveRun, dict[str, Any]]:
    """One run of one load, and its row: what the client saw, judged by the class. Another `seed` draws other prompts:
    a server that has served this load before has none of them in its cache."""
    run = offer(workload, port, NAME, seed=seed, drain_s=setting.drain_s, stream_options=stream_options)
    summary = run.summary([slo], slo.name)
    row = {
        "num_offered": summary.num_offered,
        "num_finished": summary.num_finished,
        "num_errors": len(run.errors),
        "offered_rate": summary.offered_rate,
        "attainment": summary.attainment,
        "goodput": summary.goodput,
        "output_tokens_per_s": summary.output_tokens_per_s,
        "ttft_s": msgspec.to_builtins(summary.ttft_s),
        "tpot_s": msgspec.to_builtins(summary.tpot_s),
        "itl_p99_s": msgspec.to_builtins(summary.itl_p99_s),
        "late_s": msgspec.to_builtins(run.lateness()),
        "slo": msgspec.to_builtins(slo),
        "error": next(iter(run.errors), None),
    }
    return run, row


def show_row(load: str, arm: str, row: Mapping[str, Any]) -> None:
    def ms(figures: Mapping[str, float | None], name: str) -> str:
        value = figures[name]
        return "-" if value is None else f"{value * 1e3:.0f}"

    ttft, tpot = row["ttft_s"], row["tpot_s"]
    print(
        f"{load:12}{arm:18} attainment {row['attainment']:6.1%}  goodput {row['goodput']:6.2f}/s  "
        f"TTFT {ms(ttft, 'p50'):>5} {ms(ttft, 'p99'):>6} ms  TPOT {ms(tpot, 'p50'):>4} {ms(tpot, 'p99'):>5} ms  "
        f"{row['num_finished']}/{row['num_offered']} finished",
        flush=True,
    )


def split_names(state: Mapping[str, Any]) -> list[str]:
    """Plans of a daemon that give both phases a share of their own."""
    total = state["device"]["units"]
    return [
        plan["name"]
        for plan in state["plans"]
        if plan["prefill_units"] and plan["decode_units"] and plan["prefill_units"] + plan["decode_units"] <= total
    ]


def used_bytes() -> int | None:
    """Of the GPU's memory, by everybody, as NVML says; None where it does not."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    finally:
        pynvml.nvmlShutdown()


def medians(values: Sequence[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
