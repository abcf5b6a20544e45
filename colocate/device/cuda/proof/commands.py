"""What the doctor asks of a probe worker, and what it answers. Times are nanoseconds; shares are numbers of SMs."""

from __future__ import annotations

from typing import Union

from msgspec import Struct


class Open(Struct, frozen=True, tag=True):
    """Open GPU `index` as a worker of a run does. Answered by `Opened`."""

    index: int


class Opened(Struct, frozen=True, tag=True):
    """GpuFacts, and what this process runs on."""

    name: str
    uuid: str
    driver_version: int
    compute_capability: tuple[int, int]
    num_sms: int
    min_partition_sms: int
    partition_step_sms: int
    atom_sms: int
    total_bytes: int
    free_bytes: int
    is_mps_client: bool
    is_fake: bool
    atoms: list[int]  # SMs of each atom, then of what remained, where something did


class Arm(Struct, frozen=True, tag=True):
    """Make the green contexts of these shares. `role` says from which end of the device a share is taken."""

    role: str  # prefill, decode
    shares: list[int]


class Armed(Struct, frozen=True, tag=True):
    realised: list[int]  # SMs of each share, read back from the driver
    seconds: float  # making all of them
    used_bytes: int  # of device memory, by all of them


class ReadAtoms(Struct, frozen=True, tag=True):
    """Which SMs is each atom? Answered by `SmSets`."""


class ReadShares(Struct, frozen=True, tag=True):
    """Which SMs does each share of `Arm` run on? Answered by `SmSets`."""


class SmSet(Struct, frozen=True):
    asked: int  # SMs that the atoms promise
    realised: int  # read back from the driver
    sms: list[int]  # that blocks ran on


class SmSets(Struct, frozen=True, tag=True):
    sets: list[SmSet]


class Burn(Struct, frozen=True, tag=True):
    """Fixed work on every SM of a share. Answered by `Burned`."""

    share: int
    rounds: int  # of work; time-slicing makes it take longer, which a wait for the clock would hide


class BurnApart(Struct, frozen=True, tag=True):
    """The same on shares at both ends of the device, in two threads at once; a share of 0 is left out. `Burned`."""

    prefill_sms: int
    decode_sms: int
    rounds: int


class Span(Struct, frozen=True):
    """Of one piece of work, by the device's own clock, which all processes read alike."""

    begin_ns: int
    end_ns: int


class Burned(Struct, frozen=True, tag=True):
    spans: list[Span]


class ReplayGraph(Struct, frozen=True, tag=True):
    """Capture a probe on the first share; replay it there and from inside the second. Answered by `Replayed`."""

    share: int
    other: int


class Replayed(Struct, frozen=True, tag=True):
    eager: list[int]
    replayed: list[int]
    replayed_elsewhere: list[int]


class Switch(Struct, frozen=True, tag=True):
    """Change between these shares: `host_rounds` times alone, `device_rounds` times with work on both sides."""

    first: int
    second: int
    host_rounds: int
    device_rounds: int


class Switched(Struct, frozen=True, tag=True):
    host_ns: list[int]  # of one `apply`
    device_ns: list[int]  # end of the work before it to the begin of the work after it
    wrong: int  # rounds after which work ran outside the share in force


class HandOver(Struct, frozen=True, tag=True):
    """Send: finish work `rounds` times, each time ring the peer. Receive: launch work when rung. `HandedOver`."""

    is_sender: bool
    share: int
    rounds: int


class HandedOver(Struct, frozen=True, tag=True):
    times_ns: list[int]  # device time: the sender's end of work, the receiver's begin of work


class MakeMemory(Struct, frozen=True, tag=True):
    """Answered by `Memory` with one descriptor. Needs no context and makes none."""

    index: int
    num_bytes: int


class ExportMemory(Struct, frozen=True, tag=True):
    """A fresh descriptor of the memory made before. Answered by `Memory`."""


class Memory(Struct, frozen=True, tag=True):
    num_bytes: int  # rounded up to the granularity


class MapMemory(Struct, frozen=True, tag=True):
    """Map the memory whose descriptor comes along. Answered by `Done`."""

    num_bytes: int
    writable: bool


class WritePattern(Struct, frozen=True, tag=True):
    """Fill the mapping with numbers that follow from `seed`. Answered by `Done` when they are on the device."""

    seed: int


class CountWrong(Struct, frozen=True, tag=True):
    """How many 4-byte words of the first half are not the pattern's? Answered by `Wrong`."""

    seed: int


class Wrong(Struct, frozen=True, tag=True):
    num_words: int
    of_words: int


class WriteOnAndOn(Struct, frozen=True, tag=True):
    """Write the second half until killed. `Done` once it is under way; no further command is answered."""


class Fault(Struct, frozen=True, tag=True):
    """Touch memory that is not there. Answered by `Refused` with a fatal code, if at all."""


class WriteReadOnly(Struct, frozen=True, tag=True):
    """Write through the read-only mapping. Answered by `Refused` with a fatal code, if at all."""


class Hang(Struct, frozen=True, tag=True):
    """Launch work that takes minutes. `Done` once it is under way; no further command is answered."""

    share: int


class Done(Struct, frozen=True, tag=True):
    seconds: float


class Refused(Struct, frozen=True, tag=True):
    """The command failed; the worker goes on unless the code is fatal. `code` is the driver's, 0 where it is none."""

    problem: str
    remedy: str = ""
    code: int = 0
    is_fatal: bool = False


Command = Union[  # noqa: UP007 - one name for the type checker and for msgspec
    Open,
    Arm,
    ReadAtoms,
    ReadShares,
    Burn,
    BurnApart,
    ReplayGraph,
    Switch,
    HandOver,
    MakeMemory,
    ExportMemory,
    MapMemory,
    WritePattern,
    CountWrong,
    WriteOnAndOn,
    Fault,
    WriteReadOnly,
    Hang,
]
Answer = Union[Opened, Armed, SmSets, Burned, Replayed, Switched, HandedOver, Memory, Wrong, Done, Refused]  # noqa: UP007
