"""The plan file of a run: the dry run on the device, and what a change of the file brings."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from colocate.core.plan import build_plan_table
from colocate.errors import ConfigError
from colocate.runtime.plan_source import POLL_S, PlanChoice, PlanSource, PlanWatch

TABLE = build_plan_table(132, 8)
ROWS = {
    "p84d48": "  - {name: p84d48, prefill_units: 84, decode_units: 48}\n",
    "p108d24": "  - {name: p108d24, prefill_units: 108, decode_units: 24}\n",
}


def text_of(*names: str, best: str = "", head: str = "") -> str:
    return (
        "version: 1\nunits: 132\ngranularity: 8\n"
        + head
        + (f"best_static: {best}\n" if best else "")
        + "plans:\n"
        + "".join(ROWS[name] for name in names)
    )


@pytest.fixture
def source(tmp_path: Path) -> PlanSource:
    path = tmp_path / "plans.yaml"
    path.write_text(text_of("p84d48", "p108d24", best="p108d24"))
    return PlanSource(path, TABLE, "h200", "demo")


class TestDryRun:
    def test_the_plans_are_found_in_the_table(self, source: PlanSource) -> None:
        choice, file = source.read()
        assert choice == PlanChoice(("p84d48", "p108d24"), "p108d24")
        assert [TABLE.by_name(plan.name).decode_units for plan in file.plans] == [48, 24]

    @pytest.mark.parametrize(
        ("text", "where", "says"),
        [
            (text_of("p84d48", head="device: a100\n"), "device", "is for a100, this run has h200"),
            (text_of("p84d48", head="model: org/other\n"), "model", "is for org/other, this run has demo"),
            (text_of("p84d48").replace("132", "140"), "units", "is for 140, this run has 132"),
            (
                text_of("p84d48").replace("name: p84d48", "name: mine"),
                "plans[0].name",
                "are called 'p84d48' here, not 'mine'",
            ),
            (text_of("p84d48").replace("84,", "80,"), "plans[0]", "no plan of 80 units for prefill and 48 for decode"),
            (text_of("p84d48").replace("decode_units: 48", "decode_units: 56"), "plans[0]", "oversubscribes"),
        ],
    )
    def test_a_file_for_something_else_is_refused(self, source: PlanSource, text: str, where: str, says: str) -> None:
        source.path.write_text(text)
        with pytest.raises(ConfigError) as refusal:
            source.read()
        assert refusal.value.where == f"{source.path}: {where}"
        assert says in refusal.value.problem
        assert refusal.value.remedy


class Watched:
    """A watch with a clock that always goes on by one poll."""

    def __init__(self, source: PlanSource) -> None:
        self.source = source
        self.watch = PlanWatch(source, source.read()[0])
        self.now_s = 0.0

    def poll(self, *, force: bool = False) -> PlanChoice | None:
        self.now_s += POLL_S
        return self.watch.poll(self.now_s, force=force)

    def write(self, text: str) -> None:
        """A new file in place of the old one, as editors do: it differs even within one tick of the file's clock."""
        fresh = self.source.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.source.path)


class TestWatch:
    def test_a_changed_file_brings_new_plans_once(self, source: PlanSource) -> None:
        watched = Watched(source)
        assert watched.poll() is None
        watched.write(text_of("p84d48", best="p84d48"))
        assert watched.poll() == PlanChoice(("p84d48",), "p84d48")
        assert watched.poll() is None

    def test_a_file_that_was_only_touched_brings_nothing(self, source: PlanSource) -> None:
        watched = Watched(source)
        watched.write(source.path.read_text() + "# a comment\n")
        assert watched.poll() is None

    def test_the_file_is_looked_at_at_most_once_in_a_period(self, source: PlanSource) -> None:
        watched = Watched(source)
        watched.poll()
        watched.write(text_of("p84d48"))
        assert watched.watch.poll(watched.now_s + POLL_S / 2) is None
        assert watched.watch.poll(watched.now_s + POLL_S) == PlanChoice(("p84d48",))

    def test_an_order_reads_at_once_and_answers_with_equal_plans_too(self, source: PlanSource) -> None:
        watched = Watched(source)
        watched.poll()
        assert watched.watch.poll(watched.now_s, force=True) == PlanChoice(("p84d48", "p108d24"), "p108d24")

    def test_a_broken_file_is_logged_once_and_the_old_plans_stay(
        self, source: PlanSource, caplog: pytest.LogCaptureFixture
    ) -> None:
        watched = Watched(source)
        watched.poll()
        with caplog.at_level(logging.ERROR):
            watched.write(text_of("p84d48").replace("48}", "96}"))
            assert [watched.poll(), watched.poll()] == [None, None]
            assert len(caplog.records) == 1 and "oversubscribes" in caplog.text
            source.path.unlink()
            assert [watched.poll(), watched.poll()] == [None, None]
            assert len(caplog.records) == 2 and "cannot read the plan file" in caplog.text
        watched.write(text_of("p108d24"))
        assert watched.poll() == PlanChoice(("p108d24",))

    def test_a_successor_notices_what_changed_before_it_was_born(self, source: PlanSource) -> None:
        old = source.read()[0]
        source.path.write_text(text_of("p84d48"))
        assert PlanWatch(source, old).poll(0.0) == PlanChoice(("p84d48",))
