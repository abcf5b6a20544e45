"""A trace in Chrome's JSON trace event format, written as it comes: what Perfetto and chrome://tracing open.

The rules kept here (the format's description, "Trace Event Format", and Perfetto's FAQ on overlapping events):
* `ts` and `dur` are microseconds, here with three decimals, so nanoseconds are exact; `ts` counts from the origin.
* Slices are complete events (`X`). Those of one track nest or lie apart; of two that begin together the outer one is
  written first.
* An arrow is a pair of flow events of one `id`: `s` lies inside the slice it leaves, `f` with `bp: e` inside the one it
  reaches, each written behind its slice.
* Processes and threads are named, and put in order, by metadata events (`M`) before their first event.
"""

from __future__ import annotations

import gzip
import heapq
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, cast

import orjson

from colocate.errors import ConfigError

ALL_TIME = (-(1 << 62), 1 << 62)


class Track(NamedTuple):
    """Where slices lie: a thread of a process, in the format's words."""

    pid: int
    tid: int


class TraceWriter:
    """One file. A context manager: the file appears under its name when all went well, and not at all otherwise.

    Times are nanoseconds of any clock, shown from `origin_ns` on. Only what lies in `window_ns` is written: slices are
    cut at its ends and say so, a counter begins with the value it had. Holds no events in memory.
    """

    def __init__(self, path: Path, origin_ns: int, window_ns: tuple[int, int] = ALL_TIME) -> None:
        """A name that ends in .gz is compressed. Raises ConfigError where the file cannot be written."""
        self._path = path
        self._beside = path.with_name(path.name + ".new")
        self._origin_ns = origin_ns
        self._from_ns, self._to_ns = window_ns
        self._file = self._open()
        self._names: dict[Track, tuple[str, int]] = {}  # of processes (tid 0) and threads, not written yet
        self._num_processes = 0
        self._num_tracks: dict[int, int] = {}
        self._num_arrows = 0
        self._before: dict[tuple[int, str], dict[str, float]] = {}  # counters as they stood when the window began
        self.num_events = 0
        self._write_bytes(b'{"displayTimeUnit":"ms","traceEvents":[')

    def _open(self) -> IO[bytes]:
        try:
            if self._path.suffix == ".gz":
                return cast(IO[bytes], gzip.GzipFile(self._beside, "wb", compresslevel=6, mtime=0))
            return self._beside.open("wb", buffering=1 << 20)
        except OSError as error:
            raise self._refused(error) from None

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for (pid, name), values in self._before.items():
                    self._write_counter(pid, name, self._from_ns, values)
                self._write_bytes(b"\n]}\n")
            self._file.close()
            if error is None:
                self._beside.replace(self._path)
        except OSError as failed:
            raise self._refused(failed) from None
        finally:
            self._beside.unlink(missing_ok=True)

    # -- places ----------------------------------------------------------------------------------------------------

    def process(self, name: str) -> int:
        """A group of tracks, below those made before. It shows once something lies in it."""
        self._num_processes += 1
        self._names[Track(self._num_processes, 0)] = (name, self._num_processes)
        return self._num_processes

    def track(self, pid: int, name: str) -> Track:
        tid = self._num_tracks.get(pid, 0) + 1
        self._num_tracks[pid] = tid
        track = Track(pid, tid)
        self._names[track] = (name, tid)
        return track

    # -- events ----------------------------------------------------------------------------------------------------

    def slice(self, track: Track, name: str, start_ns: int, end_ns: int, args: dict[str, Any] | None = None) -> None:
        """From `start_ns` to `end_ns`; nothing where that is no time at all."""
        if end_ns <= start_ns or end_ns <= self._from_ns or start_ns >= self._to_ns:
            return
        args = args or {}
        shown_ns = max(start_ns, self._from_ns), min(end_ns, self._to_ns)
        if shown_ns != (start_ns, end_ns):
            args = {**args, "cut": True, "whole_ms": (end_ns - start_ns) / 1e6}
        duration = {"dur": (shown_ns[1] - shown_ns[0]) / 1e3}
        self._event("X", track, name, shown_ns[0], {**duration, "args": args})

    def instant(self, track: Track, name: str, at_ns: int, args: dict[str, Any] | None = None) -> None:
        """A moment, drawn across the track's whole process."""
        if self._from_ns <= at_ns <= self._to_ns:
            self._event("i", track, name, at_ns, {"s": "p", "args": args or {}})

    def counter(self, pid: int, name: str, at_ns: int, values: dict[str, float]) -> None:
        """From `at_ns` on, in order of time for each name. Several values are drawn on top of each other."""
        if at_ns < self._from_ns:
            self._before[pid, name] = values
        elif at_ns <= self._to_ns:
            before = self._before.pop((pid, name), None)
            if before is not None and at_ns > self._from_ns:
                self._write_counter(pid, name, self._from_ns, before)
            self._write_counter(pid, name, at_ns, values)

    def arrow(self, name: str, source: Track, leaves_ns: int, target: Track, arrives_ns: int) -> None:
        """Between two slices that are written already, from a moment within one to a moment within the other."""
        if leaves_ns < self._from_ns or arrives_ns >= self._to_ns:
            return
        self._num_arrows += 1
        self._event("s", source, name, leaves_ns, {"id": self._num_arrows})
        self._event("f", target, name, arrives_ns, {"id": self._num_arrows, "bp": "e"})

    def _write_counter(self, pid: int, name: str, at_ns: int, values: dict[str, float]) -> None:
        self._event("C", Track(pid, 0), name, at_ns, {"args": values})

    def _event(self, phase: str, track: Track, name: str, at_ns: int, more: dict[str, Any]) -> None:
        for place in (Track(track.pid, 0), track):
            if place in self._names:
                self._write_name(place, *self._names.pop(place))
        at = (at_ns - self._origin_ns) / 1e3
        self._write(
            {"ph": phase, "pid": track.pid, "tid": track.tid, "ts": at, "name": name, "cat": "colocate", **more}
        )

    def _write_name(self, place: Track, name: str, rank: int) -> None:
        kind = "thread" if place.tid else "process"
        head = {"ph": "M", "pid": place.pid, "tid": place.tid}
        self._write({**head, "name": f"{kind}_name", "args": {"name": name}})
        self._write({**head, "name": f"{kind}_sort_index", "args": {"sort_index": rank}})

    def _write(self, event: dict[str, Any]) -> None:
        self._write_bytes((b",\n" if self.num_events else b"\n") + orjson.dumps(event))
        self.num_events += 1

    def _write_bytes(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> ConfigError:
        problem = f"cannot be written: {error.strerror}"
        return ConfigError(str(self._path), problem, "name a file that can be written with --out")


class Lanes:
    """As many tracks as things overlap: each takes the first that is free, and has it to itself."""

    def __init__(self, writer: TraceWriter, pid: int, name: str) -> None:
        self._writer, self._pid, self._name = writer, pid, name
        self._places: dict[Track, int] = {}
        self._tracks: list[Track] = []
        self._free: list[tuple[int, int]] = []  # (place, since when)

    def take(self, start_ns: int) -> Track:
        """Free from `start_ns` on, until `give_back`."""
        later: list[tuple[int, int]] = []
        found: Track | None = None
        while self._free and found is None:
            place, since_ns = heapq.heappop(self._free)
            if since_ns <= start_ns:
                found = self._tracks[place]
            else:
                later.append((place, since_ns))
        for entry in later:
            heapq.heappush(self._free, entry)
        if found is None:
            found = self._writer.track(self._pid, f"{self._name} {len(self._tracks) + 1}")
            self._places[found] = len(self._tracks)
            self._tracks.append(found)
        return found

    def give_back(self, track: Track, end_ns: int) -> None:
        heapq.heappush(self._free, (self._places[track], end_ns))


_NUM_KEPT = 64


class NestedTracks:
    """Tracks for slices that come in order of their ends and mostly nest; one that would cross another, or begins with
    one that is written already, goes to the next track."""

    def __init__(self, writer: TraceWriter, pid: int, name: str) -> None:
        self._writer, self._pid, self._name = writer, pid, name
        self._tracks: list[tuple[Track, list[tuple[int, int]]]] = []  # outermost slices on each, in order of time

    def place(self, start_ns: int, end_ns: int) -> Track:
        """The track for this slice; `end_ns` is not before that of the slice placed last."""
        for track, placed in self._tracks:
            num_before = len(placed)
            while num_before and placed[num_before - 1][0] > start_ns:  # it lies inside the new one
                num_before -= 1
            if num_before and placed[num_before - 1][1] > start_ns:
                continue
            if num_before or len(placed) < _NUM_KEPT:  # what lay before those kept may reach as far as their first
                placed[num_before:] = [(start_ns, end_ns)]
                del placed[:-_NUM_KEPT]
                return track
        name = f"{self._name} {len(self._tracks) + 1}" if self._tracks else self._name
        track = self._writer.track(self._pid, name)
        self._tracks.append((track, [(start_ns, end_ns)]))
        return track
