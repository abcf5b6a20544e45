"""What the worker loops cost beside the device: a decode step, a plan poll, a plan switch.

    python benchmarks/worker_loops.py [--out benchmarks/results/worker_loops.json]

Real worker processes of the emulated device at zero device time, over real sockets and a real board; this process is
their engine. The floor of a switch is how late an idle thread wakes from the same kind of sleep, measured in the same
run; the floor of a step's report is what msgspec needs to build and encode its rows.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from machine import describe_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from colocate.messages.control import PlanApplied
from colocate.messages.decode import DecodeUpdate, StepReport, StepRow
from colocate.messages.prefill import PrefillBatch
from colocate.transport.board import Board
from colocate.transport.channel import worker_address
from colocate.transport.waiting import Waiter
from colocate.transport.zmq_channel import bind_for_worker
from colocate.types import Role
from tests.worker_harness import decode_row, prefill_row
from tests.worker_process import WorkerUnderTest, worker_process

NUM_ROWS = 64
NUM_STEPS = 4000
NUM_SWITCHES = 400


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {name: round(ordered[min(int(len(ordered) * part), len(ordered) - 1)], 1) for name, part in QUANTILES}


QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def nanoseconds_per_call(call: Callable[[], object], times: int = 200_000) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return round((time.perf_counter() - started) / times * 1e9, 1)


def plan_poll() -> dict[str, float]:
    board = Board.create()
    found = {
        "plan_word_ns": nanoseconds_per_call(board.plan_word),
        "publish_progress_ns": nanoseconds_per_call(lambda: board.set_progress(Role.DECODE, 1, 2)),
        "loop_itself_ns": nanoseconds_per_call(lambda: None),
    }
    board.close()
    return found


def report_floor_us() -> float:
    encode = msgspec.msgpack.Encoder().encode
    calls = [(request_id << 8, 1, 17) for request_id in range(NUM_ROWS)]
    return nanoseconds_per_call(lambda: encode(StepReport(1, [StepRow(*call) for call in calls])), 5000) / 1000


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_step(step: int) -> Callable[[object], bool]:
    return lambda message: isinstance(message, StepReport) and message.step >= step


def is_applied(seq: int) -> Callable[[object], bool]:
    return lambda message: isinstance(message, PlanApplied) and message.seq == seq


def start_decoding(worker: WorkerUnderTest, num_rows: int) -> None:
    rows = [decode_row(request_id, max_tokens=10**6, num_blocks=50_000) for request_id in range(num_rows)]
    for row in rows:
        worker.send(DecodeUpdate(joins=[row]))


def decode_steps() -> dict[str, float]:
    """Reading the reports takes a core of its own, so wall time is the worker's where two cores are free."""
    with worker_process(Role.DECODE) as worker:
        worker.until(is_applied(1))
        start_decoding(worker, NUM_ROWS)
        worker.until(is_step(500))
        cpu_before, began = cpu_seconds(worker.process.pid), time.perf_counter()
        first = next(message for message in reversed(worker.heard) if isinstance(message, StepReport)).step
        last = worker.until(is_step(first + NUM_STEPS), timeout_s=120)
        assert isinstance(last, StepReport)
        num_steps, seconds = last.step - first, time.perf_counter() - began
        cpu = cpu_seconds(worker.process.pid) - cpu_before
        return {
            "rows": NUM_ROWS,
            "step_wall_us": round(seconds / num_steps * 1e6, 1),
            "step_cpu_us": round(cpu / num_steps * 1e6, 1),
            "tokens_per_s": round(num_steps * NUM_ROWS / seconds),
            "report_floor_us": round(report_floor_us(), 1),
        }


_ECHO = """
import os, time
from colocate.transport.waiting import Waiter
waiter = Waiter([0])
while True:
    waiter.wait(None)
    if not os.read(0, 1):
        break
    os.write(1, time.monotonic_ns().to_bytes(8, "little"))
"""

_CHANNEL_ECHO = """
import sys, time
from colocate.messages.control import PlanApplied
from colocate.transport.waiting import Waiter
from colocate.transport.zmq_channel import connect_to_engine
from colocate.types import Role
channel = connect_to_engine(sys.argv[1], Role.DECODE)
waiter = Waiter([channel])
while not channel.send(PlanApplied(Role.DECODE, 0, 0)):
    time.sleep(0.001)
while True:
    waiter.wait(None)
    while (message := channel.recv()) is not None:
        channel.send(PlanApplied(Role.DECODE, message.leaves[0][0], time.monotonic_ns()))
"""


def wake_up_floor_us() -> dict[str, float]:
    """How late an idle process wakes that polls a pipe and is sent one byte: no message, no board, no plan."""
    late = []
    with subprocess.Popen([sys.executable, "-c", _ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo:
        assert echo.stdin is not None and echo.stdout is not None
        for _ in range(NUM_SWITCHES):
            time.sleep(0.001)
            began_ns = time.monotonic_ns()
            os.write(echo.stdin.fileno(), b"x")
            late.append((int.from_bytes(os.read(echo.stdout.fileno(), 8), "little") - began_ns) / 1000)
        echo.stdin.close()
    return percentiles(late[20:])


def channel_floor_us() -> dict[str, float]:
    """The same over a real channel, which adds an I/O thread at each end: what a plan's wake-up travels."""
    address = worker_address(secrets.token_hex(6), 1, Role.DECODE, 1)
    channel = bind_for_worker(address, Role.DECODE)
    waiter = Waiter([channel])
    late: list[float] = []
    echo = subprocess.Popen([sys.executable, "-c", _CHANNEL_ECHO, address])
    try:
        began_ns = 0
        while len(late) < NUM_SWITCHES:
            waiter.wait(5)
            while isinstance(message := channel.recv(), PlanApplied):
                if message.seq:
                    late.append((message.applied_ns - began_ns) / 1000)
                time.sleep(0.001)
                began_ns = time.monotonic_ns()
                channel.send(DecodeUpdate(leaves=[(message.seq + 1, 1)]))
    finally:
        echo.kill()
        echo.wait()
        channel.close()
    return percentiles(late[20:])


def switches(busy: bool) -> dict[str, dict[str, float]]:
    """Both workers, alternating between two splits; from the plan word's store to the acknowledged time of each."""
    board = Board.create()
    latencies: dict[str, list[float]] = {"prefill_us": [], "decode_us": [], "both_us": []}
    with (
        worker_process(Role.PREFILL, board=board, plan=None) as prefill,
        worker_process(Role.DECODE, board=board, plan=None) as decode,
    ):
        prefill.until_ready()
        decode.until_ready()
        if busy:
            start_decoding(decode, 8)
        for turn in range(NUM_SWITCHES):
            if busy:
                prefill.send(PrefillBatch(turn, [prefill_row(turn, 50)]))
            began_ns = time.monotonic_ns()
            seq = board.plan().seq + 1
            board.set_plan(seq, board_index(prefill, turn))
            for role in (Role.PREFILL, Role.DECODE):
                board.ring(role)
            times = {}
            for name, worker in (("prefill_us", prefill), ("decode_us", decode)):
                applied = worker.until(is_applied(seq))
                assert isinstance(applied, PlanApplied)
                times[name] = (applied.applied_ns - began_ns) / 1000
                latencies[name].append(times[name])
            latencies["both_us"].append(max(times.values()))
            time.sleep(0.001)
    board.close()
    return {name: percentiles(values) for name, values in latencies.items()}


def board_index(worker: WorkerUnderTest, turn: int) -> int:
    return worker.table.index_of("p8d4" if turn % 2 else "p4d8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = {
        "machine": describe_machine(),
        "command": "python benchmarks/worker_loops.py",
        "plan_poll": plan_poll(),
        "decode_step": decode_steps(),
        "switch_idle": switches(busy=False),
        "switch_busy": switches(busy=True),
        "wake_up_floor_us": wake_up_floor_us(),
        "channel_floor_us": channel_floor_us(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
