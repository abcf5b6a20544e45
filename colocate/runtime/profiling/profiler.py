"""The profiler process: takes the engine's place and asks the two workers for forwards and steps of chosen states.

The workers cannot tell: they read the same messages over the same channels and switch plans by the same board.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from colocate.config.profile import Phase
from colocate.core.plan import build_plan_table
from colocate.errors import MeasuringFailed
from colocate.messages.control import ChildReady
from colocate.messages.decode import StepReport
from colocate.messages.prefill import PrefillDone
from colocate.messages.spec import ProcessSpec
from colocate.runtime.profiling.foreign import ForeignLoad, WaitingTime
from colocate.runtime.profiling.journal import Journal, Measured, Visit, header_of
from colocate.runtime.profiling.line import Leave, Line, WorkerLine
from colocate.runtime.profiling.loads import DecodeLoad, PrefillLoad, Timing, params_of
from colocate.runtime.profiling.progress import ProgressLine
from colocate.runtime.profiling.schedule import Setup, all_setups, order
from colocate.runtime.profiling.states import NUM_CORNERS, Limits, decode_state, limits_of, prefill_state
from colocate.transport.board import Board
from colocate.transport.control import ControlChannel
from colocate.types import Role

_PATIENCE_S = 120.0  # for a visit's first results, however large its state


def run_profiler(spec: ProcessSpec, control: ControlChannel, board: Board) -> None:
    """Entry of the process. Returns when the budget is spent, or when the supervisor wants it to end."""
    started_s = time.monotonic()
    assert spec.profiling is not None
    journal = Journal(Path(spec.profiling.journal), header_of(spec.config, spec.facts, spec.profiling))
    line = Line(control, board, board.plan().seq + 1)
    try:
        board.beat(Role.ENGINE, time.monotonic_ns())
        control.send(ChildReady(Role.ENGINE, os.getpid(), time.monotonic() - started_s))
        line.wait_for_workers()
        Profiler(spec, line, journal, time.monotonic_ns).run()
    except Leave:
        pass
    finally:
        line.close()
        journal.close()


class Profiler:
    """Visits points until the budget is spent. `clock_ns` is the workers' clock."""

    def __init__(self, spec: ProcessSpec, line: WorkerLine, journal: Journal, clock_ns: Callable[[], int]) -> None:
        assert spec.profiling is not None
        self._job = spec.profiling
        self._line = line
        self._journal = journal
        self._clock_ns = clock_ns
        self._vocab_size = spec.facts.vocab_size
        self._limits = limits_of_run(spec)
        self._params = params_of(self._job.temperature)
        self._total_units = spec.facts.total_units
        is_cpu = spec.facts.device_kind == "cpu"
        self._core_ids = spec.facts.unit_ids if is_cpu else sorted(os.sched_getaffinity(0))
        self._setups = all_setups(
            build_plan_table(spec.facts.total_units, spec.facts.unit_granularity, spec.facts.decode_shares)
        )
        self._waiting = {role: WaitingTime(pid) for role, pid in line.worker_pids.items()}
        self._plan_index = -1

    def run(self) -> None:
        self._warm_up()
        job, journal = self._job, self._journal
        spent_before_s, started_ns = journal.spent_s, self._clock_ns()
        done = [(visit.setup, visit.state) for visit in journal.visits]
        num_points = len(self._setups) * job.num_states
        foreign = ForeignLoad(self._core_ids, [os.getpid(), *self._line.worker_pids.values()])
        with ProgressLine(job.budget_s, spent_before_s, num_points, len(done)) as progress:
            for setup, state in order(self._setups, job.num_states, done, job.seed):
                spent_s = spent_before_s + (self._clock_ns() - started_ns) / 1e9
                if spent_s >= job.budget_s:
                    return
                progress.show(spent_s, setup.name, state)
                foreign.lap()
                measured = self._visit(setup, state, job.visit_s)
                spent_s = spent_before_s + (self._clock_ns() - started_ns) / 1e9
                journal.append(Visit(setup.name, state, spent_s, round(foreign.lap(), 3), measured))

    def _warm_up(self) -> None:
        """Both phases alone at their largest states: every page of the pool that is used gets mapped."""
        for setup in self._setups:
            if max(setup.prefill_units, setup.decode_units) == self._total_units and not setup.is_contended:
                for state in range(NUM_CORNERS):
                    self._visit(setup, state, 0.0)

    def _visit(self, setup: Setup, state: int, visit_s: float) -> list[Measured]:
        """Stay at one state until the time is over and each phase has enough to count."""
        if setup.plan_index != self._plan_index:
            self._line.set_plan(setup.plan_index)
            self._plan_index = setup.plan_index
        limits, seed = self._limits, self._job.seed
        prefill = decode = None
        if setup.prefill_units:
            chosen = prefill_state(limits, seed, state)
            prefill = PrefillLoad(self._line, limits, chosen, self._params, self._vocab_size)
            prefill.start()
        if setup.decode_units:
            decode = DecodeLoad(self._line, limits, decode_state(limits, seed, state), self._params)
            decode.start()
        for waiting in self._waiting.values():
            waiting.lap()
        self._attend(prefill, decode, self._clock_ns() + int(visit_s * 1e9))
        waited_s = {role: waiting.lap() for role, waiting in self._waiting.items()}
        if setup.prefill_units + setup.decode_units > self._total_units:
            waited_s = {}  # they waited for each other, and that is what is measured
        return _measured(setup, prefill, decode, waited_s)

    def _attend(self, prefill: PrefillLoad | None, decode: DecodeLoad | None, until_ns: int) -> None:
        """Hear the reports until the visit is over and the workers are idle again."""
        give_up_ns = self._clock_ns() + int(_PATIENCE_S * 1e9)
        while not all(load is None or load.is_idle for load in (prefill, decode)):
            now_ns = self._clock_ns()
            if now_ns >= until_ns and all(of_phase or of_phase is None for of_phase in _counted(prefill, decode)):
                if prefill is not None:
                    prefill.stop()
                if decode is not None and (prefill is None or prefill.is_idle):
                    decode.stop()
            message = self._line.hear(until_ns if now_ns < until_ns else give_up_ns)
            if isinstance(message, PrefillDone) and prefill is not None:
                prefill.take(message)
            elif isinstance(message, StepReport) and decode is not None:
                decode.take(message)
            elif self._clock_ns() >= give_up_ns:
                raise MeasuringFailed(f"no result within {_PATIENCE_S:g} s")


def limits_of_run(spec: ProcessSpec) -> Limits:
    scheduler, facts = spec.config.scheduler, spec.facts
    return limits_of(
        scheduler.max_num_batched_tokens,
        scheduler.max_num_seqs,
        facts.max_model_len,
        facts.num_blocks,
        facts.block_size,
    )


def _counted(prefill: PrefillLoad | None, decode: DecodeLoad | None) -> tuple[list[Timing] | None, list[Timing] | None]:
    """All but the first of each phase; with both at work, only what lies wholly inside the other's time."""
    if prefill is None or decode is None:
        return (
            None if prefill is None else prefill.timings[1:],
            None if decode is None else decode.timings[1:],
        )
    return _inside(prefill.timings, decode.timings), _inside(decode.timings, prefill.timings)


def _inside(timings: list[Timing], others: list[Timing]) -> list[Timing]:
    if not others:
        return []
    first_ns, last_ns = others[0].started_ns, others[-1].finished_ns
    return [each for each in timings[1:] if each.started_ns >= first_ns and each.finished_ns <= last_ns]


def _measured(
    setup: Setup, prefill: PrefillLoad | None, decode: DecodeLoad | None, waited_s: dict[Role, float]
) -> list[Measured]:
    of_prefill, of_decode = _counted(prefill, decode)
    measured: list[Measured] = []
    sides: tuple[tuple[Phase, Role, PrefillLoad | DecodeLoad | None, list[Timing] | None], ...] = (
        ("prefill", Role.PREFILL, prefill, of_prefill),
        ("decode", Role.DECODE, decode, of_decode),
    )
    for phase, role, load, counted in sides:
        if load is None or not counted:
            continue
        units = setup.prefill_units, setup.decode_units
        own, peer = units if role is Role.PREFILL else units[::-1]
        all_s = sum(each.seconds for each in load.timings)
        waited = min(1.0, waited_s.get(role, 0.0) / all_s)
        measured.append(
            Measured(
                phase,
                own,
                peer,
                linear=sum(each.linear for each in counted) / len(counted),
                pairs=sum(each.pairs for each in counted) / len(counted),
                seconds=[round(each.seconds, 9) for each in counted],
                waited=round(waited, 3),
                mean_s=round(all_s / len(load.timings), 9),
            )
        )
    return measured
