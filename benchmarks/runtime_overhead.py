"""What the runtime itself costs: the emulated device takes no time, so all that is measured is ours.

    python benchmarks/runtime_overhead.py [--out benchmarks/results/runtime_overhead.json]

Real processes, HTTP, engine, board and sockets; the client runs on the same cores.
* streaming: tokens/s through HTTP at 64 streams (target 20,000 on 2 cores)
* hand-over: end of the prefill forward -> start of the first decode step that holds the row (target p99 under 2 ms)
* switch: plan word written -> in force in both workers (target p99 within 1 ms, beyond an idle thread's own wake-up,
  which is measured in the same run on the same cores)
The last two are read from the engine's event log: times the processes wrote, not what a client saw.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import msgspec
from machine import describe_machine
from server import Server, running_server
from stream_client import StreamRecord, percentile, stream

from colocate.core.outbox import Command, SetPlanWord
from colocate.messages.client import Submit
from colocate.messages.control import PlanApplied
from colocate.messages.decode import StepReport
from colocate.messages.prefill import PrefillDone
from colocate.telemetry.event_log import read_event_log
from colocate.types import Role

PACED_STEP_S = 0.0025
FLAGS = ("--device", "emulated", "--log-level", "warning", "--max-num-seqs", "64", "--kv-memory", "1GiB")


async def measure_streaming(server: Server, num_streams: int, max_tokens: int) -> dict:
    model = "demo"
    started = time.perf_counter()
    records = await asyncio.gather(
        *(stream(server.port, model, "The decode worker", max_tokens) for _ in range(num_streams))
    )
    seconds = time.perf_counter() - started
    check(records, max_tokens)
    num_tokens = sum(len(record.token_ids) for record in records)
    num_chunks = sum(len(set(record.token_s)) for record in records)
    return {
        "streams": num_streams,
        "tokens": num_tokens,
        "tokens_per_s": num_tokens / seconds,
        "tokens_per_chunk": num_tokens / num_chunks,
    }


def check(records: list[StreamRecord], max_tokens: int) -> None:
    """A figure counts only if every token arrived."""
    for record in records:
        if record.error or len(record.token_ids) != max_tokens:
            raise RuntimeError(f"a stream is short: {len(record.token_ids)} of {max_tokens} tokens, {record.error}")


async def drive_handovers(server: Server, num_requests: int, concurrency: int) -> None:
    """Requests one after another on a few connections: phases go idle and busy all the time, so plans switch."""
    remaining = iter(range(num_requests))

    async def worker() -> None:
        for index in remaining:
            record = await stream(server.port, "demo", f"request {index}", 8)
            check([record], 8)
            await asyncio.sleep(0.003 * (index % 3))

    await asyncio.gather(*(worker() for _ in range(concurrency)))


def handover_ms(log: Path) -> list[float]:
    """From the end of the last prefill slice to the start of the first decode step of the same request."""
    finished: dict[int, int] = {}
    samples: list[float] = []
    for record in read_event_log(log)[1]:
        event = record.event
        if isinstance(event, PrefillDone):
            finished |= {row.request_id: event.finished_ns for row in event.rows if row.token_id is not None}
        elif isinstance(event, StepReport):
            for row in event.rows:
                if row.request_id in finished:
                    samples.append((event.started_ns - finished.pop(row.request_id)) / 1e6)
        elif isinstance(event, Submit):
            finished.pop(event.request_id, None)
    return samples


def switch_ms(log: Path) -> list[float]:
    """From the decision to the later of the two workers' own `applied_ns`, for switches both applied."""
    decided: dict[int, int] = {}
    applied: dict[int, dict[Role, int]] = {}
    decoder = msgspec.msgpack.Decoder(list[Command])
    for record in read_event_log(log)[1]:
        for command in decoder.decode(record.commands):
            if isinstance(command.message, SetPlanWord):
                decided[command.message.seq] = record.now_ns
        if isinstance(record.event, PlanApplied):
            applied.setdefault(record.event.seq, {})[record.event.role] = record.event.applied_ns
    return [
        (max(times.values()) - decided[seq]) / 1e6
        for seq, times in applied.items()
        if seq in decided and len(times) == 2
    ]


def idle_wakeup_ms(num_samples: int = 2000) -> list[float]:
    """How late an idle thread of this machine wakes when written to through a pipe: the price below which no
    switch of an idle worker can come."""
    read_fd, write_fd = os.pipe()
    samples: list[float] = []

    def sleeper() -> None:
        while True:
            data = os.read(read_fd, 8)
            if data == b"stop....":
                return
            samples.append((time.perf_counter_ns() - int.from_bytes(data, "little")) / 1e6)

    thread = threading.Thread(target=sleeper)
    thread.start()
    for _ in range(num_samples):
        os.write(write_fd, time.perf_counter_ns().to_bytes(8, "little"))
        time.sleep(0.001)
    os.write(write_fd, b"stop....")
    thread.join()
    os.close(read_fd)
    os.close(write_fd)
    return samples


def summary(samples: list[float]) -> dict:
    return {
        "num": len(samples),
        "p50_ms": percentile(samples, 50),
        "p99_ms": percentile(samples, 99),
        "max_ms": max(samples),
    }


def run_streaming(repeats: int, *flags: str) -> dict:
    with running_server(*FLAGS, *flags) as server:
        asyncio.run(measure_streaming(server, 64, 50))
        samples = [asyncio.run(measure_streaming(server, 64, 1000)) for _ in range(repeats)]
    rates = [sample["tokens_per_s"] for sample in samples]
    return {
        "tokens_per_s": statistics.median(rates),
        "min": min(rates),
        "max": max(rates),
        "tokens_per_chunk": statistics.median(sample["tokens_per_chunk"] for sample in samples),
        "samples": samples,
    }


def run_paced(repeats: int) -> dict:
    """At zero device time tokens come faster than chunks can leave, and a chunk carries several. A device that takes
    PACED_STEP_S per step offers 64 tokens each time: what is delivered then goes out nearly one by one."""
    with tempfile.TemporaryDirectory(prefix="colocate-bench-") as directory:
        profile = Path(directory) / "paced.yaml"
        share = f"{{units: 1, prefill: [0, 0, 0], decode: [0, 0, {PACED_STEP_S}]}}"
        profile.write_text(
            f"name: paced\nsource: chosen by hand\nunits: 16\ngranularity: 1\nnum_layers: 2\nshares:\n  - {share}\n"
        )
        result = run_streaming(repeats, "--profile", str(profile))
    return result | {"offered_tokens_per_s": 64 / PACED_STEP_S}


def run_events(num_requests: int) -> dict:
    with tempfile.TemporaryDirectory(prefix="colocate-bench-") as directory:
        with running_server(*FLAGS, "--event-log", directory) as server:
            asyncio.run(drive_handovers(server, num_requests, 2))
        (log,) = Path(directory).glob("*.log")
        return {
            "handover": summary(handover_ms(log)),
            "switch": summary(switch_ms(log)),
            "idle_wakeup": summary(idle_wakeup_ms()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = {"machine": describe_machine(), "streaming": run_streaming(options.repeats)}
    results["paced"] = run_paced(options.repeats)
    results |= run_events(options.requests)
    wakeup = results["idle_wakeup"]
    for name, note in (("streaming", "zero device time"), ("paced", f"a step every {PACED_STEP_S * 1e3} ms")):
        values = results[name]
        print(
            f"{name:11} {values['tokens_per_s']:,.0f} tokens/s (min {values['min']:,.0f}, max {values['max']:,.0f}) in "
            f"chunks of {values['tokens_per_chunk']:.1f} tokens, 64 streams, {note}; target 20,000"
        )
    for name, target in (("handover", 2.0), ("switch", 1.0 + wakeup["p99_ms"])):
        values = results[name]
        print(
            f"{name:11} p50 {values['p50_ms']:.3f} ms  p99 {values['p99_ms']:.3f} ms  max {values['max_ms']:.3f} ms  "
            f"({values['num']} samples); target p99 {target:.3f}"
        )
    print(f"idle thread p50 {wakeup['p50_ms']:.3f} ms  p99 {wakeup['p99_ms']:.3f} ms to wake up on this machine")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
