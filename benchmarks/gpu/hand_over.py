"""From prefill's last slice to the first decode step of the row, in a live daemon, read from its event log.

Two loads. One request at a time: decode sleeps, and the whole way through engine, board, bell and launch counts. Then a
load with a standing batch: a row also waits for steps already launched, which is the step's length and no overhead, so
the time beyond them is what counts. Bytes copied: blocks of the row that are not the ones that prefill wrote.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from policy_study.loads import CHAT

from colocate.core.outbox import Command
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import PrefillBatch, PrefillDone
from colocate.telemetry.event_log import LogRecord, read_event_log
from colocate.workload.lengths import FixedLengths
from colocate.workload.rows import Workload
from colocate.workload.segments import Segment, synthetic
from gpu.live import drive, make_load, pin, serving, split_names
from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.targets import target_rows
from gpu.timing import quantile

Key = tuple[int, int]  # request, incarnation
_ALONE_GAP_S = 0.05
_PAUSE_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class HandOver:
    """Times of one row, monotonic nanoseconds. `launched_ns`: end of the last step that was already launched when the
    join was sent, 0 where there was none."""

    finished_ns: int
    joined_ns: int
    started_ns: int
    launched_ns: int
    same_blocks: bool

    @property
    def seconds(self) -> float:
        return (self.started_ns - self.finished_ns) / 1e9

    @property
    def beyond_s(self) -> float:
        """Beyond the steps that were on their way: never below 0."""
        return max(0.0, (self.started_ns - max(self.finished_ns, self.launched_ns)) / 1e9)


@dataclass
class _Story:
    """What the log has said so far. A row joins decode under another incarnation than it was prefilled under."""

    finished: dict[int, int] = field(default_factory=dict)  # by request
    prefill_blocks: dict[int, list[int]] = field(default_factory=dict)
    joins: dict[Key, tuple[int, list[int]]] = field(default_factory=dict)
    last_step: tuple[int, int] = (0, 0)  # started, finished
    found: list[HandOver] = field(default_factory=list)

    def prefilled(self, event: PrefillDone) -> None:
        for row in event.rows:
            if row.token_id is not None:
                self.finished[row.request_id] = event.finished_ns

    def stepped(self, event: StepReport) -> None:
        for row in event.rows:
            key = (row.request_id, row.incarnation)
            if key not in self.joins or row.request_id not in self.finished:
                continue
            joined_ns, blocks = self.joins.pop(key)
            before_ns, until_ns = self.last_step
            wrote = self.prefill_blocks.get(row.request_id, [])
            self.found.append(
                HandOver(
                    finished_ns=self.finished.pop(row.request_id),
                    joined_ns=joined_ns,
                    started_ns=event.started_ns,
                    launched_ns=until_ns if before_ns <= joined_ns else 0,
                    same_blocks=blocks[: len(wrote)] == wrote,
                )
            )
        if event.rows:
            self.last_step = (event.started_ns, event.finished_ns)

    def sent(self, now_ns: int, message: object) -> None:
        if isinstance(message, PrefillBatch):
            for row in message.rows:
                self.prefill_blocks[row.request_id] = list(row.block_table)
        elif isinstance(message, DecodeUpdate):
            for join in message.joins:
                self.joins[join.request_id, join.incarnation] = (now_ns, list(join.block_table))


def read_hand_overs(records: Iterable[LogRecord]) -> list[HandOver]:
    """Every row that went from a prefill to a decode step."""
    story, decode = _Story(), msgspec.msgpack.Decoder(list[Command]).decode
    for record in records:
        event = record.event
        if isinstance(event, PrefillDone):
            story.prefilled(event)
        elif isinstance(event, StepReport):
            story.stepped(event)
        for command in decode(record.commands):
            story.sent(record.now_ns, command.message)
    return story.found


def step_cadence(records: Iterable[LogRecord]) -> dict[int, list[float]]:
    """Rows of a step -> seconds from the end of the step before, of as many rows, to its own end. Only steps begun
    before their predecessor's end was reported or within a millisecond of it: what lies between is the step itself and
    whatever bubble the host leaves, not a pause of the load."""
    found: dict[int, list[float]] = {}
    before: StepReport | None = None
    for record in records:
        event = record.event
        if not isinstance(event, StepReport) or not event.rows:
            continue
        is_same = before is not None and len(before.rows) == len(event.rows)
        if before is not None and is_same and event.started_ns - before.finished_ns < _PAUSE_NS:
            found.setdefault(len(event.rows), []).append((event.finished_ns - before.finished_ns) / 1e9)
        before = event
    return found


def run(setting: Setting, sheet: Sheet) -> None:
    gap_s = 1.0 if setting.is_smoke else _ALONE_GAP_S
    alone = one_by_one(setting.num_hand_overs, gap_s)
    crowd = make_load("chat", setting, setting.rates[0])
    found: dict[str, tuple[float, float | None]] = {}
    for name, workload in (("alone", alone), ("crowd", crowd)):
        rows, cadence = live(setting, workload)
        sheet.put(name, figures(rows))
        steps = {num: {"num": len(values), "p50": quantile(values, 0.5)} for num, values in sorted(cadence.items())}
        sheet.put(f"{name}_step_s", steps)
        print(f"{name}: {sheet.data[name]}")
        value = sheet.data[name]["seconds" if name == "alone" else "beyond_s"]["p99"]
        found["hand-over"] = (max(value, found.get("hand-over", (0.0, 0.0))[0]), 0.0)
        copied = sum(not row.same_blocks for row in rows)
        found["hand-over-bytes"] = (found.get("hand-over-bytes", (0.0, 0.0))[0] + copied, 0.0)
        sheet.put("targets", target_rows(found))


def live(setting: Setting, workload: Workload) -> tuple[list[HandOver], dict[int, list[float]]]:
    """Hand-overs, and how long steps took by their rows. Raises RuntimeError where the log holds no hand-over."""
    with tempfile.TemporaryDirectory(prefix="colocate-log-") as directory:
        with serving(setting, setting.model, "--event-log", directory) as server:
            splits = split_names(server.state())
            pin(server, splits[len(splits) // 2])  # under a policy a lone request would wait for switches, too
            drive(workload, server.port, setting, CHAT)
        (log,) = Path(directory).glob("*.log")
        records = list(read_event_log(log)[1])
    rows = read_hand_overs(records)
    if not rows:
        raise RuntimeError("no request went from prefill to decode")
    return rows, step_cadence(records)


def one_by_one(num: int, gap_s: float) -> Workload:
    """Requests so far apart that each has the device to itself."""
    segment = Segment(num * gap_s, 1 / gap_s, FixedLengths(32, 3))
    return synthetic("one by one", [segment], seed=0, arrivals="constant")


def figures(rows: list[HandOver]) -> dict[str, Any]:
    def of(values: list[float]) -> dict[str, float]:
        return {f"p{share}": quantile(values, share / 100) for share in (50, 90, 99)} | {"max": max(values)}

    return {
        "num": len(rows),
        "seconds": of([row.seconds for row in rows]),
        "beyond_s": of([row.beyond_s for row in rows]),
        "to_join_s": of([(row.joined_ns - row.finished_ns) / 1e9 for row in rows]),
        "other_blocks": sum(not row.same_blocks for row in rows),
    }


def draw(figure: Any, data: dict[str, Any]) -> None:
    axes = figure.subplots(1, 1)
    series = [("alone", "seconds"), ("crowd", "seconds"), ("crowd", "beyond_s"), ("alone", "to_join_s")]
    series = [(load, name) for load, name in series if load in data]
    for offset, (load, name) in enumerate(series):
        values = [data[load][name][p] * 1e3 for p in ("p50", "p90", "p99", "max")]
        axes.bar([place + 0.2 * offset for place in range(4)], values, 0.19, label=f"{load}: {name}")
    axes.set_xticks([0.3, 1.3, 2.3, 3.3], ["p50", "p90", "p99", "max"])
    axes.axhline(0.5, color="grey", linewidth=0.8)
    axes.set(ylabel="ms", yscale="log")
    axes.legend()
