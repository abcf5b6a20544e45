"""A probe worker's partitions: which SMs its shares are, how long work takes on them, and what a switch costs."""

from __future__ import annotations

import socket
import threading
import time

from colocate.core.plan import Plan
from colocate.device.cuda.atoms import Atoms, split_into_atoms
from colocate.device.cuda.backend import Backend
from colocate.device.cuda.driver import GreenContext
from colocate.device.cuda.partition import CudaPartition, Share
from colocate.device.cuda.proof import commands
from colocate.device.cuda.proof.burn import BurnProbe
from colocate.device.cuda.proof.commands import Span
from colocate.device.cuda.smid import Blocks, SmidProbe
from colocate.errors import InvariantError
from colocate.types import Role

_PEER_S = 15.0
_WORK_ROUNDS = 500  # of a switch and a hand-over: some tens of microseconds
_GRAPH_BLOCKS_PER_SM = 8
_GRAPH_SPIN_NS = 50_000


class PartitionProbe:
    """Owned by one probe worker."""

    def __init__(self, backend: Backend, index: int) -> None:
        self._backend = backend
        self._index = index
        self._facts = backend.driver.facts(index)
        self._atoms: Atoms = split_into_atoms(backend.driver, index, self._facts.atom_sms, self._facts.num_sms)
        # Loaded before anything is captured or timed.
        self._smid = SmidProbe(backend.driver, index)
        self._burns = [BurnProbe(backend.driver, index, self._facts.num_sms) for _ in range(2)]
        self._role = Role.DECODE
        self._partition: CudaPartition | None = None
        self._shares: list[int] = []

    def opened(self) -> commands.Opened:
        facts = self._facts
        return commands.Opened(
            name=facts.name,
            uuid=facts.uuid,
            driver_version=facts.driver_version,
            compute_capability=facts.compute_capability,
            num_sms=facts.num_sms,
            min_partition_sms=facts.min_partition_sms,
            partition_step_sms=facts.partition_step_sms,
            atom_sms=facts.atom_sms,
            total_bytes=facts.total_bytes,
            free_bytes=facts.free_bytes,
            is_mps_client=facts.is_mps_client,
            is_fake=self._backend.is_fake,
            atoms=[len(units) for units in self._atom_units()],
        )

    def arm(self, role: str, shares: list[int]) -> commands.Armed:
        if self._partition is not None:
            self._partition.close()
        self._role, self._shares = Role(role), shares
        free_bytes, began_s = self._backend.driver.facts(self._index).free_bytes, time.monotonic()
        self._partition = self._make([self._units(share) for share in shares])
        seconds = time.monotonic() - began_s
        used_bytes = free_bytes - self._backend.driver.facts(self._index).free_bytes
        return commands.Armed([self._green(share).num_sms for share in shares], seconds, max(0, used_bytes))

    def read_atoms(self) -> commands.SmSets:
        """Through partitions of one atom each, which are given back at once."""
        units = self._atom_units()
        partition = self._make(units)
        try:
            sets = [self._sms_of(partition.green_of(each)) for each in units]
        finally:
            partition.close()
        return commands.SmSets(
            [commands.SmSet(len(each), len(each), sms) for each, sms in zip(units, sets, strict=True)]
        )

    def read_shares(self) -> commands.SmSets:
        greens = [self._green(share) for share in self._shares]
        return commands.SmSets(
            [
                commands.SmSet(share, green.num_sms, self._sms_of(green))
                for share, green in zip(self._shares, greens, strict=True)
            ]
        )

    def burn(self, share: int, rounds: int) -> commands.Burned:
        return self._burn([self._green(share)], rounds)

    def burn_apart(self, prefill_sms: int, decode_sms: int, rounds: int) -> commands.Burned:
        """Shares at both ends of the device in this one process, as --single-process has them."""
        total = self._facts.num_sms
        plan = Plan("", prefill_sms, decode_sms)
        units = [plan.units_of(role, total) for role in (Role.PREFILL, Role.DECODE)]
        units = [each for each in units if each]
        partition = self._make(units)
        try:
            return self._burn([partition.green_of(each) for each in units], rounds)
        finally:
            partition.close()

    def replay_graph(self, share: int, other: int) -> commands.Replayed:
        partition, green = self._armed(), self._green(share)
        lane, other_lane = partition.lane_of(self._units(share)), partition.lane_of(self._units(other))
        num_blocks = green.num_sms * _GRAPH_BLOCKS_PER_SM
        eager = self._smid.run(green.stream, num_blocks, _GRAPH_SPIN_NS).sms
        graph = lane.capture(lambda: self._smid.launch(green.stream, num_blocks, _GRAPH_SPIN_NS))
        self._smid.clear()
        graph.replay()
        replayed = self._smid.read(num_blocks).sms
        self._smid.clear()
        with other_lane.use():
            graph.replay()
        elsewhere = self._smid.read(num_blocks).sms
        return commands.Replayed(sorted(eager), sorted(replayed), sorted(elsewhere))

    def switch(self, command: commands.Switch) -> commands.Switched:
        shares = (command.first, command.second)
        allowed = {share: frozenset(self._sms_of(self._green(share))) for share in shares}
        host_ns = self._switch_on_host(shares, command.host_rounds)
        device_ns: list[int] = []
        wrong = 0
        for number in range(command.device_rounds):
            before, after = shares if number % 2 == 0 else shares[::-1]
            gap_ns, is_wrong = self._switch_with_work(before, after, allowed[after])
            device_ns.append(gap_ns)
            wrong += is_wrong
        return commands.Switched(host_ns, device_ns, wrong)

    def send_hand_overs(self, peer: socket.socket, share: int, rounds: int) -> commands.HandedOver:
        """Work, an event that is polled, a message; the same number comes back when the other side has worked."""
        green, burn = self._green(share), self._burns[0]
        lane = self._armed().lane_of(self._units(share))
        peer.settimeout(_PEER_S)
        times_ns: list[int] = []
        for number in range(rounds):
            burn.launch(green, _WORK_ROUNDS)
            mark = lane.mark()
            while not mark.is_done():
                pass
            peer.send(number.to_bytes(4, "little"))
            while int.from_bytes(peer.recv(4), "little") != number:
                pass  # of a hand-over that was given up
            times_ns.append(_span(burn.read(green)).end_ns)
        return commands.HandedOver(times_ns)

    def receive_hand_overs(self, peer: socket.socket, share: int, rounds: int) -> commands.HandedOver:
        green, burn = self._green(share), self._burns[0]
        peer.settimeout(_PEER_S)
        times_ns: list[int] = []
        for number in range(rounds):
            while int.from_bytes(peer.recv(4), "little") != number:
                pass
            burn.launch(green, _WORK_ROUNDS)
            times_ns.append(_span(burn.read(green)).begin_ns)
            peer.send(number.to_bytes(4, "little"))
        return commands.HandedOver(times_ns)

    def write_to(self, address: int) -> None:
        """A kernel that writes there. Raises CudaError where that is a fault."""
        self._burns[0].write_to(self._green(self._shares[0]), address)

    def _burn(self, greens: list[GreenContext], rounds: int) -> commands.Burned:
        """A thread for each: launches of the fake device return when the work is done."""
        pairs = list(zip(greens, self._burns, strict=False))
        problems: list[Exception] = []
        together = threading.Barrier(len(pairs))  # starting a thread takes long on a busy machine

        def launch(green: GreenContext, burn: BurnProbe) -> None:
            try:
                self._backend.driver.retain_primary(self._index)  # makes it current in this thread, too
                together.wait()
                burn.launch(green, rounds)
            except Exception as error:
                problems.append(error)
                together.abort()

        threads = [threading.Thread(target=launch, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]
        return commands.Burned([_span(burn.read(green)) for green, burn in pairs])

    def _switch_on_host(self, shares: tuple[int, int], rounds: int) -> list[int]:
        """Nanoseconds of each `apply`, with nothing under way."""
        partition = self._armed()
        units = [self._units(share) for share in shares]
        times_ns: list[int] = []
        for number in range(rounds):
            began_ns = time.perf_counter_ns()
            partition.apply(units[number % 2])
            times_ns.append(time.perf_counter_ns() - began_ns)
            partition.settled()
        return times_ns

    def _switch_with_work(self, before: int, after: int, allowed: frozenset[int]) -> tuple[int, bool]:
        """From the end of the work on one share to the begin of the work on the other; and whether that ran, or the
        partition says it is, anywhere else."""
        partition = self._armed()
        greens = self._green(before), self._green(after)
        partition.apply(self._units(before))
        self._burns[0].launch(greens[0], _WORK_ROUNDS)
        partition.apply(self._units(after))
        self._burns[1].launch(greens[1], _WORK_ROUNDS)
        first, second = (burn.read(green) for burn, green in zip(self._burns, greens, strict=True))
        is_wrong = not second.sms <= allowed or partition.realised() != self._units(after)
        return _span(second).begin_ns - _span(first).end_ns, is_wrong

    def _sms_of(self, green: GreenContext) -> list[int]:
        return sorted(self._smid.sms_of(green.stream, green.num_sms))

    def _make(self, units: list[Share]) -> CudaPartition:
        return CudaPartition(self._backend, self._index, self._role, units)

    def _armed(self) -> CudaPartition:
        if self._partition is None:
            raise InvariantError("the doctor asked for a share before it armed any")
        return self._partition

    def _green(self, share: int) -> GreenContext:
        return self._armed().green_of(self._units(share))

    def _units(self, share: int) -> Share:
        return Plan("", share, share).units_of(self._role, self._facts.num_sms)

    def _atom_units(self) -> list[Share]:
        step, whole = self._atoms.step, len(self._atoms.groups) * self._atoms.step
        units = [tuple(range(first, first + step)) for first in range(0, whole, step)]
        rest = tuple(range(whole, self._facts.num_sms))
        return [*units, rest] if rest else units


def _span(blocks: Blocks) -> Span:
    return Span(min(blocks.begin_ns), max(blocks.end_ns))
