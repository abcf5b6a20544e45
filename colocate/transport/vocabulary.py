"""Which messages each end of each channel accepts. Anything else on the wire is junk there."""

from __future__ import annotations

from msgspec import Struct

from colocate.messages.client import (
    Abort,
    ChangeSlo,
    ControlReply,
    EngineState,
    Outputs,
    PinPlan,
    Rejected,
    StateQuery,
    Submit,
)
from colocate.messages.control import PlanApplied, WorkerHello
from colocate.messages.decode import DecodeUpdate, StepReport
from colocate.messages.prefill import BatchFailed, PrefillBatch, PrefillCancel, PrefillCancelled, PrefillDone
from colocate.types import Role

FROM_FRONTEND: tuple[type[Struct], ...] = (Submit, Abort, StateQuery, PinPlan, ChangeSlo)
FROM_PREFILL: tuple[type[Struct], ...] = (WorkerHello, PlanApplied, BatchFailed, PrefillDone, PrefillCancelled)
FROM_DECODE: tuple[type[Struct], ...] = (WorkerHello, PlanApplied, BatchFailed, StepReport)
FROM_WORKER: dict[Role, tuple[type[Struct], ...]] = {
    Role.PREFILL: FROM_PREFILL,
    Role.DECODE: FROM_DECODE,
    Role.HYBRID: (*FROM_PREFILL, StepReport),
}

ENGINE_TO: dict[Role, tuple[type[Struct], ...]] = {
    Role.FRONTEND: (Outputs, Rejected, EngineState, ControlReply),
    Role.PREFILL: (PrefillBatch, PrefillCancel),
    Role.DECODE: (DecodeUpdate,),
    Role.HYBRID: (PrefillBatch, PrefillCancel, DecodeUpdate),
}
