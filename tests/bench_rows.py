"""Runs of a bench, made by hand or drawn: for the tests of figures, reading and reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from hypothesis import strategies as st

from colocate.bench.read import Run
from colocate.bench.records import SCHEMA_VERSION, Outcome, RequestRow, RunManifest, ServerSample, TargetFacts

OUTCOMES: tuple[Outcome, ...] = ("finished", "rejected", "failed", "timed_out", "cut_off", "not_sent")


def manifest(**changes: object) -> RunManifest:
    """Ten seconds of load: one of warm-up, eight measured, one of cool-down."""
    facts = RunManifest(
        schema_version=SCHEMA_VERSION, run_id="r", status="valid", reasons=(), created="2026-01-01T00:00:00Z",
        command=("colocate", "bench"), arm="a", seed=0, offered_rate=1.0, concurrency=None, workload="w",
        workload_sha256="0", duration_s=10.0, warmup_s=1.0, cooldown_s=1.0, elapsed_s=11.0,
        target=TargetFacts("http://127.0.0.1:8000", "colocate", "m"), slo_classes=("chat: ttft 300 ms, tpot 50 ms",),
        default_slo_class="chat", client={}, host={}, git={},
    )  # fmt: skip
    return msgspec.structs.replace(facts, **changes)


def row(index: int, scheduled_s: float, token_s: Sequence[float] = (), **changes: object) -> RequestRow:
    """A finished answer with these token times, measured, of 100 prompt tokens."""
    made = RequestRow(
        index, scheduled_s, "measured", 100, max(1, len(token_s)), "finished", sent_s=scheduled_s,
        token_s=tuple(token_s), end_s=token_s[-1] if token_s else scheduled_s, output_tokens=len(token_s), status=200,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def run(rows: Sequence[RequestRow], samples: Sequence[ServerSample] = (), **changes: object) -> Run:
    return Run(Path("run"), manifest(**changes), tuple(rows), tuple(samples))


def write_run(folder: Path, made: Run) -> Path:
    """As the client writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(made.manifest))
    for name, records in (("requests.jsonl", made.rows), ("server.jsonl", made.samples)):
        (folder / name).write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    return folder


@st.composite
def drawn_rows(draw: st.DrawFn, index: int = 0) -> RequestRow:
    outcome = draw(st.sampled_from(OUTCOMES))
    scheduled_s = draw(st.floats(0.0, 10.0, allow_nan=False))
    was_sent = outcome != "not_sent"
    most = {"finished": 40, "failed": 20, "timed_out": 20, "cut_off": 20}.get(outcome, 0)
    gaps = draw(st.lists(st.floats(0.0, 0.5), min_size=outcome == "finished", max_size=most))
    token_s, at_s = [], scheduled_s
    for gap_s in gaps:
        at_s += gap_s
        token_s.append(at_s)
    phase = "warmup" if scheduled_s < 1.0 else "measured" if scheduled_s < 9.0 else "cooldown"
    return RequestRow(
        index, scheduled_s, phase, draw(st.integers(1, 4000)), max(1, len(gaps)), outcome,
        sent_s=scheduled_s if was_sent else None, token_s=tuple(token_s), end_s=at_s if was_sent else None,
        output_tokens=len(gaps), slo_class=draw(st.sampled_from(("", "chat", "steady"))),
    )  # fmt: skip


@st.composite
def drawn_runs(draw: st.DrawFn) -> Run:
    rows = [draw(drawn_rows(index=index)) for index in range(draw(st.integers(0, 12)))]
    status, elapsed_s = draw(st.sampled_from((("valid", 10.5), ("partial", 5.0), ("partial", 0.0), ("failed", 0.0))))
    loop = draw(st.sampled_from(({}, {"offered_rate": None, "concurrency": 2})))
    classes = ("chat: ttft 300 ms, tpot 50 ms", "steady: itl 100 ms, ttft_per_token 1 ms")
    return run(rows, slo_classes=classes, status=status, elapsed_s=elapsed_s, **loop)
