"""What the two processes hold: are they MPS clients, are their atoms the same, and are their shares disjoint?"""

from __future__ import annotations

from colocate.config.sizes import format_size
from colocate.core.plan import Plan, PlanTable
from colocate.device.cuda.proof.check import Check, CheckSpec, Group
from colocate.device.cuda.proof.commands import Armed, Opened, ReadAtoms, ReadShares, SmSet, SmSets
from colocate.device.cuda.proof.crew import DECODE, PREFILL, Crew

DEVICE = CheckSpec("device", "SMs, the step they come in, memory", Group.ONE_PROCESS)
MPS_CLIENTS = CheckSpec("mps_clients", "both processes are MPS clients", Group.TWO_PROCESSES)
ARMED = CheckSpec("armed", "green contexts of every armed plan", Group.ONE_PROCESS)
ATOMS = CheckSpec("atoms", "each atom is the same SMs in both processes", Group.TWO_PROCESSES)
DISJOINT = CheckSpec("disjoint", "SM sets are disjoint under every armed plan", Group.TWO_PROCESSES)

_MOST_NAMED = 3  # problems written out; the data holds all


def check_device(opened: Opened) -> Check:
    """At least two atoms: fewer cannot be divided."""
    data = {
        "name": opened.name,
        "uuid": opened.uuid,
        "driver_version": opened.driver_version,
        "compute_capability": list(opened.compute_capability),
        "num_sms": opened.num_sms,
        "min_partition_sms": opened.min_partition_sms,
        "partition_step_sms": opened.partition_step_sms,
        "atom_sms": opened.atom_sms,
        "total_bytes": opened.total_bytes,
        "free_bytes": opened.free_bytes,
        "atoms": opened.atoms,
    }
    detail = (
        f"{opened.name}: {opened.num_sms} SMs, at least {opened.min_partition_sms} in steps of "
        f"{opened.partition_step_sms}, {len(opened.atoms)} atoms; {format_size(opened.total_bytes)}, "
        f"{format_size(opened.free_bytes)} free"
    )
    if sum(opened.atoms) != opened.num_sms:
        return DEVICE.failed(
            f"{detail}; the atoms hold {sum(opened.atoms)} SMs", "report this: the split is not what was asked", **data
        )
    if opened.num_sms < 2 * opened.atom_sms:
        return DEVICE.failed(f"{detail}: nothing to divide", "use a larger GPU or MIG instance", **data)
    return DEVICE.passed(detail, **data)


def check_armed(shares: list[int], armed: Armed) -> Check:
    """Every share is as large as asked; the driver may give less."""
    data = {
        "shares": shares,
        "realised": armed.realised,
        "seconds": armed.seconds,
        "used_bytes": armed.used_bytes,
    }
    short = [(asked, got) for asked, got in zip(shares, armed.realised, strict=True) if asked != got]
    detail = f"{len(shares)} shares in {armed.seconds * 1e3:.1f} ms, {format_size(armed.used_bytes)}"
    if short:
        asked, got = short[0]
        remedy = "unset CUDA_MPS_ACTIVE_THREAD_PERCENTAGE; end other users of the GPU; see nvidia-smi"
        return ARMED.failed(f"a share of {asked} SMs got {got}", remedy, **data)
    return ARMED.passed(detail, **data)


def check_mps_clients(crew: Crew) -> Check:
    opened = crew.open(PREFILL, DECODE)
    clients = {name: each.is_mps_client for name, each in opened.items()}
    if all(clients.values()):
        return MPS_CLIENTS.passed("prefill and decode", **clients)
    without = ", ".join(name for name, is_client in clients.items() if not is_client)
    remedy = (
        "look into the MPS daemon's log; a client that does not reach its daemon runs without, in silence"
        if crew.has_mps
        else "install the driver's MPS programs, or serve with --single-process"
    )
    return MPS_CLIENTS.failed(f"not under MPS: {without}", remedy, **clients)


def check_atoms(crew: Crew) -> Check:
    """One process after the other, so that nothing else runs on the GPU meanwhile."""
    limit_s = crew.limits.answer_s
    a, b = (worker.ask(ReadAtoms(), SmSets, limit_s).sets for worker in crew.both())
    return judge_atoms(a, b, crew.open(PREFILL)[PREFILL].num_sms)


def judge_atoms(a: list[SmSet], b: list[SmSet], num_sms: int) -> Check:
    data: dict[str, object] = {PREFILL: [each.sms for each in a], DECODE: [each.sms for each in b]}
    remedy = "two processes cannot be kept apart on this GPU and driver: serve with --single-process"
    if len(a) != len(b):
        return ATOMS.failed(f"{len(a)} atoms in one process, {len(b)} in the other", remedy, **data)
    problems = [
        f"atom {number} is {_ids(one.sms)} in prefill, {_ids(other.sms)} in decode"
        for number, (one, other) in enumerate(zip(a, b, strict=True))
        if one.sms != other.sms
    ]
    problems += [
        f"atom {number} promises {atom.asked} SMs and ran on {len(atom.sms)}"
        for number, atom in enumerate(a)
        if len(atom.sms) != atom.asked
    ]
    if problems:
        return ATOMS.failed(_some(problems), remedy, **data)
    distinct = {sm for atom in a for sm in atom.sms}
    if sum(len(atom.sms) for atom in a) != len(distinct):
        return ATOMS.failed("atoms of one split overlap", remedy, **data)
    return ATOMS.passed(f"{len(a)} atoms, {len(distinct)} of {num_sms} SMs", **data)


def check_disjoint(crew: Crew, table: PlanTable, shares: dict[str, list[int]]) -> Check:
    limit_s = crew.limits.answer_s
    prefill, decode = crew.both()
    sets = {
        PREFILL: _by_share(shares[PREFILL], prefill.ask(ReadShares(), SmSets, limit_s)),
        DECODE: _by_share(shares[DECODE], decode.ask(ReadShares(), SmSets, limit_s)),
    }
    return judge_disjoint(sets, [plan for plan in table.plans if plan.is_split])


def judge_disjoint(sets: dict[str, dict[int, SmSet]], splits: list[Plan]) -> Check:
    """`sets[role][share]` is where that share's blocks ran."""
    problems: list[str] = []
    data: dict[str, object] = {}
    for plan in splits:
        a, b = sets[PREFILL][plan.prefill_units], sets[DECODE][plan.decode_units]
        shared = sorted(set(a.sms) & set(b.sms))
        data[plan.name] = {PREFILL: a.sms, DECODE: b.sms, "shared": shared}
        if shared:
            problems.append(f"{plan.name}: both ran on {_ids(shared)}")
        problems += [
            f"{plan.name}: {role} ran on {len(each.sms)} SMs, {each.asked} are its share"
            for role, each in ((PREFILL, a), (DECODE, b))
            if len(each.sms) != each.asked
        ]
    if problems:
        remedy = "partitions do not hold on this GPU and driver: serve with --mode chunked, and report this output"
        return DISJOINT.failed(_some(problems), remedy, plans=data)
    return DISJOINT.passed(f"{len(splits)} plans: {', '.join(plan.name for plan in splits)}", plans=data)


def _by_share(shares: list[int], read: SmSets) -> dict[int, SmSet]:
    return dict(zip(shares, read.sets, strict=True))


def _ids(sms: list[int]) -> str:
    return f"SM {','.join(map(str, sms[:12]))}" + ("..." if len(sms) > 12 else "")


def _some(problems: list[str]) -> str:
    more = len(problems) - _MOST_NAMED
    return "; ".join(problems[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
