"""What a check says: pass, fail with the remedy, or not testable here and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Status(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    UNTESTABLE = "untestable"


class Group(StrEnum):
    """How much a check needs, in the order they run."""

    ENVIRONMENT = "environment"
    ONE_PROCESS = "one process"
    TWO_PROCESSES = "two processes"
    DRILL = "drill"


@dataclass(frozen=True, slots=True)
class Check:
    """One outcome. `data` holds plain JSON values: the figures behind `detail`. `seconds` is what it took."""

    name: str
    title: str
    group: Group
    is_necessary: bool  # co-location in two processes cannot be in force where it fails
    status: Status
    detail: str
    remedy: str = ""
    data: Mapping[str, object] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "title": self.title,
            "group": self.group.value,
            "necessary": self.is_necessary,
            "status": self.status.value,
            "detail": self.detail,
            "remedy": self.remedy,
            "data": dict(self.data),
            "seconds": round(self.seconds, 3),
        }

    def took(self, seconds: float) -> Check:
        return replace(self, seconds=seconds)


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A promise that can be checked; `passed`, `failed` and `untestable` make its outcome."""

    name: str
    title: str
    group: Group
    is_necessary: bool = True

    def passed(self, detail: str, **data: object) -> Check:
        return self._outcome(Status.PASS, detail, "", data)

    def failed(self, detail: str, remedy: str, **data: object) -> Check:
        return self._outcome(Status.FAIL, detail, remedy, data)

    def untestable(self, reason: str, remedy: str = "") -> Check:
        return self._outcome(Status.UNTESTABLE, reason, remedy, {})

    def _outcome(self, status: Status, detail: str, remedy: str, data: Mapping[str, object]) -> Check:
        return Check(self.name, self.title, self.group, self.is_necessary, status, detail, remedy, data)
