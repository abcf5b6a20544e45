"""Ours beside vLLM and SGLang, where installed: the same shape, machine, client and loads.

Two measurements that depend on nothing but the device's work, then the loads. The step: 64 requests of 2,048 tokens at
once, the median gap while all of them decode. The prompt: the first token of one request of 8,192 tokens alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from open_loop import USAGE
from stream_client import StreamRecord, stream
from systems.peer import PeerJob, PeerSystem, installed_version, running_peer
from systems.sglang import Sglang
from systems.vllm import Vllm

from gpu.live import LOADS, NAME, drive, make_load, serving, show_row
from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.targets import target_rows


@dataclass(frozen=True, slots=True)
class Contender:
    """`system` None: this package, with these flags."""

    name: str
    system: PeerSystem | None = None
    flags: tuple[str, ...] = ()
    chunk_tokens: int = 8192


def contenders(setting: Setting) -> list[Contender]:
    small, large = (setting.chunk_sizes * 2)[:2]
    chunked = ("--mode", "chunked", "--max-num-batched-tokens", str(large))
    return [
        Contender("colocate elastic", flags=("--plan", "elastic")),
        Contender(f"vllm:{large}", Vllm(), chunk_tokens=large),
        Contender(f"sglang:{large}", Sglang(), chunk_tokens=large),
        Contender(f"colocate chunked:{large}", flags=chunked),
        Contender(f"vllm:{small}", Vllm(), chunk_tokens=small),
        Contender("vllm:8192", Vllm(), chunk_tokens=8192),
    ]


def run(setting: Setting, sheet: Sheet) -> None:
    versions = {system.package: installed_version(system) for system in (Vllm(), Sglang())}
    sheet.put("versions", versions)
    for name, version in versions.items():
        print(f"{name}: {version or 'not installed'}")
    if not any(versions.values()):
        print("no peer is installed: nothing to compare with")
        return
    for each in contenders(setting):
        if each.system is not None and not versions[each.system.package]:
            continue
        try:
            with started(setting, each) as (port, options):
                measure(setting, sheet, each.name, port, options)
        except (RuntimeError, OSError) as error:  # a peer that does not start is a row that says so
            sheet.add("failed", {"system": each.name, "error": str(error)[-3000:]})
            print(f"{each.name} failed: {str(error)[-800:]}", flush=True)
    judge(sheet)


@contextlib.contextmanager
def started(setting: Setting, each: Contender) -> Iterator[tuple[int, Mapping[str, bool]]]:
    """Its port, and what a streamed request asks it for."""
    if each.system is None:
        with serving(setting, setting.model, *each.flags) as server:
            yield server.port, USAGE
        return
    job = PeerJob(
        model_dir=setting.model,
        name=NAME,
        max_num_seqs=setting.max_num_seqs,
        chunk_tokens=each.chunk_tokens,
        max_model_len=setting.max_model_len,
    )
    with running_peer(each.system, job) as peer:
        yield peer.port, each.system.stream_options


def measure(setting: Setting, sheet: Sheet, name: str, port: int, options: Mapping[str, bool]) -> None:
    batch, context, tokens = (2, 16, 32) if setting.is_smoke else (64, 2048, 8192)
    step_s = asyncio.run(step_seconds(port, batch, context, options))
    prompt_s = asyncio.run(prompt_seconds(port, tokens, options))
    sheet.add("alone", {"system": name, "step_s": step_s, "prompt_s": prompt_s})
    print(f"{name}: step at {batch} x {context} {step_s * 1e3:.2f} ms, prompt of {tokens} {prompt_s * 1e3:.1f} ms")
    for load in setting.loads:
        for rate in setting.rates:
            _, row = drive(make_load(load, setting, rate), port, setting, LOADS[load], stream_options=options)
            sheet.add("runs", {"system": name, "load": load, "rate": rate} | row)
            show_row(f"{load}@{rate:g}", name, row)


async def step_seconds(port: int, batch: int, context: int, options: Mapping[str, bool]) -> float:
    """Median gap of tokens while all rows of the batch stand. Raises RuntimeError where they never all do."""
    records = [StreamRecord(0.0) for _ in range(batch)]
    answers = 128 if context > 64 else 8
    await asyncio.gather(
        *(_send(port, context, answers, index, record, options) for index, record in enumerate(records))
    )
    if any(record.error or len(record.token_s) < 2 for record in records):
        raise RuntimeError(f"a request failed: {next((r.error for r in records if r.error), 'too few tokens')}")
    begin_s, end_s = max(record.token_s[0] for record in records), min(record.token_s[-1] for record in records)
    gaps = [gap for record in records for gap in record.gaps_s(begin_s, end_s)]
    if not gaps:
        raise RuntimeError("the rows never decoded all together: give longer answers")
    return statistics.median(gaps)


async def prompt_seconds(port: int, tokens: int, options: Mapping[str, bool], repeats: int = 5) -> float:
    """Median time to the first token of one prompt after another, without the first, which warms up."""
    values = []
    for index in range(repeats + 1):
        record = StreamRecord(0.0)
        await _send(port, tokens, 1, 1000 + index, record, options)
        if record.ttft_s is None:
            raise RuntimeError(f"a request failed: {record.error}")
        values.append(record.ttft_s)
    return statistics.median(values[1:])


async def _send(
    port: int, tokens: int, answers: int, seed: int, record: StreamRecord, options: Mapping[str, bool]
) -> None:
    """A prompt that shares nothing with another seed's."""
    prompt = [300 + (seed * 7919 + index * 31 + index // 50) % 1600 for index in range(tokens)]
    await stream(port, NAME, prompt, answers, record, stream_options=dict(options))


def judge(sheet: Sheet) -> None:
    """Ours is the better of its two forms for each; the peer's likewise."""
    rows = sheet.data.get("alone", [])
    found: dict[str, tuple[float, float | None]] = {}
    for target, key in (("decode-vllm", "step_s"), ("prefill-vllm", "prompt_s")):
        ours = [row[key] for row in rows if row["system"].startswith("colocate")]
        theirs = [row[key] for row in rows if row["system"].startswith("vllm")]
        if ours and theirs:
            found[target] = (min(ours) / min(theirs), None)
    if found:
        sheet.put("targets", target_rows(found))


def draw(figure: Any, data: dict[str, Any]) -> None:
    rows = data.get("alone", [])
    if not rows:
        return
    panels = figure.subplots(1, 2)
    for axes, key, name in zip(panels, ("step_s", "prompt_s"), ("step", "prompt"), strict=True):
        axes.barh([row["system"] for row in rows], [row[key] * 1e3 for row in rows])
        axes.set(xlabel=f"ms per {name}")
        axes.invert_yaxis()
