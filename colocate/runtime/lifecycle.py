"""The life of one run, as its supervisor leads it."""

from __future__ import annotations

from enum import Enum


class Lifecycle(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"


TRANSITIONS: dict[Lifecycle, tuple[Lifecycle, ...]] = {
    Lifecycle.STARTING: (Lifecycle.SERVING, Lifecycle.STOPPING),
    Lifecycle.SERVING: (Lifecycle.DRAINING, Lifecycle.STOPPING),
    Lifecycle.DRAINING: (Lifecycle.STOPPING,),
    Lifecycle.STOPPING: (Lifecycle.STOPPED,),
    Lifecycle.STOPPED: (),
}
