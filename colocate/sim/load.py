"""What a run is offered: arrivals, and the request and the answer behind each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from colocate.messages.client import Submit
from colocate.messages.sampling import SamplingParams
from colocate.types import RequestId, TokenId
from colocate.workload.prompts import PromptLayout, plain_tokens
from colocate.workload.rows import WorkloadRow


class OwnTargets(NamedTuple):
    """Seconds, as in `Submit`; None goes by the class."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None


NO_OWN_TARGETS = OwnTargets()


class Load(Protocol):
    """Requests 1, 2, .. in order of arrival. Every answer ends at `max_tokens`, never before."""

    tokens_vary: bool  # whether the tokens of one answer differ

    @property
    def arrivals_s(self) -> Sequence[float]:
        """Ascending, after the start of the run."""
        ...

    def submit(self, index: int, arrival_ns: int) -> Submit:
        """Request `index + 1`, at the moment it arrives."""
        ...

    def token_of(self, request_id: RequestId, position: int) -> TokenId:
        """What the model answers at an output position."""
        ...

    def lengths(self, index: int) -> tuple[int, int, str]:
        """Prompt tokens, output tokens and SLO class."""
        ...

    def own_targets(self, index: int) -> OwnTargets:
        """What the request asks for itself, over what its class promises."""
        ...


class WorkloadLoad:
    """Implements `Load`: rows of a workload. Prompts are made when they arrive, so only those in flight take memory."""

    def __init__(self, rows: Sequence[WorkloadRow], layouts: Sequence[PromptLayout]) -> None:
        self._rows = rows
        self._layouts = layouts
        self.tokens_vary = False

    @property
    def arrivals_s(self) -> Sequence[float]:
        return [row.arrival_s for row in self._rows]

    def submit(self, index: int, arrival_ns: int) -> Submit:
        row = self._rows[index]
        return Submit(
            request_id=index + 1,
            prompt_token_ids=plain_tokens(self._layouts[index].pieces),
            params=SamplingParams(max_tokens=row.output_tokens, ignore_eos=True),
            arrival_ns=arrival_ns,
            slo_class=row.slo_class,
        )

    def token_of(self, request_id: RequestId, position: int) -> TokenId:
        return self._layouts[request_id - 1].answer

    def lengths(self, index: int) -> tuple[int, int, str]:
        row = self._rows[index]
        return row.prompt_tokens, row.output_tokens, row.slo_class

    def own_targets(self, index: int) -> OwnTargets:
        return NO_OWN_TARGETS
