"""What a probe worker can do: every command of `commands.py`, on the backend that a worker of a run has."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from colocate.device.cuda.backend import Backend, open_backend
from colocate.device.cuda.proof import commands
from colocate.device.cuda.proof.commands import Answer, Command
from colocate.device.cuda.proof.memory_probe import KeptMemory, MappedMemory, context_free_driver
from colocate.device.cuda.proof.partition_probe import PartitionProbe
from colocate.errors import InvariantError

Fds = tuple[int, ...]
Thing = TypeVar("Thing")

_ENDLESS_ROUNDS = 2**32 - 1  # some nine minutes on an H200
_NOWHERE = 0x10


class Subject:
    """One worker's state. Owned by its main thread; commands come one at a time."""

    def __init__(self, peer_fd: int) -> None:
        self._peer = socket.socket(fileno=peer_fd) if peer_fd >= 0 else None
        self._index = 0
        self._backend: Backend | None = None
        self._probe: PartitionProbe | None = None
        self._kept: KeptMemory | None = None
        self._mapped: MappedMemory | None = None
        self._then: Callable[[], None] | None = None
        self._handlers: dict[type, Callable[[Any], Answer]] = {
            commands.Open: self._open,
            commands.Arm: lambda command: self.probe.arm(command.role, command.shares),
            commands.ReadAtoms: lambda _: self.probe.read_atoms(),
            commands.ReadShares: lambda _: self.probe.read_shares(),
            commands.Burn: lambda command: self.probe.burn(command.share, command.rounds),
            commands.BurnApart: lambda command: self.probe.burn_apart(
                command.prefill_sms, command.decode_sms, command.rounds
            ),
            commands.ReplayGraph: lambda command: self.probe.replay_graph(command.share, command.other),
            commands.Switch: lambda command: self.probe.switch(command),
            commands.HandOver: self._hand_over,
            commands.WritePattern: lambda command: commands.Done(self.mapped.write(command.seed)),
            commands.CountWrong: lambda command: commands.Wrong(*self.mapped.count_wrong(command.seed)),
            commands.WriteOnAndOn: self._write_on_and_on,
            commands.Fault: lambda _: self._write_to(_NOWHERE),
            commands.WriteReadOnly: lambda _: self._write_to(self.mapped.address),
            commands.Hang: self._hang,
        }

    @property
    def probe(self) -> PartitionProbe:
        return _opened(self._probe)

    @property
    def mapped(self) -> MappedMemory:
        return _opened(self._mapped)

    def do(self, command: Command, fds: list[int]) -> tuple[Answer, Fds]:
        """The answer, and descriptors that go with it. `fds` are the subject's to close."""
        if isinstance(command, commands.MakeMemory | commands.ExportMemory):
            return self._keep(command)
        if isinstance(command, commands.MapMemory):
            return self._map(command, fds), ()
        return self._handlers[type(command)](command), ()

    def go_on(self) -> None:
        """What goes on after the answer was sent; returns at once after most commands."""
        then, self._then = self._then, None
        if then is not None:
            then()

    def _open(self, command: commands.Open) -> Answer:
        self._index = command.index
        self._backend = open_backend(command.index)
        self._probe = PartitionProbe(self._backend, command.index)
        return self._probe.opened()

    def _hand_over(self, command: commands.HandOver) -> Answer:
        peer = _opened(self._peer)
        if command.is_sender:
            return self.probe.send_hand_overs(peer, command.share, command.rounds)
        return self.probe.receive_hand_overs(peer, command.share, command.rounds)

    def _keep(self, command: commands.MakeMemory | commands.ExportMemory) -> tuple[Answer, Fds]:
        if isinstance(command, commands.MakeMemory):
            if self._kept is not None:
                self._kept.close()
            self._kept = KeptMemory(context_free_driver(command.index), command.index, command.num_bytes)
        kept = _opened(self._kept)
        return commands.Memory(kept.segment.reserved_bytes), (kept.export(),)

    def _map(self, command: commands.MapMemory, fds: list[int]) -> Answer:
        (fd,) = fds
        fds.clear()
        if self._mapped is not None:
            self._mapped.close()
        self._mapped = MappedMemory(
            _opened(self._backend), self._index, fd, command.num_bytes, writable=command.writable
        )
        return commands.Done(0.0)

    def _write_on_and_on(self, _: commands.WriteOnAndOn) -> Answer:
        self.mapped.start_writing()
        self._then = self.mapped.write_for_ever
        return commands.Done(0.0)

    def _write_to(self, address: int) -> Answer:
        self.probe.write_to(address)
        return commands.Done(0.0)

    def _hang(self, command: commands.Hang) -> Answer:
        """In a thread of its own: on the fake device a launch returns when the work is done."""
        work = threading.Thread(target=self.probe.burn, args=(command.share, _ENDLESS_ROUNDS), daemon=True)
        work.start()
        self._then = work.join
        return commands.Done(0.0)


def _opened(thing: Thing | None) -> Thing:
    if thing is None:
        raise InvariantError("the doctor asked for something before it was opened")
    return thing
