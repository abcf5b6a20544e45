"""A run of `colocate bench` as a trace: the same requests as the server's log has, as the client saw them."""

from __future__ import annotations

from typing import Any

from colocate.bench.read import Run
from colocate.bench.records import RequestRow, ServerSample
from colocate.telemetry.timeline.trace import Lanes, TraceWriter

START_KEY = "start_monotonic_ns"


def run_start_ns(run: Run) -> int | None:
    """The start of the run on the monotonic clock of the client's machine; None in runs that do not say it."""
    start_ns = run.manifest.client.get(START_KEY)
    return start_ns if isinstance(start_ns, int) else None


def add_run(run: Run, writer: TraceWriter, start_ns: int) -> int:
    """Write one run, whose second 0 is `start_ns`. Returns how many requests were written: all that it offered."""
    name = f"client, arm {run.manifest.arm}"
    clock = _Clock(start_ns)
    requests = writer.process(f"{name}: requests")
    lanes = Lanes(writer, requests, "requests")
    unsent = writer.track(requests, "not sent")
    for row in sorted(run.rows, key=lambda row: row.scheduled_s):
        if row.end_s is None:
            writer.instant(unsent, f"request {row.index} {row.outcome}", clock.ns(row.scheduled_s), _facts(row))
        else:
            _add_row(row, writer, lanes, clock)
    looks = writer.process(f"{name}: looks at the server")
    for sample in run.samples:
        _add_sample(sample, writer, looks, clock)
    switches = writer.track(looks, "switches it told")
    for switch in run.manifest.switches:
        args = {"reason": switch.reason}
        writer.instant(switches, f"{switch.source} to {switch.target}", clock.ns(switch.decided_s), args)
    return len(run.rows)


class _Clock:
    def __init__(self, start_ns: int) -> None:
        self._start_ns = start_ns

    def ns(self, at_s: float) -> int:
        return self._start_ns + round(at_s * 1e9)


def _add_row(row: RequestRow, writer: TraceWriter, lanes: Lanes, clock: _Clock) -> None:
    """Late, until the first token, tokens, and what came after the last one."""
    assert row.end_s is not None
    start_ns = clock.ns(row.scheduled_s)
    end_ns = max(clock.ns(row.end_s), start_ns + 1)
    track = lanes.take(start_ns)
    writer.slice(track, f"request {row.index} {row.outcome}", start_ns, end_ns, _facts(row))
    sent_ns = end_ns if row.sent_s is None else clock.ns(row.sent_s)
    first_ns, last_ns = (clock.ns(row.token_s[0]), clock.ns(row.token_s[-1])) if row.token_s else (end_ns, end_ns)
    marks = [start_ns, sent_ns, first_ns, last_ns, end_ns]
    for name, begin_ns, until_ns in zip(
        ("late", "until the first token", "tokens", "end"), marks[:-1], marks[1:], strict=True
    ):
        writer.slice(track, name, max(begin_ns, start_ns), min(until_ns, end_ns))
    lanes.give_back(track, end_ns)


def _facts(row: RequestRow) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "index": row.index,
        "phase": row.phase,
        "prompt_tokens": row.prompt_tokens,
        "output_tokens": row.output_tokens,
        "outcome": row.outcome,
        "status": row.status,
    }
    optional = {
        "finish": row.finish_reason,
        "error": row.error,
        "cached_tokens": row.cached_tokens,
        "slo_class": row.slo_class or None,
    }
    facts |= {name: value for name, value in optional.items() if value is not None}
    if row.stages is not None:
        for name in row.stages.__struct_fields__:
            if (spent_s := getattr(row.stages, name)) is not None:
                facts[f"server_{name.removesuffix('_s')}_ms"] = spent_s * 1e3
    return facts


def _add_sample(sample: ServerSample, writer: TraceWriter, pid: int, clock: _Clock) -> None:
    at_ns = clock.ns(sample.at_s)
    for name, values in (
        ("waiting", {"requests": sample.waiting}),
        ("running", {"prefill": sample.prefill_running, "decode": sample.decode_running}),
        ("KV in use", {"share": sample.kv_usage}),
        ("power", {"W": sample.power_w}),
        ("memory", {"bytes": sample.resident_bytes}),
    ):
        told: dict[str, float] = {key: value for key, value in values.items() if value is not None}
        if told:
            writer.counter(pid, name, at_ns, told)
