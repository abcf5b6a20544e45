"""The control line: whole messages, never a block, and the end of a peer seen after its last message."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from colocate.errors import ChannelClosed, InvariantError
from colocate.messages.control import ChildReady, EngineAt, ProcessTable, Shutdown, StartupPhase
from colocate.transport.control import ControlChannel
from colocate.transport.waiting import wait
from colocate.types import Role
from tests.limits import LIMIT_S


@pytest.fixture
def ends() -> Iterator[tuple[ControlChannel, ControlChannel]]:
    parent, child = ControlChannel.pair()
    yield parent, child
    parent.close()
    child.close()


def test_messages_both_ways(ends: tuple[ControlChannel, ControlChannel]) -> None:
    parent, child = ends
    ready = ChildReady(Role.DECODE, 12, 0.25, {"blocks": 4, "name": "x"})
    assert child.send(StartupPhase("warm-up")) and child.send(ready)
    assert parent.send(EngineAt(2, "ipc://@x"))
    assert [parent.recv(), parent.recv(), parent.recv()] == [StartupPhase("warm-up"), ready, None]
    assert child.recv() == EngineAt(2, "ipc://@x")


def test_last_message_is_read_before_the_end(ends: tuple[ControlChannel, ControlChannel]) -> None:
    parent, child = ends
    child.send(StartupPhase("last words"))
    child.close()
    assert wait([parent], LIMIT_S)
    assert parent.recv() == StartupPhase("last words")
    with pytest.raises(ChannelClosed):
        parent.recv()
    with pytest.raises(ChannelClosed):
        parent.send(Shutdown())


def test_a_peer_that_does_not_read_refuses_instead_of_blocking(ends: tuple[ControlChannel, ControlChannel]) -> None:
    parent, child = ends
    sent = 0
    while parent.send(EngineAt(sent, "x" * 1000)):
        sent += 1
        assert sent < 100_000
    for epoch in range(sent):
        assert child.recv() == EngineAt(epoch, "x" * 1000)
    assert child.recv() is None
    assert parent.send(Shutdown())


def test_junk_is_counted_and_an_oversized_message_refused() -> None:
    raw, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = ControlChannel(other.detach())
    raw.send(b"\xc1junk")
    raw.send(b"\x80")
    assert channel.recv() is None
    assert channel.statistics()["dropped_junk"] == 2
    with pytest.raises(InvariantError, match="does not fit"):
        channel.send(ProcessTable("x" * 100_000, [], {}))
    raw.close()
    channel.close()


def test_descriptors_are_not_inherited_by_default(ends: tuple[ControlChannel, ControlChannel]) -> None:
    parent, child = ends
    assert not os.get_inheritable(parent.fileno())
    child.set_inheritable(True)
    assert os.get_inheritable(child.fileno())
