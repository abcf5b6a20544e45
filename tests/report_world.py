"""Result folders whose truth is known, to test reports with. Nothing here was measured on anything.

Each arm has a rate at which exactly 90% of its requests keep the TTFT target and one at which 90% keep the TPOT target;
the lower one is its goodput@90, up to the noise of the draw. Arrivals are shared between arms of one seed and rate.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from colocate.bench.records import (
    SCHEMA_VERSION,
    RequestRow,
    RunManifest,
    RunStatus,
    ServerSample,
    Stages,
    SweepArm,
    SweepManifest,
    Switch,
    TargetFacts,
)
from colocate.bench.report.model import Cell, ReportModel, Section, Table

TTFT_S, TPOT_S = 0.3, 0.05
SLO = ("chat: ttft 300 ms, tpot 50 ms",)
_Z_90 = 1.2815515655446004
_SPREAD = 0.35  # sigma of the logarithm of a latency
FAR = 1e9  # requests/s: a target that never binds


@dataclass(frozen=True)
class Truth:
    """How an arm behaves. `fails_at`: from this rate on its server dies half-way through each run."""

    name: str
    group: str
    ttft_rate: float
    tpot_rate: float = FAR
    system: str = "colocate"
    flags: tuple[str, ...] = ()
    plans: tuple[str, ...] = ("p92d40",)  # what it moves through
    fails_at: float = FAR
    tells: bool = True

    @property
    def goodput(self) -> float:
        return min(self.ttft_rate, self.tpot_rate)


@dataclass(frozen=True)
class World:
    """A sweep. `statuses` gives runs (arm, rate, seed) another status than valid."""

    arms: Sequence[Truth]
    rates: Sequence[float] = (2.0, 4.0, 6.0, 8.0)
    seeds: Sequence[int] = (0, 1, 2)
    num_requests: int = 60
    num_tokens: int = 8
    device: str = "emulated H200"
    kind: str = "emulated"
    units: int = 132
    slo: Sequence[str] = SLO
    statuses: dict[tuple[str, float, int], RunStatus] = field(default_factory=dict)
    missing: Sequence[tuple[str, float, int]] = ()
    keep_token_ids: bool = False
    closed: bool = False  # rates are concurrencies then

    def write(self, folder: Path) -> Path:
        (folder / "runs").mkdir(parents=True)
        for truth in self.arms:
            for rate in self.rates:
                for seed in self.seeds:
                    if (truth.name, rate, seed) not in self.missing:
                        self.write_run(
                            folder / "runs" / f"{truth.name.replace(':', '-')}_{rate:g}_{seed}", truth, rate, seed
                        )
        arms = tuple(SweepArm(truth.name, truth.group, truth.system, truth.flags) for truth in self.arms)
        sweep = SweepManifest(
            SCHEMA_VERSION,
            "2026-01-02T03:04:05Z",
            ("colocate", "sweep", "--rates", ",".join(map(str, self.rates))),
            arms,
            tuple(self.rates),
            tuple(self.seeds),
            {"lengths": "200/8", "arrivals": "poisson"},
            tuple(self.slo),
            100,
            None,
            _HOST,
            _GIT,
        )
        (folder / "sweep.json").write_bytes(msgspec.json.encode(sweep))
        return folder

    def write_run(self, folder: Path, truth: Truth, rate: float, seed: int) -> Path:
        folder.mkdir(parents=True)
        status = self.statuses.get((truth.name, rate, seed), "valid")
        rows = [] if status == "failed" else self.rows(truth, rate, seed)
        duration_s = self.num_requests / rate
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        (folder / "requests.jsonl").write_bytes(lines)
        switches = _switches(truth, duration_s)
        if truth.tells:
            samples = [
                self._sample(truth, switches, rate, at_s)
                for at_s in np.arange(0.0, duration_s, duration_s / 30).tolist()
            ]
            (folder / "server.jsonl").write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in samples))
        reasons = {
            "valid": (),
            "invalid": ("p99 lateness 31 ms is above the bound of 10 ms",),
            "partial": ("interrupted by Ctrl-C after 3 s",),
            "failed": ("the server did not start: exit code 1",),
        }
        spent = {plan: 1.0 / len(truth.plans) for plan in truth.plans}
        manifest = RunManifest(
            SCHEMA_VERSION,
            folder.name,
            status,
            reasons[status],
            f"2026-01-02T03:04:{seed:02d}Z",
            ("colocate", "bench", "--seed", str(seed)),
            truth.name,
            seed,
            None if self.closed else rate,
            int(rate) if self.closed else None,
            "synthetic",
            hashlib.sha256(f"{rate} {seed}".encode()).hexdigest(),
            duration_s,
            0.0,
            0.0,
            duration_s + 1,
            TargetFacts(
                "http://127.0.0.1:8000",
                truth.system,
                "demo",
                "0.1.0",
                ("colocate", "serve", *truth.flags),
                self.device if truth.tells else "",
                {"device": {"kind": self.kind, "name": self.device, "units": self.units}} if truth.tells else {},
            ),
            tuple(self.slo),
            "",
            {"lateness_p99_s": 0.0011, "lateness_bound_s": 0.01},
            _HOST,
            _GIT,
            spent if truth.group == "dynamic" else {},
            switches,
            {"prefix_cache_hit_rate": 0.25} if truth.tells else {},
        )
        (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        return folder

    def rows(self, truth: Truth, rate: float, seed: int) -> list[RequestRow]:
        arrivals = np.random.default_rng([seed, round(rate * 1000)])
        starts = np.cumsum(arrivals.exponential(1 / rate, self.num_requests))
        starts *= self.num_requests / rate / (starts[-1] + 1 / rate)
        rng = np.random.default_rng([seed, round(rate * 1000), *truth.name.encode()])
        names = [text.partition(":")[0] for text in self.slo]
        return [
            self._row(truth, rate, i, float(start), rng, names[i % len(names)] if len(names) > 1 else "")
            for i, start in enumerate(starts)
        ]

    def _row(
        self, truth: Truth, rate: float, index: int, start_s: float, rng: np.random.Generator, slo_class: str
    ) -> RequestRow:
        ttft = _latency(TTFT_S, rate / truth.ttft_rate, rng)
        tpot = (
            _latency(TPOT_S, rate / truth.tpot_rate, rng)
            if truth.tpot_rate < FAR
            else 0.02 * float(rng.uniform(0.9, 1.1))
        )
        common = {"index": index, "scheduled_s": start_s, "phase": "measured", "prompt_tokens": 200 + index % 7,
                  "max_tokens": self.num_tokens, "sent_s": start_s + 0.0005, "slo_class": slo_class}  # fmt: skip
        if rate >= truth.fails_at and index >= self.num_requests // 2:
            broken = {"outcome": "failed", "error": "connection reset by peer", "error_kind": "reset"}
            return msgspec.convert({**common, **broken}, RequestRow)
        if index % 29 == 28 and rate > truth.goodput * 1.4:
            return msgspec.convert(
                {**common, "outcome": "rejected", "status": 429, "error_kind": "http_429"}, RequestRow
            )
        first_s = start_s + ttft
        times = tuple(first_s + tpot * i for i in range(self.num_tokens))
        ids = tuple((index * 31 + i) % 97 for i in range(self.num_tokens)) if self.keep_token_ids else None
        return RequestRow(
            index,
            start_s,
            "measured",
            200 + index % 7,
            self.num_tokens,
            "finished",
            start_s + 0.0005,
            first_s,
            times,
            times[-1],
            200,
            "length",
            None,
            "",
            self.num_tokens,
            "ids",
            50,
            slo_class=slo_class,
            stages=Stages(0.001, ttft * 0.6, ttft * 0.4, times[-1] - first_s, 0.001) if truth.tells else None,
            token_ids=ids,
        )

    def _sample(self, truth: Truth, switches: Sequence[Switch], rate: float, at_s: float) -> ServerSample:
        done = [switch for switch in switches if switch.decided_s <= at_s]
        load = rate / truth.goodput
        wave = 0.5 + 0.5 * math.sin(at_s)
        return ServerSample(
            at_s, done[-1].target if done else truth.plans[0], int(8 * load * wave), 1, int(20 * load),
            min(1.0, 0.4 * load + 0.1 * wave), int(at_s * load / 4), len(done), None, 1_500_000_000,
        )  # fmt: skip


def _latency(target_s: float, load: float, rng: np.random.Generator) -> float:
    """Lognormal; its 90th percentile is the target where `load` is 1, and grows with the square of the load."""
    return float(target_s * math.exp(_SPREAD * (rng.standard_normal() - _Z_90)) * load**2)


def _switches(truth: Truth, duration_s: float) -> tuple[Switch, ...]:
    if len(truth.plans) < 2:
        return ()
    found = []
    for i in range(1, 7):
        at_s = duration_s * i / 7
        source, target = (truth.plans[(i + j) % len(truth.plans)] for j in (-1, 0))
        found.append(Switch(at_s, source, target, "queue grew", at_s + 0.002, at_s + 0.004))
    return tuple(found)


_HOST: dict[str, object] = {"processor": "Example CPU", "cores": 2, "memory_bytes": 25_000_000_000, "kernel": "Linux 6"}
_GIT: dict[str, object] = {"commit": "0123abc", "dirty": False}


def static(decode_units: int, goodput: float, total: int = 132, **more: object) -> Truth:
    plan = f"p{total - decode_units}d{decode_units}"
    flags = ("--mode", "colocated", "--plan", f"static:{plan}")
    return Truth(f"static:{plan}", "static", goodput, flags=flags, plans=(plan,), **more)  # type: ignore[arg-type]


def dynamic(name: str, goodput: float, **more: object) -> Truth:
    flags = ("--mode", "colocated", "--plan", name)
    return Truth(name, "dynamic", goodput, flags=flags, plans=("p92d40", "p68d64", "p116d16"), **more)  # type: ignore[arg-type]


def full_world(**changes: object) -> World:
    """Every kind of arm; the best dynamic one is better than the best static plan by a third."""
    arms = (
        static(16, 3.0), static(40, 4.5), static(64, 3.5), static(96, 2.5),
        dynamic("elastic", 5.0), dynamic("slo", 6.2),
        Truth("chunked:256", "chunked", 4.0, 3.5, flags=("--mode", "chunked", "--max-num-batched-tokens", "256")),
        Truth("chunked:1024", "chunked", 5.0, 3.0, flags=("--mode", "chunked", "--max-num-batched-tokens", "1024")),
        Truth("shared", "shared", 4.2, flags=("--mode", "shared"), plans=("shared",)),
        Truth("vllm", "peer", 4.1, 2.8, system="vllm", tells=False, fails_at=8.0),
    )  # fmt: skip
    return World(arms, **changes)  # type: ignore[arg-type]


def small(tmp_path: Path, *arms: Truth, **changes: object) -> Path:
    options = {"rates": (2.0, 4.0), "seeds": (0, 1), "num_requests": 20, **changes}
    return World(arms or (static(40, 3.0), static(96, 2.0), dynamic("slo", 3.0)), **options).write(tmp_path / "sweep")  # type: ignore[arg-type]


def section(model: ReportModel, name: str) -> Section:
    return next(each for each in model.sections if each.id == name)


def table(model: ReportModel, name: str) -> Table:
    return next(each for part in model.sections for each in part.tables if each.id == name)


def row(found: Table, *names: str) -> dict[str, Cell]:
    cells = next(each for each in found.rows if tuple(cell.text for cell in each[: len(names)]) == names)
    return {column.label: cell for column, cell in zip(found.columns, cells, strict=True)}


def raw(folder: Path, name: str) -> Iterator[dict[str, object]]:
    for path in sorted((folder / "runs").glob(f"{name}_*/requests.jsonl")):
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


ARMS = (
    static(40, 4.5), static(96, 3.0), dynamic("slo", 7.0),
    Truth("chunked:256", "chunked", 5.0, 3.0, flags=("--mode", "chunked")),
    Truth("shared", "shared", 4.2, flags=("--mode", "shared"), plans=("shared",)),
    Truth("vllm", "peer", 4.1, system="vllm", tells=False, fails_at=6.0),
)  # fmt: skip
SMALL = World(ARMS, rates=(2.0, 4.0, 6.0, 8.0), num_requests=40)
