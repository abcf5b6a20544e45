"""A second reader of Chrome's JSON trace event format, which holds a file against the format's rules.

It knows nothing of what wrote the file: plain `json`, integers of nanoseconds, and the rules of the format's
description and of Perfetto's importer.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Place = tuple[int, int]
PHASES = {"M", "X", "i", "C", "s", "f"}


@dataclass
class Slice:
    name: str
    start_ns: int
    end_ns: int
    args: dict[str, Any]
    inside: list[Slice] = field(default_factory=list)


@dataclass
class Trace:
    processes: dict[int, str] = field(default_factory=dict)
    tracks: dict[Place, str] = field(default_factory=dict)
    roots: dict[Place, list[Slice]] = field(default_factory=lambda: defaultdict(list))
    instants: list[tuple[Place, str, int, dict[str, Any]]] = field(default_factory=list)
    counters: dict[tuple[int, str], list[tuple[int, dict[str, float]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    arrows: list[tuple[Slice, Slice]] = field(default_factory=list)

    def roots_of(self, process: str, track: str = "") -> list[Slice]:
        """Outermost slices of the tracks whose names begin so, in order of time."""
        pids = [pid for pid, name in self.processes.items() if name == process]
        assert len(pids) == 1, (process, self.processes)
        places = [place for place in self.tracks if place[0] == pids[0] and self.tracks[place].startswith(track)]
        return sorted((root for place in places for root in self.roots[place]), key=lambda root: root.start_ns)

    def counter(self, process: str, name: str) -> list[tuple[int, dict[str, float]]]:
        (pid,) = [pid for pid, known in self.processes.items() if known == process]
        return self.counters[pid, name]

    def value_at(self, process: str, name: str, at_ns: int) -> dict[str, float]:
        """After everything that happened at this moment."""
        return [values for when_ns, values in self.counter(process, name) if when_ns <= at_ns][-1]


def read_trace(path: Path) -> Trace:
    """Asserts every rule; returns what the file says."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    document = json.loads(raw)
    assert document["displayTimeUnit"] in ("ms", "ns")
    events = document["traceEvents"]
    trace = Trace()
    flows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    slices: dict[Place, list[Slice]] = defaultdict(list)
    for event in events:
        assert event["ph"] in PHASES and isinstance(event["name"], str) and event["name"], event
        assert type(event["pid"]) is int and type(event["tid"]) is int, event
        place = event["pid"], event["tid"]
        if event["ph"] == "M":
            _name(trace, place, event)
            continue
        at_ns = _ns(event["ts"])
        assert at_ns >= 0 and event["pid"] in trace.processes, event
        if event["ph"] == "C":
            assert event["args"] and all(type(value) in (int, float) for value in event["args"].values()), event
            trace.counters[event["pid"], event["name"]].append((at_ns, event["args"]))
            continue
        assert place in trace.tracks, event  # named before its first event
        if event["ph"] == "X":
            slices[place].append(Slice(event["name"], at_ns, at_ns + _ns(event["dur"]), event["args"]))
            assert slices[place][-1].end_ns > at_ns, event
        elif event["ph"] == "i":
            assert event["s"] in ("g", "p", "t")
            trace.instants.append((place, event["name"], at_ns, event["args"]))
        else:
            flows[event["id"]].append(event)
    for counted in trace.counters.values():
        assert [at_ns for at_ns, _ in counted] == sorted(at_ns for at_ns, _ in counted)
    for place, found in slices.items():
        trace.roots[place] = _nested(found)
    _bind(trace, flows)
    return trace


def _ns(microseconds: float) -> int:
    nanoseconds = round(microseconds * 1000)
    assert abs(nanoseconds / 1000 - microseconds) < 1e-6, microseconds
    return nanoseconds


def _name(trace: Trace, place: Place, event: dict[str, Any]) -> None:
    if event["name"] == "process_name":
        assert place[0] not in trace.processes
        trace.processes[place[0]] = event["args"]["name"]
    elif event["name"] == "thread_name":
        assert place not in trace.tracks
        trace.tracks[place] = event["args"]["name"]
    else:
        assert event["name"] in ("process_sort_index", "thread_sort_index"), event
        assert type(event["args"]["sort_index"]) is int


def _nested(slices: list[Slice]) -> list[Slice]:
    """As an importer does: in order of time, equal ones as in the file; each closes whatever ended before it."""
    roots: list[Slice] = []
    stack: list[Slice] = []
    for found in sorted(slices, key=lambda found: found.start_ns):
        while stack and stack[-1].end_ns <= found.start_ns:
            stack.pop()
        if stack:
            assert found.end_ns <= stack[-1].end_ns, ("crosses", found, stack[-1])
            stack[-1].inside.append(found)
        else:
            roots.append(found)
        stack.append(found)
    return roots


def _bind(trace: Trace, flows: dict[int, list[dict[str, Any]]]) -> None:
    for pair in flows.values():
        assert [event["ph"] for event in pair] == ["s", "f"] and pair[1]["bp"] == "e", pair
        assert len({(event["name"], event["cat"]) for event in pair}) == 1 and pair[0]["ts"] <= pair[1]["ts"], pair
        ends = []
        for event in pair:
            at_ns = _ns(event["ts"])
            holders = [root for root in trace.roots[event["pid"], event["tid"]] if root.start_ns <= at_ns < root.end_ns]
            assert len(holders) == 1, (event, "lies in no slice")
            ends.append(_innermost(holders[0], at_ns))
        trace.arrows.append((ends[0], ends[1]))


def _innermost(holder: Slice, at_ns: int) -> Slice:
    for inner in holder.inside:
        if inner.start_ns <= at_ns < inner.end_ns:
            return _innermost(inner, at_ns)
    return holder
