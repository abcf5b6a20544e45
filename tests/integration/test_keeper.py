"""The keeper's memory as a stranger, a worker and a saboteur see it."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from colocate.device.cpu.memory import (
    adopt_segment,
    available_bytes,
    create_segment,
    seal_against_writing,
    total_bytes,
)
from colocate.errors import ChannelClosed, ConfigError
from colocate.model.config import load_model_config
from colocate.model.layout import WeightLayout
from colocate.worker.segments import connect_to, receive_segments
from tests.daemon import Daemon, start_daemon
from tests.limits import LIMIT_S

DEMO = Path("colocate/model/demo")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_daemon("--device", "cpu", "--kv-memory", "16MiB") as running:
        yield running


def _address(daemon: Daemon) -> str:
    (name,) = [name for name in daemon._sockets() if "-keeper-" in name]
    return name.removeprefix("@")


def test_a_worker_gets_weights_that_match_their_checksum_and_cannot_be_written(daemon: Daemon) -> None:
    with connect_to(_address(daemon)) as peer:
        peer.settimeout(LIMIT_S)
        segments, crc32 = receive_segments(peer)
    weights, kv = segments["weights"], segments["kv"]
    try:
        assert weights.num_bytes == WeightLayout.of(load_model_config(DEMO), "float32").nbytes
        assert zlib.crc32(weights.map(writable=False)) == crc32
        with pytest.raises(PermissionError):
            weights.map(writable=True)
        with pytest.raises(PermissionError):
            os.pwrite(weights.fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(kv.fd, 0)
        assert kv.map(writable=True).nbytes == kv.num_bytes
    finally:
        os.close(weights.fd)
        os.close(kv.fd)


def test_the_keeper_serves_any_number_of_workers(daemon: Daemon) -> None:
    for _ in range(20):
        with connect_to(_address(daemon)) as peer:
            peer.settimeout(LIMIT_S)
            segments, _ = receive_segments(peer)
        for segment in segments.values():
            os.close(segment.fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_gets_nothing(daemon: Daemon) -> None:
    probe = (
        "import socket, sys\n"
        "peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "peer.settimeout(60)\n"
        "peer.connect(b'\\0' + sys.argv[1].encode())\n"
        "data, fds, _, _ = socket.recv_fds(peer, 4096, 8)\n"
        "print(len(data), len(fds))\n"
    )
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", probe, _address(daemon)], capture_output=True, text=True, user=65534, cwd="/"
    )
    if done.returncode != 0 and "Permission denied" in done.stderr:
        pytest.skip("the other user may not run this interpreter")
    assert done.stdout.split() == ["0", "0"], done.stderr


def test_a_worker_that_is_gone_again_does_no_harm(daemon: Daemon) -> None:
    for _ in range(5):
        connect_to(_address(daemon)).close()
    assert daemon.complete(max_tokens=2).status_code == 200


def test_no_keeper_is_a_clear_error() -> None:
    with pytest.raises(OSError, match="refused"):
        connect_to("colocate-nobody-listens-here")


def test_a_segment_that_is_not_sealed_is_refused() -> None:
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    with pytest.raises(ConfigError, match="sealed"):
        adopt_segment("weights", fd, 4096)


def test_a_segment_of_the_wrong_size_is_refused() -> None:
    segment = create_segment("kv", 8192)
    with pytest.raises(ConfigError, match="4096 bytes"):
        adopt_segment("kv", segment.fd, 4096)


def test_what_is_mapped_stays_when_every_descriptor_is_closed() -> None:
    segment = create_segment("kv", 4096)
    view = segment.map(writable=True)
    view[:3] = b"abc"
    seal_against_writing(segment)
    other = mmap.mmap(segment.fd, 4096, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    os.close(segment.fd)
    view[3:4] = b"d"  # mapped before the seal: still writable
    assert other[:4] == b"abcd"


def test_more_memory_than_there_is_is_refused_without_taking_it() -> None:
    before = available_bytes()
    with pytest.raises(ConfigError, match="--kv-memory"):
        create_segment("kv", 2 * total_bytes())
    assert available_bytes() > before / 2


def test_a_connection_that_closes_early_is_a_closed_channel() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with ours, pytest.raises(ChannelClosed):
        receive_segments(ours)
