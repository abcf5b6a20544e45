"""Looks at the server once a second while it is under load, and at its counters before and after."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil

from colocate.bench.http import HttpError, ask
from colocate.bench.records import ServerSample, Switch
from colocate.bench.target import Target

_LOOK_TIMEOUT_S = 5.0
_LISTENING = "0A"  # in /proc/net/tcp
# The kernel walks page tables for this, while the server's threads may wait: rarely.
_LOOKS_PER_MEMORY = 10
_LINE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

# Field of a ServerSample or name of a total -> the names it goes by.
_GAUGES: Mapping[str, tuple[str, ...]] = {
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred"),
    "decode_running": ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing"),
    "kv_usage": (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "sglang:token_usage",
        "llamacpp:kv_cache_usage_ratio",
    ),
    "preemptions": ("vllm:num_preemptions_total", "sglang:num_retracted_reqs_total"),
}
_TOTALS: Mapping[str, tuple[str, ...]] = {
    "preemptions": ("colocate_preemptions_total", "vllm:num_preemptions_total"),
    "prefix_queries": ("colocate_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"),
    "prefix_hits": ("colocate_prefix_cache_hits_total", "vllm:prefix_cache_hits_total", "sglang:cached_tokens_total"),
    "switches": ("colocate_plan_switches_total",),
    "prompt_tokens": ("colocate_prompt_tokens_total", "vllm:prompt_tokens_total", "sglang:prompt_tokens_total"),
    "output_tokens": (
        "colocate_generation_tokens_total",
        "vllm:generation_tokens_total",
        "sglang:generation_tokens_total",
    ),
}
_RESIDENCY = "colocate_plan_residency_seconds_total"

Series = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters of a server at one time. `residency_s`: seconds with work that each plan was in force."""

    counters: Mapping[str, float] = field(default_factory=dict)
    residency_s: Mapping[str, float] = field(default_factory=dict)
    energy_j: float | None = None
    cpu_s: float | None = None  # of the server's processes, where they are on this machine


@dataclass(slots=True)
class Watcher:
    """Looks until it is cancelled. Of a server that does not answer, only what the machine tells is left."""

    target: Target
    clock: Callable[[], float]
    on_sample: Callable[[ServerSample], None]
    interval_s: float = 1.0
    switches: dict[int, Switch] = field(default_factory=dict)  # by number; each look sees the server's last 64
    num_failed: int = 0
    peak_resident_bytes: int | None = None
    _process: psutil.Process | None = None
    _power: PowerMeter | None = None

    def __post_init__(self) -> None:
        if self.target.address.is_local:
            self._process = listening_process(self.target.address.port)
            self._power = open_power_meter()

    async def run(self) -> None:
        num_looks = 0
        while True:
            await self.look(with_memory=num_looks % _LOOKS_PER_MEMORY == 0)
            num_looks += 1
            await asyncio.sleep(self.interval_s)

    async def look(self, *, with_memory: bool) -> None:
        try:
            sample = await (self._state() if self.target.system == "colocate" else self._metrics())
        except (HttpError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, ZeroDivisionError):
            self.num_failed += 1
            sample = {}
        at_s = round(self.clock(), 6)
        resident = await asyncio.to_thread(self._resident) if with_memory else None
        if resident is not None:
            self.peak_resident_bytes = max(self.peak_resident_bytes or 0, resident)
        power = None if self._power is None else self._power.watts()
        if sample or power is not None or resident is not None:
            sample = {"at_s": at_s, **sample, "power_w": power, "resident_bytes": resident}
            self.on_sample(ServerSample(**sample))

    async def _state(self) -> dict[str, Any]:
        state = orjson.loads(await self._get("/state"))
        now_s = self.clock()
        switches = state["switches"]
        last = switches["last"]
        for switch in switches.get("recent") or ([] if last is None else [last]):
            self.note_switch(switch, now_s)
        queue, kv = state["queue"], state["kv"]
        return {
            "plan": state["plan"]["name"],
            "waiting": queue["waiting"],
            "prefill_running": queue["prefill_running"],
            "decode_running": queue["decode_running"],
            "kv_usage": 1.0 - (kv["blocks_free"] + kv["blocks_cached"]) / kv["blocks_total"],
            "preemptions": state["preemptions"],
            "switches": state["switches"]["count"],
        }

    def note_switch(self, told: Mapping[str, Any], now_s: float) -> None:
        """Of `/state`. Told again, it only adds what has become known since."""
        known, decided_s = self.switches.get(told["seq"]), now_s - told["age_s"]
        if decided_s < 0:
            return  # before the run
        decided_s = round(decided_s, 6) if known is None else known.decided_s

        def at(after_ms: float | None) -> float | None:
            return None if after_ms is None else round(decided_s + after_ms / 1e3, 6)

        self.switches[told["seq"]] = Switch(
            decided_s=decided_s,
            source=told["from"],
            target=told["to"],
            reason=told["reason"],
            prefill_applied_s=at(told["prefill_applied_ms"]),
            decode_applied_s=at(told["decode_applied_ms"]),
        )

    async def _metrics(self) -> dict[str, Any]:
        series = read_series((await self._get("/metrics")).decode(errors="replace"))
        sample: dict[str, Any] = {}
        for name, spellings in _GAUGES.items():
            value = _sum_of(series, spellings)
            if value is not None:
                sample[name] = value if name == "kv_usage" else int(value)
        return sample

    async def totals(self) -> Totals:
        """Empty where the server has no counters."""
        try:
            series = read_series((await self._get("/metrics")).decode(errors="replace"))
        except HttpError:
            series = {}
        counters = {name: value for name, names in _TOTALS.items() if (value := _sum_of(series, names)) is not None}
        residency = {labels.get("plan", ""): value for labels, value in series.get(_RESIDENCY, [])}
        energy_j = None if self._power is None else self._power.joules()
        return Totals(counters, residency, energy_j, self._cpu_s())

    async def _get(self, path: str) -> bytes:
        answer = await ask(self.target.address, "GET", path, self.target.headers, timeout_s=_LOOK_TIMEOUT_S)
        if answer.status != 200:
            raise HttpError(f"http_{answer.status}", path)
        return bytes(answer.content)

    def _resident(self) -> int | None:
        """Proportional set size of the server's process tree: memory that several share counts once."""
        try:
            return sum(int(process.memory_full_info().pss) for process in self._tree()) or None
        except psutil.Error:
            return None

    def _cpu_s(self) -> float | None:
        try:
            times = [process.cpu_times() for process in self._tree()]
        except psutil.Error:
            return None
        return sum(each.user + each.system for each in times) if times else None

    def _tree(self) -> list[psutil.Process]:
        return [] if self._process is None else [self._process, *self._process.children(recursive=True)]


def differences(before: Totals, after: Totals) -> tuple[dict[str, float], dict[str, object]]:
    """(residency shares, figures) of what lies between two looks. A counter that fell was reset: it is left out."""
    spent = {plan: after_s - before.residency_s.get(plan, 0.0) for plan, after_s in after.residency_s.items()}
    total_s = sum(spent.values())
    residency = (
        {plan: round(part_s / total_s, 6) for plan, part_s in spent.items() if part_s > 0} if total_s > 0 else {}
    )
    figures: dict[str, object] = {
        name: change
        for name, value in after.counters.items()
        if (change := value - before.counters.get(name, 0.0)) >= 0
    }
    if before.energy_j is not None and after.energy_j is not None:
        figures["energy_j"] = round(after.energy_j - before.energy_j, 3)
    if before.cpu_s is not None and after.cpu_s is not None and after.cpu_s >= before.cpu_s:
        figures["server_cpu_s"] = round(after.cpu_s - before.cpu_s, 3)
    return residency, figures


def read_series(text: str) -> Series:
    """Prometheus' text format; lines that are none of it are skipped."""
    series: Series = {}
    for found in _LINE.finditer(text):
        try:
            value = float(found["value"])
        except ValueError:
            continue
        series.setdefault(found["name"], []).append((dict(_LABEL.findall(found["labels"] or "")), value))
    return series


def _sum_of(series: Series, names: tuple[str, ...]) -> float | None:
    for name in names:
        if name in series:
            return sum(value for _, value in series[name])
    return None


def listening_process(port: int) -> psutil.Process | None:
    """The oldest process of this machine that listens there (children may share their daemon's socket); None where it
    cannot be seen."""
    sockets = _listening_sockets(port)
    holders = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and sockets & _open_files(process.pid):
                holders.append((process.create_time(), process.pid, process))
        except (psutil.Error, OSError):
            continue  # gone, or another user's
    return min(holders)[2] if holders else None


def _listening_sockets(port: int) -> set[str]:
    """As links in /proc name them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def _open_files(pid: int) -> set[str]:
    links = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.add(str(file.readlink()))
        except OSError:
            continue  # closed meanwhile
    return links


class PowerMeter:
    """The GPUs of this machine, together, by NVML."""

    def __init__(self, nvml: Any, handles: list[Any]) -> None:
        self._nvml = nvml
        self._handles = handles

    def watts(self) -> float | None:
        try:
            return float(sum(self._nvml.nvmlDeviceGetPowerUsage(handle) for handle in self._handles)) / 1e3
        except self._nvml.NVMLError:
            return None

    def joules(self) -> float | None:
        """Since the driver was loaded; None before Volta."""
        try:
            millijoules = sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles)
            return float(millijoules) / 1e3
        except self._nvml.NVMLError:
            return None


def open_power_meter() -> PowerMeter | None:
    """None without a driver or a GPU that tells. CUDA_VISIBLE_DEVICES narrows it where it holds numbers."""
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        chosen = [int(part) for part in visible.split(",")] if re.fullmatch(r"\d+(,\d+)*", visible) else range(count)
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in chosen]
    except Exception:  # a missing package, library or driver, each with an error of its own
        return None
    meter = PowerMeter(pynvml, handles)
    return meter if handles and meter.watts() is not None else None
