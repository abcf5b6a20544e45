"""The processes of a proof: a prefill-like and a decode-like worker and a keeper, as a run has them.

Workers are clients of the private MPS daemon where there is one; the keeper never is. A worker that was lost is started
again when it is next asked for, so one check that kills a worker does not spoil the ones after it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from colocate.device.cuda.mps import MpsManager, environment_without_mps
from colocate.device.cuda.proof.commands import Arm, Armed, Open, Opened
from colocate.device.cuda.proof.probe_process import WORKER_MODULE, Inheritance, ProbeProcess

PREFILL, DECODE, KEEPER = "prefill", "decode", "keeper"
WORKERS = (PREFILL, DECODE)
_NEEDLESS = {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds an answer may take before the worker counts as hung. Generous: a limit is not a measurement."""

    open_s: float = 60.0  # importing torch and making a context
    answer_s: float = 20.0
    memory_s: float = 30.0


@dataclass(frozen=True, slots=True)
class CrewPlan:
    """What the crew is made of. `extra` adds variables to one worker's environment, by name: how tests break one side.
    `module` is what the workers run."""

    index: int
    limits: Limits = Limits()
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    module: str = WORKER_MODULE


class Crew:
    """Owned by the doctor's main thread. `close` is always called."""

    def __init__(self, plan: CrewPlan, mps: MpsManager | None) -> None:
        self.plan = plan
        self.limits = plan.limits
        self._mps = mps
        self._processes: dict[str, ProbeProcess] = {}
        self._opened: dict[str, Opened] = {}
        self._armed: dict[str, Armed] = {}
        self._shares: dict[str, list[int]] = {}
        # Both ends stay open here, so that a worker started again finds the same bell.
        self._bell = dict(zip(WORKERS, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET), strict=True))

    @property
    def has_mps(self) -> bool:
        return self._mps is not None

    @property
    def mps(self) -> MpsManager | None:
        return self._mps

    def go_without_mps(self) -> None:
        """End the workers; those started from here on are no MPS clients."""
        self.end_workers()
        self._mps = None

    def open(self, *names: str) -> dict[str, Opened]:
        """Start what is not running, side by side. Raises ProbeLost, ProbeRefused."""
        self._start(*names)
        return {name: self._opened[name] for name in names}

    def worker(self, name: str) -> ProbeProcess:
        """Running, opened and armed. Raises ProbeLost, ProbeRefused."""
        self._start(name)
        return self._processes[name]

    def both(self) -> tuple[ProbeProcess, ProbeProcess]:
        """Prefill and decode, running, opened and armed."""
        self._start(*WORKERS)
        return self._processes[PREFILL], self._processes[DECODE]

    def armed(self, name: str) -> Armed:
        """What the worker read back when its green contexts were made."""
        return self._armed[name]

    def arm(self, shares: Mapping[str, list[int]]) -> None:
        """Have these workers make the green contexts of their shares, also whenever one is started again."""
        self._shares = dict(shares)
        self._arm(*shares)

    def smallest_share(self, name: str) -> int:
        return min(self._shares[name])

    def end_workers(self) -> None:
        """Kill both; they are started again when next asked for."""
        for name in WORKERS:
            if name in self._processes:
                self._processes[name].kill()

    def keeper(self) -> ProbeProcess:
        """Running; it opens nothing until it is asked for memory."""
        process = self._processes.get(KEEPER)
        if process is None or not process.is_alive:
            process = self._processes[KEEPER] = self._spawn(KEEPER)
        return process

    def close(self) -> None:
        """Every process ends by itself or is killed; all are reaped."""
        for process in self._processes.values():
            process.leave()
        self._processes.clear()
        for end in self._bell.values():
            end.close()

    def _start(self, *names: str) -> None:
        missing = [name for name in names if name not in self._processes or not self._processes[name].is_alive]
        for name in missing:
            self._processes[name] = self._spawn(name)
            self._processes[name].begin(Open(self.plan.index))
        for name in missing:
            self._opened[name] = self._processes[name].finish(Opened, self.limits.open_s)
        self._arm(*(name for name in missing if name in self._shares))

    def _arm(self, *names: str) -> None:
        for name in names:
            self._processes[name].begin(Arm(name, self._shares[name]))
        for name in names:
            self._armed[name] = self._processes[name].finish(Armed, self.limits.answer_s)

    def _spawn(self, name: str) -> ProbeProcess:
        is_client = name != KEEPER and self._mps is not None
        of_mps = self._mps.environment_of_client() if is_client and self._mps else environment_without_mps()
        wanted: dict[str, str | None] = {**os.environ, **_NEEDLESS, **of_mps, **self.plan.extra.get(name, {})}
        environment = {variable: value for variable, value in wanted.items() if value is not None}
        peer = self._bell[name].fileno() if name in self._bell else -1
        return ProbeProcess(name, Inheritance(environment, peer), self.plan.module)
