"""What was measured so far, one line of JSON per visit: what a killed run keeps and the next one goes on from.

The first line says whose numbers these are. A line that was cut short by a crash is cut off when the file is opened
again.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from colocate import __version__
from colocate.config.profile import Phase
from colocate.config.serve import ServeConfig
from colocate.errors import ConfigError
from colocate.messages.spec import ProfilingJob, RuntimeFacts
from colocate.runtime.model_source import model_label

JOURNAL_VERSION = 1


class Header(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Visits under different headers are not comparable."""

    device: str
    units: int
    granularity: int
    model: str
    dtype: str
    block_size: int
    num_blocks: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    deterministic: bool
    temperature: float
    seed: int
    colocate: str  # version
    version: int = JOURNAL_VERSION
    decode_shares: tuple[int, ...] = ()  # of the armed splits; empty: all


class Measured(Struct, frozen=True, array_like=True):
    """Forwards or steps of one state, one after another. `linear` and `pairs` are means over them. Of all of the visit,
    those not counted too: `mean_s` each, and the share of them in which the worker `waited` for a core that other
    programs had."""

    phase: Phase
    units: int
    peer_units: int
    linear: float
    pairs: float
    seconds: list[float]
    waited: float = 0.0
    mean_s: float = 0.0


class Visit(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """One stay at one state of one setup. `spent_s` is the measuring time used so far, by all runs together; `foreign`
    the share of the cores' time that other programs took meanwhile."""

    setup: str
    state: int
    spent_s: float
    foreign: float
    measured: list[Measured]


_Line = Header | Visit


def header_of(config: ServeConfig, facts: RuntimeFacts, job: ProfilingJob) -> Header:
    return Header(
        device=facts.device_name,
        units=facts.total_units,
        granularity=facts.unit_granularity,
        model=model_label(config.model.model),
        dtype=facts.dtype,
        block_size=facts.block_size,
        num_blocks=facts.num_blocks,
        max_model_len=facts.max_model_len,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        deterministic=config.model.deterministic,
        temperature=job.temperature,
        seed=job.seed,
        colocate=__version__,
        decode_shares=facts.decode_shares,
    )


class Journal:
    """An open journal. Every visit is on disk (in the kernel's hands) when `append` returns."""

    def __init__(self, path: Path, header: Header) -> None:
        """Create it, or go on with what is there. Raises ConfigError where it is another run's."""
        self.visits: list[Visit] = []
        fresh = not path.exists()
        if not fresh:
            found, self.visits, num_bytes = read_journal(path)
            refuse_other(path, found, header)
            os.truncate(path, num_bytes)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(str(path), f"cannot be written: {error.strerror}", "name another --out") from None
        if fresh:
            self._file.write(msgspec.json.encode(header) + b"\n")

    @property
    def spent_s(self) -> float:
        return self.visits[-1].spent_s if self.visits else 0.0

    def append(self, visit: Visit) -> None:
        self._file.write(msgspec.json.encode(visit) + b"\n")
        self.visits.append(visit)

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> tuple[Header, list[Visit], int]:
    """The header, the visits, and how many bytes of the file are whole lines. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}", "name another --out, or remove it") from None
    num_bytes = data.rfind(b"\n") + 1
    lines = data[:num_bytes].splitlines()
    try:
        records = [msgspec.json.decode(line, type=_Line) for line in lines]
    except msgspec.MsgspecError as error:
        raise ConfigError(str(path), f"is not a journal of `colocate profile`: {error}", _ANEW) from None
    if not records or not isinstance(records[0], Header):
        raise ConfigError(str(path), "has no header", _ANEW)
    if records[0].version != JOURNAL_VERSION:
        problem = f"journal version {records[0].version}, this program writes {JOURNAL_VERSION}"
        raise ConfigError(str(path), problem, _ANEW)
    return records[0], [record for record in records[1:] if isinstance(record, Visit)], num_bytes


_ANEW = "measure anew with --no-resume"


def refuse_other(path: Path, found: Header, wanted: Header) -> None:
    """ConfigError naming the first fact in which the two runs differ."""
    for name in Header.__struct_fields__:
        theirs, ours = getattr(found, name), getattr(wanted, name)
        if theirs != ours:
            problem = f"holds an interrupted run with {name} {theirs!r}, this one has {ours!r}"
            raise ConfigError(str(path), problem, "repeat that run's options, or start anew with --no-resume")
