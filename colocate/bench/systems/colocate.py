"""This package's own server, started by the interpreter that runs the sweep."""

from __future__ import annotations

import http.client
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

import colocate
from colocate.bench.systems.server import ServerFailed, running
from colocate.bench.systems.system import READY_TIMEOUT_S, STOP_S, Launch
from colocate.config.plan_file import SHARED_PLAN

_STATE_S = 10.0


class _Plan(Struct):
    name: str
    prefill_units: int
    decode_units: int


class _State(Struct):
    plans: list[_Plan]


@dataclass(frozen=True, slots=True)
class Colocate:
    """Implements `System`. `flags` are those of every arm (device, memory, promises); an arm's own come after them and
    win."""

    model: str
    flags: tuple[str, ...] = ()
    ready_timeout_s: float = READY_TIMEOUT_S
    name: str = "colocate"

    def launch(self, flags: tuple[str, ...], port: int) -> Launch:
        words = ("serve", self.model, *self.flags, *flags, "--port", str(port))
        return Launch(
            command=(sys.executable, "-m", "colocate", *words),
            written=("colocate", *words),
            url=f"http://127.0.0.1:{port}",
            ready_path="/ready",
            ready_timeout_s=self.ready_timeout_s,
            stop_s=STOP_S,
        )

    def version(self) -> str:
        return colocate.__version__


def static_plans(system: Colocate, log: Path) -> tuple[str, ...]:
    """Every split of the device, by name, most prefill units first: from a server that is started to be asked. Empty
    where the device cannot be split. Raises ServerFailed."""
    with running(system, ("--mode", "colocated", "--plan", "elastic"), log) as server:
        place = urlsplit(server.url)
        connection = http.client.HTTPConnection(place.hostname or "127.0.0.1", place.port, timeout=_STATE_S)
        try:
            connection.request("GET", "/state")
            state = msgspec.json.decode(connection.getresponse().read(), type=_State)
        except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
            raise ServerFailed(f"does not tell its plans: {error}") from None
        finally:
            connection.close()
    splits = [plan for plan in state.plans if plan.prefill_units and plan.decode_units and plan.name != SHARED_PLAN]
    return tuple(plan.name for plan in sorted(splits, key=lambda plan: plan.decode_units))
