"""Once per arm, after the last run: does this way to serve still find what stands in a prompt?

The question is asked of the embedded model, which was trained to answer it, under the flags of the arm: the same mode,
plan, chunk, units and dtype. What was made for other weights, or would stand between a question and its answer, is left
out of them. Other systems are not asked: their servers are started with the sweep's model, which knows no answer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from msgspec import structs

from colocate.bench.quality import ChatServer, RecallScore, chat_server, recall_score
from colocate.bench.read import RECALL_FOLDER, read_recall
from colocate.bench.records import SCHEMA_VERSION, RecallRecord, SweepArm
from colocate.bench.sweep.arms import OURS
from colocate.bench.sweep.estimate import OVERHEAD_S, duration
from colocate.bench.sweep.execute import Say, in_short, published_command
from colocate.bench.sweep.journal import cannot_write, write_record
from colocate.bench.sweep.order import slug
from colocate.bench.sweep.plan import RecallPlan, SweepPlan
from colocate.bench.systems.colocate import Colocate
from colocate.bench.systems.server import Server, ServerFailed, is_ready, running
from colocate.config.settings import SETTINGS
from colocate.errors import ConfigError

DEMO = "demo"  # the embedded model, as `colocate serve` names it

# Refused by `serve` under another model, or measured with one.
OF_OTHER_WEIGHTS = ("revision", "profile", "latency_profile", "attention_table", "plans")
# Weights that recall nothing; a length or a queue that would turn questions away.
IN_THE_WAY = ("load_format", "max_model_len", "max_queue")

_QUESTION_S = 0.1  # of the embedded model on two cores, 8 at once


def check_recall(num_questions: int, model: str, device: str, environ: Mapping[str, str]) -> None:
    """What can be told before the arms are known. Raises ConfigError."""
    if num_questions < 0:
        raise ConfigError("--recall", f"cannot be {num_questions}", "0 asks nothing; for example --recall 50")
    if not num_questions:
        return
    if device == "emulated":
        _refuse_emulated("")
    for name in _left_out(model):
        if SETTINGS[name].env in environ:
            problem = f"would hold for the embedded model, too, which --recall {num_questions} asks"
            raise ConfigError(f"environment: {SETTINGS[name].env}", problem, f"give it as {SETTINGS[name].flag}")


def recall_plan(num_questions: int, arms: tuple[SweepArm, ...], ours: Colocate) -> RecallPlan | None:
    """None where nothing is asked. Raises ConfigError: no arm can be asked, or one whose tokens come from a formula."""
    if not num_questions:
        return None
    own = tuple(arm for arm in arms if arm.system == OURS)
    if not own:
        raise ConfigError("--recall", "has no arm to ask: other systems do not serve the embedded model", "drop it")
    for arm in own:
        if dict(zip(arm.flags, arm.flags[1:], strict=False)).get("--device") == "emulated":
            _refuse_emulated(f"{arm.name}: ")
    names = _left_out(ours.model)
    return RecallPlan(
        arms=tuple(structs.replace(arm, flags=without(arm.flags, names)) for arm in own),
        system=replace(ours, model=DEMO, flags=without(ours.flags, names)),
        num_questions=num_questions,
    )


def without(flags: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """Flags as `as_flags` writes them, less those of some settings, none of which is a switch."""
    switches = {setting.flag for setting in SETTINGS.values() if setting.kind is bool}
    dropped = {SETTINGS[name].flag for name in names}
    kept: list[str] = []
    words = iter(flags)
    for word in words:
        is_switch = word in switches or word.startswith("--no-")
        option = (word,) if is_switch else (word, next(words))
        if word not in dropped:
            kept += option
    return tuple(kept)


def _left_out(model: str) -> tuple[str, ...]:
    return IN_THE_WAY if model == DEMO else (*OF_OTHER_WEIGHTS, *IN_THE_WAY)


def _refuse_emulated(whose: str) -> None:
    problem = f"{whose}the emulated device draws its tokens from a formula and recalls nothing"
    raise ConfigError("--recall", problem, "drop --recall (in a file: recall: 0), or give --device cpu or cuda")


@dataclass(frozen=True, slots=True)
class Recalled:
    """What is known once all were asked that could be. `num_left`: arms that the budget left out."""

    records: tuple[RecallRecord, ...]
    num_left: int

    @property
    def failed(self) -> tuple[RecallRecord, ...]:
        return tuple(record for record in self.records if record.failure)

    @property
    def short(self) -> tuple[RecallRecord, ...]:
        """Arms that did not find everything."""
        return tuple(record for record in self.records if record.right < record.asked)

    @property
    def is_whole(self) -> bool:
        """An arm that was asked was asked, whatever it said."""
        return not (self.failed or self.num_left)


class RecallRound:
    """One sitting over the folder of a sweep, whose lock the caller holds. The folder is looked at, nothing else tells
    what is done: an arm is, once its record holds as many questions, or its failure (unless that is to be retried)."""

    def __init__(self, plan: SweepPlan, say: Say, *, retry: bool = False) -> None:
        """Touches nothing. A plan without recall has no arm to ask."""
        self._arms = () if plan.recall is None else plan.recall.arms
        self._plan = plan.recall
        self._folder = plan.out / RECALL_FOLDER
        self._say = say
        self._retry = retry
        self._tried: set[str] = set()  # in this sitting: done whatever came of them
        self._spent_s: list[float] = []

    def missing(self) -> list[SweepArm]:
        """Arms that are still to be asked."""
        return [arm for arm in self._arms if not self._is_done(arm)]

    def estimate_s(self) -> float:
        return len(self.missing()) * self._arm_s()

    def words(self) -> str:
        """`, then recall of 7 arms, about 2 min`; empty where there is nothing to ask."""
        num_arms = len(self.missing())
        arms = "1 arm" if num_arms == 1 else f"{num_arms} arms"
        return f", then recall of {arms}, about {duration(self.estimate_s())}" if num_arms else ""

    def ask(self, left_s: float | None = None) -> Recalled:
        """Ask every arm that is missing, or those that `left_s` seconds allow. Used from the main thread: servers end
        with the thread that started them. Raises ConfigError where the disk does not take it, and KeyboardInterrupt."""
        if self._plan is None:
            return Recalled((), 0)
        started_s = time.monotonic()
        for arm in self.missing():
            began_s = time.monotonic()
            if left_s is not None and began_s - started_s + self._arm_s() > left_s:
                break
            record = _ask(self._plan, arm, self._log(arm))
            self._tried.add(arm.name)
            self._spent_s.append(time.monotonic() - began_s)
            write_record(self._path(arm), record)
            self._say(f"{words_of_recall(record)}; {duration(self._spent_s[-1])}")
        records = (self._record(arm) for arm in self._arms)
        return Recalled(tuple(record for record in records if record is not None), len(self.missing()))

    def _arm_s(self) -> float:
        """What one arm takes: as those of this sitting did, or as a small model on a CPU does."""
        if self._spent_s:
            return sum(self._spent_s) / len(self._spent_s)
        return OVERHEAD_S[OURS] + _QUESTION_S * (0 if self._plan is None else self._plan.num_questions)

    def _is_done(self, arm: SweepArm) -> bool:
        record = self._record(arm)
        if record is None or self._plan is None:
            return False
        if record.failure:
            return not self._retry or arm.name in self._tried
        return record.asked >= self._plan.num_questions

    def _record(self, arm: SweepArm) -> RecallRecord | None:
        """None where there is none; a damaged one, or one of another version, is asked for again."""
        try:
            return read_recall(self._path(arm))
        except ConfigError:
            return None

    def _path(self, arm: SweepArm) -> Path:
        return self._folder / f"{slug(arm.name)}.json"

    def _log(self, arm: SweepArm) -> Path:
        """For the output of its server, in a folder that exists; nothing is in it. Raises ConfigError."""
        log = self._folder / f"{slug(arm.name)}.log"
        try:
            self._folder.mkdir(exist_ok=True)
            log.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._folder, error) from None
        return log


def _ask(plan: RecallPlan, arm: SweepArm, log: Path) -> RecallRecord:
    """Its server started, asked and stopped. `log` is kept where not everything was right."""
    record = RecallRecord(
        schema_version=SCHEMA_VERSION,
        arm=arm.name,
        model=DEMO,
        right=0,
        asked=0,
        pairs=plan.num_pairs,
        seed=plan.seed,
        command=(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        with running(plan.system, arm.flags, log) as server:
            target, score = _answers(plan, server)
            command = published_command(server.launch)
    except ServerFailed as error:
        return structs.replace(record, failure=str(error))
    if score.right == score.asked:
        with suppress(OSError):
            log.unlink(missing_ok=True)
    return structs.replace(record, model=target.model, right=score.right, asked=score.asked, command=command)


def _answers(plan: RecallPlan, server: Server) -> tuple[ChatServer, RecallScore]:
    """Raises ServerFailed where no question was answered, or the server was lost over them."""
    try:
        target = chat_server(server.url, server.launch.model)
        score = recall_score(target, plan.num_questions, plan.seed, plan.num_pairs)
    except ConfigError as error:
        raise ServerFailed(str(error)) from None
    if score.right < score.asked and not is_ready(server.launch):
        raise ServerFailed(
            f"was not ready any more after {score.asked} questions, of which {score.right} were answered right"
        )
    return target, score


def words_of_recall(record: RecallRecord) -> str:
    """One line about an arm that was asked."""
    if record.failure:
        return f"recall of {record.arm}: failed: {in_short((record.failure,))}"
    wrong = "" if record.right == record.asked else ", not all: what it computes may be wrong"
    return f"recall of {record.arm}: {record.right} of {record.asked} right{wrong}"
