"""Memory that several processes map: sealed `memfd` segments, and how much this machine has left for them.

A segment has no name in any file system. It lives as long as a descriptor or a mapping of it does, so nothing stays
behind when every process of a run is gone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from colocate.config.sizes import format_size
from colocate.errors import ConfigError

_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
# Linux 5.1; the fcntl module does not name it in every Python version this package supports.
_F_SEAL_FUTURE_WRITE = 0x0010
_CGROUP_V2 = Path("/sys/fs/cgroup")
_CGROUP_V1 = Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True, slots=True)
class Segment:
    """A memfd of fixed size. `fd` is owned by whoever holds the object; a segment of 0 bytes is legal."""

    name: str
    fd: int
    num_bytes: int

    def map(self, *, writable: bool) -> memoryview:
        """Map the whole segment, shared. The mapping lives as long as the view or anything made from it."""
        if self.num_bytes == 0:
            return memoryview(bytearray() if writable else b"")
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return memoryview(mmap.mmap(self.fd, self.num_bytes, flags=mmap.MAP_SHARED, prot=access))


def create_segment(name: str, num_bytes: int) -> Segment:
    """A segment whose pages exist: memory that is not there is missed now and not in the middle of a request.

    The size is sealed, so no process can make another one fault by shrinking it. Raises ConfigError, before any page
    is taken where they are not there: the kernel would give out the last one and then kill somebody.
    """
    available = available_bytes()
    if num_bytes > available:
        problem = f"{format_size(num_bytes)} for {name} do not fit into {format_size(available)} of available memory"
        raise ConfigError("memory", problem, "free memory, or lower --kv-memory")
    fd = os.memfd_create(f"colocate-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if num_bytes:
            os.posix_fallocate(fd, 0, num_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS)
    except OSError as error:
        os.close(fd)
        problem = f"cannot allocate {num_bytes} bytes of shared memory for {name}: {error.strerror}"
        raise ConfigError("memory", problem, "free memory, or lower --kv-memory") from None
    return Segment(name, fd, num_bytes)


def seal_against_writing(segment: Segment) -> None:
    """From here on nobody can map the segment with write permission; mappings that exist keep theirs."""
    fcntl.fcntl(segment.fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)


def adopt_segment(name: str, fd: int, num_bytes: int) -> Segment:
    """A segment received from another process. Raises ConfigError unless it is sealed at the size that was named."""
    sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SIZE_SEALS == _SIZE_SEALS
    if not sealed or os.fstat(fd).st_size != num_bytes:
        os.close(fd)
        raise ConfigError("memory", f"segment {name} is not a sealed memfd of {num_bytes} bytes")
    return Segment(name, fd, num_bytes)


def available_bytes() -> int:
    """Memory this process may still use: what the machine has free or reclaimable, cut by the cgroup's limit."""
    available = _meminfo("MemAvailable")
    limit = _cgroup_left()
    return available if limit is None else min(available, limit)


def total_bytes() -> int:
    return _meminfo("MemTotal")


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == key:
            return int(rest.split()[0]) * 1024
    return 0


def _cgroup_left() -> int | None:
    """Bytes left under the cgroup's limit, None where there is no limit to be seen."""
    for limit_file, usage_file in (
        (_own_v2_cgroup() / "memory.max", _own_v2_cgroup() / "memory.current"),
        (_CGROUP_V1 / "memory.limit_in_bytes", _CGROUP_V1 / "memory.usage_in_bytes"),
    ):
        try:
            limit, usage = limit_file.read_text().strip(), usage_file.read_text().strip()
        except OSError:
            continue
        # v1 writes "no limit" as a number near 2**63.
        if limit.isdigit() and int(limit) < 1 << 60:
            return max(0, int(limit) - int(usage))
    return None


def _own_v2_cgroup() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            own = _CGROUP_V2 / path.lstrip("/")
            return own if own.is_dir() else _CGROUP_V2
    return _CGROUP_V2
