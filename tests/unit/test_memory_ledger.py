"""Planned against measured: what is added up, what is left over, and what is said where a plan was too small."""

from __future__ import annotations

from colocate.device.cuda.nvml import CopyCheck, device_use
from colocate.runtime.gpu_budget import GpuBudget, Line
from colocate.runtime.memory_ledger import TOTAL, Entry, MemoryLedger
from colocate.types import Role

GIB = 1 << 30
BUDGET = GpuBudget(
    total_bytes=100 * GIB,
    usable_bytes=90 * GIB,
    lines=(
        Line("weights", 16 * GIB),
        Line("KV pool", 60 * GIB),
        Line("prefill: context", GIB, Role.PREFILL),
        Line("prefill: activations", 2 * GIB, Role.PREFILL),
        Line("decode: context", GIB, Role.DECODE),
        Line("decode: activations", GIB, Role.DECODE),
        Line("decode: graphs", 2 * GIB, Role.DECODE),
        Line("MPS server", GIB),
    ),
    kv_bytes=60 * GIB,
    num_blocks=1000,
    graph_bytes=2 * GIB,
    used_before_bytes=3 * GIB,
)


def measured(prefill_gib: float = 1.5) -> MemoryLedger:
    ledger = MemoryLedger(BUDGET)
    ledger.note(Role.KEEPER, {"device_segments_bytes": 76 * GIB})
    ledger.note(Role.ENGINE, {})
    ledger.note(Role.PREFILL, {"device_used_bytes": 81 * GIB, "allocated_bytes": int(prefill_gib * GIB)})
    decode = {"device_used_bytes": 84 * GIB, "allocated_bytes": 2 * GIB, "graph_bytes": GIB, "gpu_uuid": "GPU-1"}
    ledger.note(Role.DECODE, decode)
    return ledger


def by_name(ledger: MemoryLedger) -> dict[str, Entry]:
    return {entry.name: entry for entry in ledger.entries()}


def test_what_is_not_named_is_contexts_and_partitions() -> None:
    entries = by_name(measured())
    assert entries["weights and KV pool"].measured_bytes == 76 * GIB
    assert entries["decode: graphs"].measured_bytes == entries["decode: activations"].measured_bytes == GIB
    assert entries[TOTAL].measured_bytes == (84 - 3) * GIB, "without what was used before"
    rest = entries["contexts, partitions, MPS server"]
    assert rest.planned_bytes == 3 * GIB
    assert rest.measured_bytes == (81 - 76 - 2) * GIB - int(1.5 * GIB)
    planned = [entry.planned_bytes for entry in measured().entries()]
    assert sum(planned[:-1]) == planned[-1] == BUDGET.planned_bytes
    assert measured().warnings() == ()


def test_a_plan_that_was_too_small_is_named() -> None:
    (warning,) = measured(prefill_gib=2.5).warnings()
    assert "prefill: activations took 2.5 GiB, 2 GiB were planned" in warning


def test_without_a_measurement_there_is_the_plan_alone() -> None:
    ledger = MemoryLedger(BUDGET)
    assert all(entry.measured_bytes is None for entry in ledger.entries())
    assert ledger.warnings() == ()
    assert not any(name.endswith("measured") for name in ledger.as_facts())
    assert "left of 90 GiB" in ledger.render()


def test_the_table_holds_every_number() -> None:
    text = measured(prefill_gib=2.5).render()
    for word in ("planned", "measured", "76 GiB", "2.5 GiB !", "81 GiB", TOTAL):
        assert word in text
    facts = measured().as_facts()
    assert facts[f"{TOTAL}, measured"] == 81 * GIB and facts["usable_bytes"] == 90 * GIB


def test_a_mapping_is_told_from_a_copy() -> None:
    assert CopyCheck(mapped_bytes=76 * GIB, grown_bytes=160 << 20).is_shared
    assert not CopyCheck(mapped_bytes=76 * GIB, grown_bytes=76 * GIB).is_shared


def test_a_gpu_that_is_not_there_has_no_use() -> None:
    assert device_use("GPU-00000000-0000-0000-0000-000000000000") is None
