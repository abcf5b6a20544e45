"""The board: one shared page that says which plan is in force and who is alive, without a message.

Every field has one writer and every writer its own cache lines. Single facts are native 8-byte words, stored and
loaded whole. Records of several words sit in two slots behind a version word (a sequence lock with a spare copy): the
writer fills the slot that nobody reads, then publishes it by one store. So a writer that is stopped or killed at any
instruction leaves the last complete record readable, and a reader never waits for it.

Store order is that of the machine: total on x86-64. Elsewhere the interpreter's own work between two stores keeps them
apart in practice, and `_fence` is taken wherever a decision rests on it.
"""

from __future__ import annotations

import mmap
import os
import threading
from typing import NamedTuple

from colocate.config.roles import ANY_WORKER
from colocate.errors import ChannelClosed, ConfigError, InvariantError
from colocate.types import Role

BOARD_BYTES = 4096
_MAGIC = 0x636F6C6F63617465  # "colocate"
_LAYOUT_VERSION = 1
_LINE = 16  # words from one writer's line to the next: 128 bytes, as prefetchers fetch cache lines in pairs

_PLAN = 1 * _LINE
_BEATS = {role: (2 + index) * _LINE for index, role in enumerate(Role)}
_APPLIED = {role: (10 + 2 * index) * _LINE for index, role in enumerate(ANY_WORKER)}
_PROGRESS = {role: (11 + 2 * index) * _LINE for index, role in enumerate(ANY_WORKER)}
_HELD_OFFSET = 8  # within the applied line: a word of its own

_INDEX_BITS = 16
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_MAX_READS = 10_000


class PlanWord(NamedTuple):
    """`seq` counts plan changes from 1; 0 is "no plan yet". `plan_index` is its place in the plan table."""

    seq: int
    plan_index: int


class Applied(NamedTuple):
    """The plan word fully in force in a worker, since when (monotonic ns; 0: never)."""

    seq: int
    plan_index: int
    since_ns: int


class Progress(NamedTuple):
    """`counter` grows with every boundary passed; by `deadline_ns` (monotonic; 0: idle) the next one is due."""

    counter: int
    deadline_ns: int


def plan_of(word: int) -> PlanWord:
    """Take a plan word apart."""
    return PlanWord(word >> _INDEX_BITS, word & _INDEX_MASK)


class Board:
    """One process's mapping of the page. `close` unmaps it; the page lives while any process maps it."""

    def __init__(self, fd: int, bell_fds: tuple[int, ...], owns_fds: bool) -> None:
        self.fd = fd
        self.bell_fds = bell_fds
        self._owns_fds = owns_fds
        try:
            self._page = mmap.mmap(fd, BOARD_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except (OSError, ValueError) as error:
            raise ConfigError("board", f"descriptor {fd} is not a board: {error}") from error
        self._words = memoryview(self._page).cast("Q")
        self._fence_lock = threading.Lock()

    @classmethod
    def create(cls) -> Board:
        """A new, empty board in anonymous memory. Its creator passes `fd` and `bell_fds` on to its children."""
        fd = os.memfd_create("colocate-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, BOARD_BYTES)
        bell_fds = tuple(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in ANY_WORKER)
        board = cls(fd, bell_fds, owns_fds=True)
        board._words[1] = _LAYOUT_VERSION
        board._words[0] = _MAGIC
        return board

    @classmethod
    def attach(cls, fd: int, bell_fds: tuple[int, ...] = ()) -> Board:
        """Map a board that another process created. Without `bell_fds` it can be read and written, not rung.
        Raises ConfigError where `fd` is something else."""
        board = cls(fd, bell_fds, owns_fds=False)
        found = (board._words[0], board._words[1])
        if found != (_MAGIC, _LAYOUT_VERSION):
            board.close()
            raise ConfigError("board", f"descriptor {fd} holds no board of layout {_LAYOUT_VERSION} (found {found})")
        return board

    def close(self) -> None:
        if not self._page.closed:
            self._words.release()
            self._page.close()
            if self._owns_fds:
                for fd in (self.fd, *self.bell_fds):
                    os.close(fd)

    # The bells: one eventfd per worker, rung after a change on the board that it may be asleep for. An eventfd wakes a
    # sleeper in one system call; a message would go through two I/O threads first.

    def ring(self, role: Role) -> None:
        """Wake this worker, now or at its next rest. Idempotent until it is hushed."""
        if self.bell_fds:
            os.eventfd_write(self.bell_fds[ANY_WORKER.index(role)], 1)

    def bell_of(self, role: Role) -> int | None:
        """The descriptor this worker sleeps on, beside its messages: readable once rung."""
        return self.bell_fds[ANY_WORKER.index(role)] if self.bell_fds else None

    def hush(self, role: Role) -> None:
        """This worker is awake; it looks at the board after this, so no ring is lost."""
        if self.bell_fds:
            try:
                os.eventfd_read(self.bell_fds[ANY_WORKER.index(role)])
            except BlockingIOError:
                pass  # it was not rung

    # The plan: written by the engine.

    def set_plan(self, seq: int, index: int) -> None:
        if not 0 <= index <= _INDEX_MASK:
            raise InvariantError(f"plan index {index} does not fit the plan word")
        self._words[_PLAN] = (seq << _INDEX_BITS) | index

    def plan_word(self) -> int:
        """The raw word: all that a boundary compares while nothing changes."""
        return self._words[_PLAN]

    def plan(self) -> PlanWord:
        return plan_of(self._words[_PLAN])

    # What is in force: written by each worker.

    def set_applied(self, role: Role, seq: int, index: int, since_ns: int) -> None:
        self._publish(_APPLIED[role], (seq << _INDEX_BITS) | index, since_ns)

    def applied(self, role: Role) -> Applied:
        word, since_ns = self._read(_APPLIED[role])
        return Applied(word >> _INDEX_BITS, word & _INDEX_MASK, since_ns)

    def set_held(self, role: Role, num_units: int) -> None:
        """Claim (before taking) or release (after letting go) units: how many this worker may be using, counted from
        its own end of the device. During a switch it is neither the old nor the new plan's share."""
        self._words[_APPLIED[role] + _HELD_OFFSET] = num_units
        self._fence()

    def held(self, role: Role) -> int:
        return self._words[_APPLIED[role] + _HELD_OFFSET]

    # Life signs.

    def beat(self, role: Role, now_ns: int) -> None:
        self._words[_BEATS[role]] = now_ns

    def beat_of(self, role: Role) -> int:
        """Monotonic ns of the last heartbeat; 0 before the first."""
        return self._words[_BEATS[role]]

    def set_progress(self, role: Role, counter: int, deadline_ns: int) -> None:
        self._publish(_PROGRESS[role], counter, deadline_ns)

    def progress_of(self, role: Role) -> Progress:
        return Progress(*self._read(_PROGRESS[role]))

    def clear(self, role: Role) -> None:
        """Forget everything a process wrote. By its supervisor once it is reaped, or by its successor at birth: a dead
        worker holds no units, and its last deadline must not condemn the next one."""
        self._words[_BEATS[role]] = 0
        if role in ANY_WORKER:
            self._publish(_PROGRESS[role], 0, 0)
            self._publish(_APPLIED[role], 0, 0)
            self.set_held(role, 0)

    def _publish(self, line: int, first: int, second: int) -> None:
        words = self._words
        version = words[line] + 1
        slot = line + 1 + 2 * (version & 1)
        words[slot] = first
        words[slot + 1] = second
        words[line] = version

    def _read(self, line: int) -> tuple[int, int]:
        words = self._words
        for _ in range(_MAX_READS):
            version = words[line]
            slot = line + 1 + 2 * (version & 1)
            record = words[slot], words[slot + 1]
            # The slot read is rewritten only after the next version was published.
            if words[line] == version:
                return record
        raise ChannelClosed("the board changes faster than it can be read: it is not ours any more")

    def _fence(self) -> None:
        """A full memory barrier: taking a lock is an atomic read-modify-write, which no store or load passes."""
        with self._fence_lock:
            pass
