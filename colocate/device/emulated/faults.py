"""Injected faults: `[ROLE:]ACTION@TRIGGER[,KEY=VALUE...]`, several of them, each for one worker or for all.

    decode:exit@step=100                  die (SIGKILL) before step 100
    prefill:hang@batch=3                  stop getting on, heartbeat alive, before batch 3
    freeze@step=5                         stop altogether (SIGSTOP), heartbeat too
    decode:slow@step=50,ms=200            one slow step
    decode:garbage@step=10                junk on the channel to the engine, then go on
    prefill:raise@token=13                raise while a prompt that contains token 13 is run
    decode:gpu-fault@step=20              a memory fault of the device: no worker can go on
    decode:exit@token=77                  die whenever such a request is stepped: a poison request
    exit@switch  /  exit@switch=2         die in the middle of a (the second) plan switch
    exit@start                            die before becoming ready

In mode `chunked` one worker runs both phases: `hybrid:` is that worker, and a fault of a phase strikes it in that phase
(`prefill:` and `batch` before a chunk, `decode:` and `step` before a step of standing rows).

`incarnation=N` limits a fault to the N-th process of its role (1 is the first), so that a restart is healthy.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from colocate.config.roles import ANY_WORKER
from colocate.errors import ConfigError, DeviceLost
from colocate.types import Role

ACTIONS = ("exit", "hang", "freeze", "slow", "garbage", "raise", "gpu-fault")
TRIGGERS = ("step", "batch", "token", "switch", "start")
_GRAMMAR = "[prefill:|decode:|hybrid:]ACTION@TRIGGER[=N][,ms=N][,incarnation=N]"
_NEEDS_NUMBER = ("step", "batch", "token")


class InjectedFault(RuntimeError):
    """What `raise` raises: a stand-in for any failure of a kernel."""


@dataclass(frozen=True, slots=True)
class Fault:
    role: Role | None  # None: every worker
    action: str
    trigger: str
    number: int | None  # which step, batch, switch or token; None: every one
    ms: int = 100
    incarnation: int | None = None


def parse_fault(text: str) -> Fault:
    """Raises ConfigError that quotes the fault and says what is wrong with it."""
    head, at, tail = text.partition("@")
    role_name, colon, action = head.rpartition(":")
    if not at:
        raise _bad(text, "has no @TRIGGER")
    if colon and role_name not in [role.value for role in ANY_WORKER]:
        raise _bad(text, f"names no worker: {role_name!r}")
    if action not in ACTIONS:
        raise _bad(text, f"has no known action: {action!r}; actions are {', '.join(ACTIONS)}")
    trigger_text, *option_texts = tail.split(",")
    trigger, _, number_text = trigger_text.partition("=")
    if trigger not in TRIGGERS:
        raise _bad(text, f"has no known trigger: {trigger!r}; triggers are {', '.join(TRIGGERS)}")
    if trigger in _NEEDS_NUMBER and not number_text:
        raise _bad(text, f"needs a number: {trigger}=N")
    number = _number(text, trigger, number_text) if number_text else None
    options: dict[str, int] = {}
    for option in option_texts:
        key, _, value = option.partition("=")
        if key not in ("ms", "incarnation"):
            raise _bad(text, f"has no option {key!r}")
        options[key] = _number(text, key, value)
    role = Role(role_name) if colon else None
    return Fault(role, action, trigger, number, options.get("ms", 100), options.get("incarnation"))


def _number(text: str, key: str, value: str) -> int:
    if not value.isdecimal():
        raise _bad(text, f"{key} must be a whole number, not {value!r}")
    return int(value)


def _bad(text: str, problem: str) -> ConfigError:
    return ConfigError("device.faults", f"{text!r} {problem}", f"write {_GRAMMAR}")


def poison_tokens(faults: Iterable[Fault]) -> frozenset[int]:
    """Token ids that some of these faults look for."""
    return frozenset(fault.number for fault in faults if fault.trigger == "token" and fault.number is not None)


class FaultInjector:
    """The faults of one worker process. `send_junk` puts raw frames on its channel."""

    def __init__(
        self, faults: Sequence[Fault], role: Role, incarnation: int, send_junk: Callable[[tuple[bytes, ...]], None]
    ) -> None:
        mine = ANY_WORKER if role is Role.HYBRID else (role,)
        self._faults = [
            fault
            for fault in faults
            if (fault.role is None or fault.role in mine) and fault.incarnation in (None, incarnation)
        ]
        self._role = role
        self._send_junk = send_junk
        self._num_works = {Role.PREFILL: 0, Role.DECODE: 0}
        self._num_switches = -1  # the first share taken is no switch
        self.token_ids = poison_tokens(self._faults)

    def before_work(self, phase: Role, token_ids: Collection[int] = ()) -> None:
        """Before every batch (prefill) and every step (decode). `token_ids`: poison among what is about to run."""
        self._num_works[phase] += 1
        work, number = "batch" if phase is Role.PREFILL else "step", self._num_works[phase]
        for fault in self._faults:
            if fault.role not in (None, self._role, phase):
                continue
            if (fault.trigger == work and fault.number == number) or (
                fault.trigger == "token" and fault.number in token_ids
            ):
                self._commit(fault)

    def during_switch(self) -> None:
        self._num_switches += 1
        for fault in self._faults:
            if fault.trigger == "switch" and self._num_switches and fault.number in (None, self._num_switches):
                self._commit(fault)

    def at_start(self) -> None:
        for fault in self._faults:
            if fault.trigger == "start":
                self._commit(fault)

    def _commit(self, fault: Fault) -> None:
        if fault.action == "exit":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.action == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault.action == "hang":
            while True:
                time.sleep(3600)
        elif fault.action == "slow":
            time.sleep(fault.ms / 1000)
        elif fault.action == "garbage":
            for junk in ((b"junk",), (b"\0" * 8, b"\xc1"), (b"\0" * 8, b""), (b"\xff" * 8, b"\x80")):
                self._send_junk(junk)
        elif fault.action == "gpu-fault":
            raise DeviceLost(f"injected by a fault on {fault.trigger}={fault.number}")
        else:
            raise InjectedFault(f"injected by a fault on {fault.trigger}={fault.number}")
