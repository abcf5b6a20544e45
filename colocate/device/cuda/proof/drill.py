"""Faults made on purpose (`--drill`): what they do to the neighbour, and how long until new workers run.

Each may stop every client of this run's MPS daemon, and nobody else's: the daemon is private. Other processes on the
same GPU without MPS are not touched.
"""

from __future__ import annotations

import time

from colocate.device.cuda.proof.check import Check, CheckSpec, Group
from colocate.device.cuda.proof.commands import Burn, Burned, Done, Fault, Hang, WritePattern, WriteReadOnly
from colocate.device.cuda.proof.crew import DECODE, PREFILL, Crew
from colocate.device.cuda.proof.kept_memory import count_wrong, make_memory, map_memory
from colocate.device.cuda.proof.probe_process import ProbeLost, ProbeRefused

READ_ONLY = CheckSpec("drill_read_only", "a read-only mapping refuses a write", Group.DRILL, is_necessary=False)
FAULT = CheckSpec("drill_fault", "new workers run after an illegal address", Group.DRILL, is_necessary=False)
HANG = CheckSpec("drill_hang", "a hung worker is ended without its neighbour", Group.DRILL, is_necessary=False)

_NUM_BYTES = 16 << 20
_SEED = 20_000
_RECOVERY_S = 60.0
_SOME_ROUNDS = 20_000


def drill_read_only(crew: Crew) -> Check:
    """Prefill writes, decode maps read-only and tries to write. It must fail or die, and the memory stay as it was."""
    num_bytes = make_memory(crew, _NUM_BYTES)
    map_memory(crew, PREFILL, num_bytes, writable=True)
    crew.worker(PREFILL).ask(WritePattern(_SEED), Done, crew.limits.memory_s)
    map_memory(crew, DECODE, num_bytes, writable=False)
    try:
        crew.worker(DECODE).ask(WriteReadOnly(), Done, crew.limits.answer_s)
    except (ProbeLost, ProbeRefused) as error:
        said = str(error)
    else:
        remedy = "nothing: weights are mapped read-only as a safeguard only; a bug could overwrite them"
        return READ_ONLY.failed("the write was done", remedy)
    seconds = recover(crew)
    map_memory(crew, DECODE, num_bytes, writable=False)
    wrong = count_wrong(crew, DECODE)
    data = {"said": said, "recovery_s": seconds, "wrong_words": wrong.num_words}
    if wrong.num_words:
        return READ_ONLY.failed(f"refused ({said}), yet {wrong.num_words} words changed", "report this output", **data)
    return READ_ONLY.passed(f"{said}; new workers ran {seconds:.1f} s later", **data)


def drill_fault(crew: Crew) -> Check:
    """Decode touches memory that is not there. Under MPS the fault is expected to reach prefill as well."""
    num_bytes = make_memory(crew, _NUM_BYTES)
    map_memory(crew, PREFILL, num_bytes, writable=True)
    crew.worker(PREFILL).ask(WritePattern(_SEED), Done, crew.limits.memory_s)
    try:
        crew.worker(DECODE).ask(Fault(), Done, crew.limits.answer_s)
    except (ProbeLost, ProbeRefused) as error:
        said = str(error)
    else:
        return FAULT.failed("the GPU took an illegal address without an error", "report this output")
    neighbour = _what_it_says(crew, PREFILL)
    seconds = recover(crew)
    map_memory(crew, PREFILL, num_bytes, writable=True)
    wrong = count_wrong(crew, PREFILL)
    data = {"said": said, "neighbour": neighbour, "recovery_s": seconds, "wrong_words": wrong.num_words}
    if wrong.num_words:
        remedy = "nothing: after a fault the runtime trusts no KV, but weights would have to be loaded again"
        return FAULT.failed(f"{wrong.num_words} words of the keeper's memory changed", remedy, **data)
    return FAULT.passed(f"neighbour: {neighbour}; new workers ran {seconds:.1f} s later, memory intact", **data)


def drill_hang(crew: Crew) -> Check:
    """Decode launches work that never ends; the daemon ends it as a client, then the process is killed."""
    if crew.mps is None:
        return HANG.untestable("without MPS there is no client to terminate")
    prefill, decode = crew.both()
    prefill_sms, decode_sms = crew.smallest_share(PREFILL), crew.smallest_share(DECODE)
    decode.ask(Hang(decode_sms), Done, crew.limits.answer_s)
    began_s = time.monotonic()
    took = crew.mps.control.terminate_client(decode.pid, crew.limits.answer_s)
    terminate_s = time.monotonic() - began_s
    decode.kill()
    is_gone = crew.mps.control.wait_gone(decode.pid, crew.limits.answer_s)
    gone_s = time.monotonic() - began_s
    try:
        prefill.ask(Burn(prefill_sms, _SOME_ROUNDS), Burned, crew.limits.answer_s)
        neighbour = "goes on"
    except (ProbeLost, ProbeRefused) as error:
        neighbour = str(error)
    seconds = recover(crew)
    data = {"terminated": took, "terminate_s": terminate_s, "gone_s": gone_s, "neighbour": neighbour}
    if not took or not is_gone:
        remedy = "the runtime then restarts both workers and the daemon; report this output"
        return HANG.failed("the daemon did not let go of the client", remedy, **data)
    if neighbour != "goes on":
        remedy = "the runtime then restarts both workers; report this output"
        return HANG.failed(f"the neighbour was hit: {neighbour}", remedy, **data)
    detail = (
        f"ended in {terminate_s:.2f} s, off the client list after {gone_s:.2f} s, a successor ran after {seconds:.1f} s"
    )
    return HANG.passed(detail, **data, successor_s=seconds)


def recover(crew: Crew) -> float:
    """End what is hit and try until two new workers have done some work. Seconds; raises what the last try said."""
    began_s = time.monotonic()
    while True:
        try:
            for name in (PREFILL, DECODE):
                crew.worker(name).ask(Burn(crew.smallest_share(name), _SOME_ROUNDS), Burned, crew.limits.answer_s)
            return time.monotonic() - began_s
        except (ProbeLost, ProbeRefused):
            crew.end_workers()  # affected clients must all be gone before new ones get in
            if time.monotonic() - began_s > _RECOVERY_S:
                raise


def _what_it_says(crew: Crew, name: str) -> str:
    try:
        crew.worker(name).ask(Burn(crew.smallest_share(name), _SOME_ROUNDS), Burned, crew.limits.answer_s)
    except (ProbeLost, ProbeRefused) as error:
        return str(error)
    return "goes on"
