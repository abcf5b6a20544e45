"""`/control`: what an operator may change while the daemon runs. Every call is an order to the engine, which records
it, decides, and answers; what it refuses is a 400 with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response

from colocate.config.slo import SloClass
from colocate.errors import RequestError
from colocate.frontend.body import read_body
from colocate.frontend.engine_client import EngineClient
from colocate.frontend.errors import json_response
from colocate.frontend.parameters import parse_request
from colocate.frontend.schemas import PlanPin, SloChange, SloTargets
from colocate.frontend.slo import SloTable
from colocate.frontend.state_view import class_view, plans_view
from colocate.messages.client import ChangeSlo, ControlReply, PinPlan

# An engine that is well answers within a millisecond; an operator may wait for one that is busy.
CONTROL_TIMEOUT_S = 2.0
MAX_BODY_BYTES = 64 * 1024

_log = structlog.get_logger("colocate.control")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlCalls:
    client: EngineClient
    slo: SloTable

    async def plan(self, request: Request) -> Response:
        parsed = parse_request(await read_body(request, MAX_BODY_BYTES), PlanPin)
        _check(await self.client.order(PinPlan(self.client.new_query(), parsed.plan), CONTROL_TIMEOUT_S), "plan")
        _log.info("control", pinned=parsed.plan)
        return json_response({"pinned": parsed.plan})

    async def change_slo(self, request: Request) -> Response:
        parsed = parse_request(await read_body(request, MAX_BODY_BYTES), SloChange)
        names = [change.name for change in parsed.classes]
        if len(set(names)) < len(names):
            raise RequestError("classes: each class at most once", param="classes")
        changed = [self._changed(change, f"classes[{index}]") for index, change in enumerate(parsed.classes)]
        _check(await self.client.order(ChangeSlo(self.client.new_query(), changed), CONTROL_TIMEOUT_S), "classes")
        _log.info("control", slo_classes=[class_view(known) for known in changed])
        return json_response({"classes": [class_view(known) for known in self.slo.classes]})

    def _changed(self, change: SloTargets, param: str) -> SloClass:
        """The class with the targets that are named; null takes one away, and what is not named stays."""
        known = self.slo.get(change.name, f"{param}.name")
        named = change.model_fields_set - {"name"}
        if not named:
            raise RequestError(f"{param}: name at least one target", param=param)
        targets = {name.removesuffix("_ms") + "_s": getattr(change, name) for name in named}
        return structs.replace(known, **{name: ms if ms is None else ms / 1e3 for name, ms in targets.items()})

    async def plans(self, request: Request) -> Response:
        state = await self.client.query_state(CONTROL_TIMEOUT_S)
        if state is None:
            raise _no_answer()
        return json_response(plans_view(state))


def _check(reply: ControlReply | None, param: str) -> None:
    """Raises RequestError where the engine refused, or said nothing."""
    if reply is None:
        raise _no_answer()
    if reply.problem:
        message = reply.problem + (f"; {reply.remedy}" if reply.remedy else "")
        raise RequestError(message, param=param, code="refused")


def _no_answer() -> RequestError:
    return RequestError(
        "the engine has not answered, and may or may not have obeyed; GET /control/plans says what is in force",
        status=503,
        type="service_unavailable_error",
        code="no_answer",
        retry_after_s=1.0,
    )
