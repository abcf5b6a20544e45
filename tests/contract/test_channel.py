"""One suite over both channels: whole messages, in order, numbered; refused rather than dropped; junk survived."""

from __future__ import annotations

import os
import secrets
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import pytest
import zmq
from msgspec import Struct

from colocate.errors import ChannelClosed, ConfigError, InvariantError
from colocate.messages.control import PlanApplied
from colocate.messages.decode import DecodeUpdate, StepReport, StepRow
from colocate.messages.prefill import PrefillCancel
from colocate.transport.channel import Channel
from colocate.transport.memory_channel import memory_pair
from colocate.transport.waiting import Waiter, wait
from colocate.transport.zmq_channel import ZmqChannel
from colocate.types import FinishReason, Role
from tests.limits import LIMIT_S

LIMIT_BYTES = 64 * 1024
HIGH_WATER = 32

ENGINE_ACCEPTS = (StepReport, PlanApplied)
WORKER_ACCEPTS = (DecodeUpdate, PrefillCancel)


@dataclass
class Link:
    """Both ends, and a way to put raw parts on the wire towards the engine."""

    engine: Channel
    worker: Channel
    inject: Callable[[tuple[bytes, ...]], None]


def _memory_link() -> Iterator[Link]:
    engine, worker = memory_pair(ENGINE_ACCEPTS, WORKER_ACCEPTS, high_water=HIGH_WATER, max_frame_bytes=LIMIT_BYTES)
    yield Link(engine, worker, worker.inject)
    engine.close()
    worker.close()


def _zmq_link() -> Iterator[Link]:
    address = f"ipc://@colocate-test-{secrets.token_hex(6)}"
    engine = ZmqChannel.bind(address, ENGINE_ACCEPTS, high_water=HIGH_WATER, max_frame_bytes=LIMIT_BYTES)
    worker = ZmqChannel.connect(address, WORKER_ACCEPTS, high_water=HIGH_WATER, max_frame_bytes=LIMIT_BYTES)
    yield Link(engine, worker, worker.inject)
    engine.close()
    worker.close()


@pytest.fixture(params=[_memory_link, _zmq_link], ids=["memory", "zmq"])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    yield from request.param()


def send_now(channel: Channel, message: Struct) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not channel.send(message):
        assert time.monotonic() < deadline, "the peer never connected"
        time.sleep(0.001)


def recv_now(channel: Channel) -> Struct:
    deadline = time.monotonic() + LIMIT_S
    waiter = Waiter([channel])
    while (message := channel.recv()) is None:
        assert time.monotonic() < deadline, "nothing arrived"
        waiter.wait(0.1)
    return message


def frame(number: int, message: Struct) -> tuple[bytes, bytes]:
    return struct.pack("<Q", number), msgspec.msgpack.encode(message)


def test_messages_arrive_whole_and_in_order_both_ways(link: Link) -> None:
    reports = [
        StepReport(step=step, rows=[StepRow(7, 1, 42 + step), StepRow(8, 2, 3, FinishReason.STOP)], plan_seq=step)
        for step in range(20)
    ]
    for report in reports:
        send_now(link.worker, report)
    send_now(link.engine, PrefillCancel([(5, 1)]))
    send_now(link.engine, DecodeUpdate(leaves=[(7, 1)]))
    assert [recv_now(link.engine) for _ in reports] == reports
    assert recv_now(link.worker) == PrefillCancel([(5, 1)])
    assert recv_now(link.worker) == DecodeUpdate(leaves=[(7, 1)])
    assert link.engine.recv() is None
    assert link.engine.statistics()["received"] == 20
    assert link.worker.statistics()["sent"] == 20


def test_full_channel_refuses_and_loses_nothing(link: Link) -> None:
    send_now(link.worker, PlanApplied(Role.DECODE, 0, 0))
    assert recv_now(link.engine) == PlanApplied(Role.DECODE, 0, 0)
    bulk = [(row, 1) for row in range(4000)]  # large, so that kernel buffers fill soon
    sent = 0
    refused_in_a_row = 0
    while refused_in_a_row < 20:
        if link.worker.send(StepReport(step=sent, rows=[], left=bulk)):
            sent += 1
            refused_in_a_row = 0
        else:
            refused_in_a_row += 1
            time.sleep(0.002)
        assert sent < 100_000, "no high-water mark"
    assert link.worker.statistics()["refused_full"] >= 20
    for step in range(sent):
        report = recv_now(link.engine)
        assert isinstance(report, StepReport) and report.step == step
    send_now(link.worker, StepReport(step=sent, rows=[]))  # room again, and no gap in the numbers
    assert recv_now(link.engine) == StepReport(step=sent, rows=[])


def test_junk_is_dropped_and_counted_and_the_channel_lives_on(link: Link) -> None:
    send_now(link.worker, PlanApplied(Role.DECODE, 1, 1))
    good = frame(1, PlanApplied(Role.DECODE, 2, 2))
    for parts in (
        (b"short",),
        (b"\0" * 7, good[1]),
        (good[0], good[1], b"extra"),
        (good[0], b"\xc1 never used in MessagePack"),
        (good[0], good[1][:-3]),
        (good[0], b""),
        frame(1, PrefillCancel([(3, 1)])),  # a real message, of a type this end does not accept
        (good[0], msgspec.msgpack.encode({"type": "PlanApplied", "role": "decode", "seq": "x", "applied_ns": 1})),
        (good[0], b"\x91" * 20_000),  # nested beyond any recursion limit
    ):
        link.inject(parts)
    send_now(link.worker, PlanApplied(Role.DECODE, 2, 2))
    assert recv_now(link.engine) == PlanApplied(Role.DECODE, 1, 1)
    assert recv_now(link.engine) == PlanApplied(Role.DECODE, 2, 2)
    counts = link.engine.statistics()
    assert (counts["dropped_truncated"], counts["dropped_junk"], counts["received"]) == (3, 6, 2)


def test_gap_closes(link: Link) -> None:
    send_now(link.worker, PlanApplied(Role.DECODE, 1, 1))
    assert recv_now(link.engine) is not None
    link.inject(frame(2, PlanApplied(Role.DECODE, 3, 3)))
    with pytest.raises(ChannelClosed, match="expected message 1 and got 2"):
        recv_now(link.engine)


def test_repeated_number_closes(link: Link) -> None:
    send_now(link.worker, PlanApplied(Role.DECODE, 1, 1))
    link.inject(frame(0, PlanApplied(Role.DECODE, 1, 1)))
    assert recv_now(link.engine) is not None
    with pytest.raises(ChannelClosed, match="expected message 1 and got 0"):
        recv_now(link.engine)


def test_sender_refuses_what_the_peer_would_not_take(link: Link) -> None:
    with pytest.raises(InvariantError, match="over the channel's limit"):
        link.worker.send(StepReport(step=0, rows=[], left=[(1 << 40, 1)] * 20_000))
    send_now(link.worker, StepReport(step=1, rows=[]))
    assert recv_now(link.engine) == StepReport(step=1, rows=[])


def test_closed_end_raises_and_close_is_idempotent(link: Link) -> None:
    link.worker.close()
    link.worker.close()
    with pytest.raises(ChannelClosed):
        link.worker.send(StepReport(step=0, rows=[]))
    with pytest.raises(ChannelClosed):
        link.worker.recv()


def test_wait_sees_messages_and_plain_descriptors(link: Link) -> None:
    assert not wait([link.engine], 0.01)
    send_now(link.worker, PlanApplied(Role.DECODE, 1, 1))
    assert wait([link.engine], LIMIT_S)
    assert wait([link.engine], 0), "level-triggered until it is read"
    assert recv_now(link.engine) is not None
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"x")
        assert wait([link.engine, read_end], LIMIT_S)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_zmq_oversized_frames_disconnect_the_sender_only() -> None:
    address = f"ipc://@colocate-test-{secrets.token_hex(6)}"
    engine = ZmqChannel.bind(address, ENGINE_ACCEPTS, max_frame_bytes=LIMIT_BYTES)
    worker = ZmqChannel.connect(address, WORKER_ACCEPTS)
    rogue = zmq.Context.instance().socket(zmq.DEALER)
    rogue.connect(address)
    try:
        send_now(worker, PlanApplied(Role.DECODE, 1, 1))
        rogue.send_multipart([b"\0" * 8, b"\0" * (100 * 1024 * 1024)])
        assert recv_now(engine) == PlanApplied(Role.DECODE, 1, 1)
        deadline = time.monotonic() + LIMIT_S
        while not engine.statistics()["disconnects"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        send_now(worker, PlanApplied(Role.DECODE, 2, 2))
        assert recv_now(engine) == PlanApplied(Role.DECODE, 2, 2)
        assert engine.statistics()["received"] == 2
    finally:
        rogue.close(linger=0)
        engine.close()
        worker.close()


def test_zmq_address_taken_is_an_operator_error() -> None:
    address = f"ipc://@colocate-test-{secrets.token_hex(6)}"
    first = ZmqChannel.bind(address, ENGINE_ACCEPTS)
    try:
        with pytest.raises(ConfigError, match="cannot listen"):
            ZmqChannel.bind(address, ENGINE_ACCEPTS)
    finally:
        first.close()


_OTHER_USER = """
import os, sys, zmq
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
socket = zmq.Context.instance().socket(zmq.DEALER)
socket.connect(sys.argv[1])
socket.send_multipart([b"x"])
print("sent", flush=True)
sys.stdin.read()
socket.close(linger=0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a peer as another user")
def test_zmq_refuses_a_peer_of_another_user() -> None:
    address = f"ipc://@colocate-test-{secrets.token_hex(6)}"
    engine = ZmqChannel.bind(address, ENGINE_ACCEPTS)
    peer = subprocess.Popen(
        [sys.executable, "-c", _OTHER_USER, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert peer.stdout is not None and peer.stdout.readline() == "sent\n"
        assert not wait([engine], 0.5)
        assert engine.recv() is None
        assert engine.statistics()["dropped_truncated"] == 0
        worker = ZmqChannel.connect(address, WORKER_ACCEPTS)
        send_now(worker, PlanApplied(Role.DECODE, 1, 1))
        assert recv_now(engine) == PlanApplied(Role.DECODE, 1, 1)
        worker.close()
    finally:
        peer.communicate()
        engine.close()
