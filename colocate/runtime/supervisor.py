"""The supervisor: starts, watches and replaces the processes of one run, and ends them all.

One thread, one selector. What it waits for: process sentinels (pidfds), control sockets, signals, and the clock.

| lost | what happens |
|---|---|
| prefill, decode, hybrid | reaped, the engine told, started again on the keeper's memory |
| the GPU (a fault) | every worker killed and reaped, the engine told that KV is not trusted, all start again |
| frontend | reaped, the engine told, started again on the same listening socket |
| engine | reaped, started again with the next epoch; workers and frontend told where |
| keeper | engine and workers are killed and reaped, all of them start again; the frontend stays |
"""

from __future__ import annotations

import select
import selectors
import signal
import socket
import time
from collections.abc import Callable

from colocate.config.serve import ServeConfig
from colocate.device.cuda.mps import StartCut
from colocate.errors import ConfigError, InvariantError
from colocate.messages.control import (
    ChannelBroken,
    ChildFailed,
    ChildReady,
    Drain,
    Drained,
    PoisonFailed,
    ProcessTable,
    ReloadPlans,
    Shutdown,
    StartupPhase,
)
from colocate.runtime.child import Child, ChildState, Exit
from colocate.runtime.console import Console
from colocate.runtime.crew import LOSS_ORDER, Crew
from colocate.runtime.lifecycle import TRANSITIONS, Lifecycle
from colocate.runtime.watch import reason_to_kill
from colocate.transport.control import ControlMessage
from colocate.types import Role

EXIT_CLEAN = 0
EXIT_GAVE_UP = 1

_WATCH_EVERY_S = 0.1
_TABLE_EVERY_S = 1.0
# Time that children get to leave by themselves, at the end of a drain and after a second signal.
_LEAVE_S = 3.0
_LEAVE_AT_ONCE_S = 0.5


class Supervisor:
    """Runs once. `on_ready` is called each time every process has become ready for the first time in this run."""

    def __init__(
        self,
        config: ServeConfig,
        crew: Crew,
        console: Console,
        *,
        phases: dict[str, float],
        gpu_memory: dict[str, int],
        on_ready: Callable[[], None],
        describe: Callable[[Child, ChildReady], str],
    ) -> None:
        self._config = config
        self._crew = crew
        self._console = console
        self._phases = phases  # seconds per start-up phase
        self._gpu_memory = gpu_memory  # published as it is filled
        self._on_ready = on_ready
        self._describe = describe
        self._lifecycle = Lifecycle.STARTING
        self._exit_code = EXIT_CLEAN
        self._refusal: ConfigError | None = None
        self._last_failure: dict[Role, ChildFailed] = {}
        self._deadline_s = float("inf")  # of draining or stopping
        self._phase = "starting"
        self._started_s = time.monotonic()
        self._next_watch_s = 0.0
        self._next_table_s = 0.0
        self._selector = selectors.DefaultSelector()
        self._signals_in, self._signals_out = socket.socketpair()

    def run(self) -> int:
        """Until everything has stopped. Returns the exit code; raises ConfigError where a start was refused."""
        release = self._catch_signals()
        try:
            for role in self._crew.slots:
                self._start(role)
            while self._lifecycle is not Lifecycle.STOPPED:
                self._turn()
        finally:
            self._end_everything()
            release()
        if self._refusal is not None:
            raise self._refusal
        return self._exit_code

    # -- the loop --------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        stirred = [key.data for key, _ in self._selector.select(self._patience_s())]
        if None in stirred:
            self._on_signals(self._signals_in.recv(64))
        if any(child is not None for child in stirred):
            self._attend()
        now_s = time.monotonic()
        if now_s >= self._next_watch_s:
            self._next_watch_s = now_s + _WATCH_EVERY_S
            self._watch()
        for role, slot in self._crew.slots.items():
            if slot.start_at_s is not None and now_s >= slot.start_at_s:
                self._start(role)
        if now_s >= self._next_table_s:
            self._publish()
        if now_s >= self._deadline_s:
            self._on_deadline()
        if self._lifecycle is Lifecycle.STOPPING and not self._crew.children:
            self._move(Lifecycle.STOPPED)

    def _patience_s(self) -> float:
        starts = [slot.start_at_s for slot in self._crew.slots.values() if slot.start_at_s is not None]
        next_s = min([self._next_watch_s, self._next_table_s, self._deadline_s, *starts])
        return max(0.0, next_s - time.monotonic())

    def _attend(self) -> None:
        """Last words are read before anyone is declared lost, and a keeper that failed is heard before the workers
        that failed because of it."""
        ended = {child for child in self._crew.children if child.wait(0)}
        for child in self._crew.children:
            for message in child.messages():
                self._obey(child, message)
        for role in LOSS_ORDER:
            slot = self._crew.slots.get(role)
            if slot is not None and slot.child in ended:
                self._on_end(slot.child)

    def _watch(self) -> None:
        if self._lifecycle in (Lifecycle.STOPPING, Lifecycle.STOPPED):
            return
        for child in self._crew.children:
            reason = reason_to_kill(child, self._crew.board, self._config.supervisor)
            if reason is not None:
                self._crew.kill(child, reason)
        self._crew.kill_lost()

    # -- children --------------------------------------------------------------------------------------------------

    def _start(self, role: Role) -> None:
        try:
            if self._is_signalled():
                raise StartCut
            child = self._crew.start(role, self._is_signalled)
        except StartCut:
            self._crew.slots[role].start_at_s = time.monotonic()  # after the signal was heard
            return
        except ConfigError as error:
            if self._lifecycle is Lifecycle.STARTING:
                raise
            self._give_up(f"{role.value} cannot start again: {error}")
            return
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)
        self._selector.register(child.control.fileno(), selectors.EVENT_READ, child)
        self._next_table_s = 0.0

    def _obey(self, child: Child, message: ControlMessage) -> None:
        if isinstance(message, ChildReady):
            self._on_child_ready(child, message)
        elif isinstance(message, StartupPhase):
            self._phase = f"{child.role.value}: {message.phase} {message.detail}".strip()
            if self._lifecycle is Lifecycle.STARTING:
                self._console.progress(child.role.value, message.phase, message.detail)
            self._next_table_s = 0.0
        elif isinstance(message, ChildFailed):
            self._on_failure(child, message)
        elif isinstance(message, PoisonFailed):
            self._crew.slot_of(message.role).budget.forgive()
        elif isinstance(message, ChannelBroken):
            self._kill_role(message.role, f"messages lost: {message.reason}")
        elif isinstance(message, Drained) and self._lifecycle in (Lifecycle.DRAINING, Lifecycle.SERVING):
            self._stop(_LEAVE_S)

    def _on_failure(self, child: Child, failure: ChildFailed) -> None:
        """What the operator must mend ends a start at once. Later it is one more reason for a death."""
        self._last_failure[child.role] = failure
        if self._lifecycle is Lifecycle.STARTING and failure.operator:
            self._refusal = ConfigError(failure.where, failure.problem, failure.remedy)
            self._stop(0.0)

    def _kill_role(self, role: Role, reason: str) -> None:
        child = self._crew.slot_of(role).child
        if child is not None:
            self._crew.kill(child, reason)

    def _on_child_ready(self, child: Child, message: ChildReady) -> None:
        if child.state is not ChildState.STARTING:
            return
        child.move(ChildState.READY)
        self._next_table_s = 0.0
        seconds = child.ready_s - child.started_s
        if self._lifecycle is Lifecycle.STARTING:
            self._phases[child.role.value] = seconds
            self._console.step(child.role.value, self._describe(child, message), seconds)
            if self._crew.is_ready:
                self._phases["total"] = time.monotonic() - self._started_s
                self._move(Lifecycle.SERVING)
                self._on_ready()
        elif self._lifecycle in (Lifecycle.SERVING, Lifecycle.DRAINING):
            self._console.warn(f"{child.role.value} is back (pid {child.pid}) after {seconds:.1f} s")
            if self._lifecycle is Lifecycle.DRAINING and child.role in (Role.FRONTEND, Role.ENGINE):
                child.tell(Drain(max(0.0, self._deadline_s - time.monotonic())))

    def _on_end(self, child: Child) -> None:
        self._forget(child)
        failure = self._last_failure.pop(child.role, None)
        burial = self._crew.bury(child, self._forget, gpu_fault=failure is not None and failure.gpu_fault)
        ended, companions = burial.ended, [other.role for other in burial.companions]
        for other in companions:  # its words about the same fault are not about its successor
            self._last_failure.pop(other, None)
        self._next_table_s = 0.0
        if self._lifecycle in (Lifecycle.STOPPING, Lifecycle.STOPPED):
            return
        if child.role in (Role.FRONTEND, self._crew.client) and self._ends_with(child.role, ended, failure):
            return
        cause = f"{ended.cause}: {failure.problem}" if failure is not None else ended.cause
        self._replace(child.role, cause, companions)

    def _ends_with(self, role: Role, ended: Exit, failure: ChildFailed | None) -> bool:
        """A one-shot run is over with its client, whose failure is the run's; a drain has nobody left to wait for."""
        if role is self._crew.client:
            self._end_one_shot(ended, failure)
        elif self._lifecycle is not Lifecycle.DRAINING:
            return False
        self._stop(_LEAVE_S)
        return True

    def _end_one_shot(self, ended: Exit, failure: ChildFailed | None) -> None:
        if failure is not None and failure.operator:
            self._refusal = ConfigError(failure.where, failure.problem, failure.remedy)
        elif ended.code != 0:
            self._exit_code = EXIT_GAVE_UP
            self._console.warn(failure.problem if failure is not None else f"the client {ended.cause}")
            if failure is not None and failure.remedy:
                self._console.warn(f"to mend it: {failure.remedy}")

    def _replace(self, role: Role, cause: str, companions: list[Role]) -> None:
        """`companions` are dead as well, of the same fault, which counts as one death."""
        now_s = time.monotonic()
        wait_s = self._crew.slots[role].budget.on_death(now_s)
        if wait_s is None:
            settings = self._config.supervisor
            too_often = f" more than {settings.max_restarts} times in {settings.restart_window_s:g} s"
            often = too_often if settings.max_restarts else ""
            self._give_up(f"{role.value} (was {cause}) died{often}: giving up")
            return
        self._console.warn(f"{role.value} lost ({cause}); starting it again" + (f" in {wait_s:g} s" if wait_s else ""))
        dependents = [gone.role for gone in self._crew.bury_dependents(role, self._forget)]
        for gone in (*companions, *dependents):
            self._console.warn(f"{gone.value} ends and starts with it")
        for again in (role, *companions, *self._crew.dependents_of(role)):
            slot = self._crew.slots[again]
            slot.num_restarts += 1
            slot.start_at_s = now_s + wait_s

    def _give_up(self, why: str) -> None:
        self._console.warn(why)
        self._exit_code = EXIT_GAVE_UP
        self._stop(_LEAVE_AT_ONCE_S)

    def _forget(self, child: Child) -> None:
        self._selector.unregister(child.pidfd)
        self._selector.unregister(child.control.fileno())

    # -- the end ---------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> Callable[[], None]:
        """Signals become bytes on a socket, so that they are handled in the loop and nowhere else."""
        self._signals_in.setblocking(False)
        self._signals_out.setblocking(False)
        self._selector.register(self._signals_in, selectors.EVENT_READ, None)
        old_wakeup = signal.set_wakeup_fd(self._signals_out.fileno(), warn_on_full_buffer=False)
        # Without a plan file a lost terminal ends the run, as everywhere.
        reload = (signal.SIGHUP,) if self._config.scheduler.plans is not None else ()
        caught = (signal.SIGINT, signal.SIGTERM, *reload)
        for number in caught:
            signal.signal(number, lambda *_: None)

        def release() -> None:
            # The process ends now, with a code that is settled: a late signal must not turn it into a death by signal.
            for number in caught:
                signal.signal(number, signal.SIG_IGN)
            signal.set_wakeup_fd(old_wakeup)
            self._selector.close()
            self._signals_in.close()
            self._signals_out.close()

        return release

    def _is_signalled(self) -> bool:
        """Whether a signal waits to be heard."""
        return bool(select.select([self._signals_in], [], [], 0)[0])

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                self._crew.tell(Role.ENGINE, ReloadPlans())
            if number not in (signal.SIGINT, signal.SIGTERM):
                continue
            if self._lifecycle is Lifecycle.SERVING and not self._crew.is_one_shot:
                self._drain()
            elif self._lifecycle in (Lifecycle.STARTING, Lifecycle.SERVING, Lifecycle.DRAINING):
                # Interrupted before it served, or asked twice: what was cut is named by the exit code, as shells do.
                self._exit_code = 128 + number
                self._console.goodbye("stopping at once")
                self._stop(_LEAVE_AT_ONCE_S)
            elif self._lifecycle is Lifecycle.STOPPING:
                self._deadline_s = 0.0

    def _drain(self) -> None:
        timeout_s = self._config.http.drain_timeout_s
        self._console.goodbye(f"draining for at most {timeout_s:g} s; again to stop at once")
        self._move(Lifecycle.DRAINING)
        self._phase = "draining"
        self._publish()
        self._deadline_s = time.monotonic() + timeout_s
        for role in (Role.FRONTEND, Role.ENGINE):
            self._crew.tell(role, Drain(timeout_s))
        if self._crew.slots[Role.FRONTEND].child is None:
            self._stop(_LEAVE_S)

    def _stop(self, leave_s: float) -> None:
        self._move(Lifecycle.STOPPING)
        self._deadline_s = time.monotonic() + leave_s
        for slot in self._crew.slots.values():
            slot.start_at_s = None
        for child in self._crew.children:
            if child.state is ChildState.READY:
                child.tell(Shutdown())
            else:  # still importing: it would not hear
                self._crew.kill(child, "stopped while it started")

    def _on_deadline(self) -> None:
        self._deadline_s = float("inf")
        if self._lifecycle is Lifecycle.DRAINING:
            self._console.warn("drain timeout: running requests are cut")
            self._stop(_LEAVE_S)
        elif self._lifecycle is Lifecycle.STOPPING:
            for child in self._crew.children:
                self._crew.kill(child, "did not leave in time")

    def _end_everything(self) -> None:
        """Also after an exception: no child survives this call, but for one that the kernel holds, which is named."""
        try:
            for child in self._crew.children:
                self._crew.kill(child, "the supervisor ends")
            tried: set[Child] = set()
            while left := [child for child in self._crew.children if child not in tried]:
                tried.add(left[0])
                try:
                    self._crew.bury(left[0], lambda _: None)
                except ConfigError as error:
                    self._console.warn(str(error))
        finally:
            self._crew.close()

    def _move(self, to: Lifecycle) -> None:
        if to not in TRANSITIONS[self._lifecycle]:
            raise InvariantError(f"supervisor: {self._lifecycle} -> {to}")
        self._lifecycle = to

    def _publish(self) -> None:
        self._next_table_s = time.monotonic() + _TABLE_EVERY_S
        phase = self._phase
        if self._lifecycle is Lifecycle.SERVING:
            phase = "ready" if self._crew.is_ready else "recovering: " + ", ".join(self._crew.missing)
        self._crew.tell(Role.FRONTEND, ProcessTable(phase, self._crew.table(), self._phases, self._gpu_memory))
