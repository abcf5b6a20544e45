"""An engine that says what a script tells it, over the real transport: what the frontend is tested against.

It runs in a thread of its own, answers every message the real engine answers, and keeps the promises of
`messages/client.py`: tokens of a request depend on the request and the position alone, so a resubmitted request goes on
where it was; a finished or aborted request says nothing more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import msgpack

from colocate.core.stop import finish_after
from colocate.messages.client import (
    Abort,
    ChangeSlo,
    ControlReply,
    EngineState,
    OutputItem,
    Outputs,
    PinPlan,
    PlanInfo,
    Rejected,
    RequestTimes,
    ShadowRecord,
    StateQuery,
    Submit,
    SwitchRecord,
)
from colocate.messages.sampling import TokenLogprob
from colocate.messages.slo import SloClass
from colocate.transport.vocabulary import FROM_FRONTEND
from colocate.transport.waiting import Waiter
from colocate.transport.zmq_channel import ZmqChannel
from colocate.types import FinishReason, RequestId, TokenId
from tests.limits import LIMIT_S

ALPHABET = b"abcdefghijklmnopqrstuvwxyz "
LOGPROB = -0.5
NUM_BLOCKS = 100
PLANS = (PlanInfo("p2d1", 2, 1), PlanInfo("shared", 3, 3))


def alphabet_tokens(submit: Submit, position: int) -> TokenId:
    """The default script: the alphabet over and over, beginning at the length of the prompt."""
    return ALPHABET[(len(submit.prompt_token_ids) + position) % len(ALPHABET)]


def fixed_text(text: str | bytes, eos: TokenId = 257) -> Callable[[Submit, int], TokenId]:
    """A byte-level answer, then EOS for ever."""
    raw = text.encode() if isinstance(text, str) else text
    return lambda _submit, position: raw[position] if position < len(raw) else eos


@dataclass
class Script:
    """What the engine does; tests change it between requests."""

    token: Callable[[Submit, int], TokenId] = alphabet_tokens
    first_token_s: float = 0.0
    token_gap_s: float = 0.0
    tokens_per_item: int = 1
    reject: Callable[[Submit], Rejected | None] = lambda submit: None
    fail_at: int | None = None  # output position at which a request fails
    hold_after: int | None = None  # output position at which requests stop for ever
    answer_state: bool = True
    answer_control: bool = True
    num_cached_tokens: int = 0  # of every prompt, at most its length


@dataclass
class _Running:
    submit: Submit
    position: int
    due_s: float
    scheduled_ns: int
    first_ns: int = 0


def _lose_a_message(channel: ZmqChannel) -> None:
    """A frame whose sequence number is far ahead: those between seem lost."""
    channel.socket.send_multipart([(1 << 40).to_bytes(8, "little"), msgpack.encode(Outputs([]))])


@dataclass
class ScriptedEngine:
    """Start with `start`, end with `stop`; `kill` closes the channel without a word."""

    address: str
    script: Script = field(default_factory=Script)
    submits: list[Submit] = field(default_factory=list)
    aborted: list[RequestId] = field(default_factory=list)
    orders: list[PinPlan | ChangeSlo] = field(default_factory=list)
    heard: list[object] = field(default_factory=list)  # every message, in order
    pinned: str | None = None
    slo_classes: dict[str, SloClass] = field(default_factory=dict)
    skip_a_number: threading.Event = field(default_factory=threading.Event)  # lose one message, as a fault would
    _running: dict[RequestId, _Running] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> ScriptedEngine:
        self._thread = threading.Thread(target=self._run, name="scripted-engine", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(LIMIT_S)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def positions(self) -> list[int]:
        """How far each running request has come."""
        return [row.position for row in list(self._running.values())]

    def release(self) -> None:
        """Go on with what the script holds, or what waits for its first token. Not before it is held."""
        self.script.hold_after = None
        for row in list(self._running.values()):
            row.due_s = 0.0

    def _run(self) -> None:
        channel = ZmqChannel.bind(self.address, FROM_FRONTEND)
        waiter = Waiter([channel])
        try:
            while not self._stop.is_set():
                waiter.wait(self._next_wait_s())
                if self.skip_a_number.is_set():
                    self.skip_a_number.clear()
                    _lose_a_message(channel)
                while (message := channel.recv()) is not None:
                    self._handle(channel, message)
                items = self._due_items()
                if items:
                    channel.send(Outputs(items))
        finally:
            channel.close()

    def _next_wait_s(self) -> float:
        now = time.monotonic()
        soonest = min((row.due_s for row in self._running.values()), default=now + 0.02)
        return min(0.02, max(0.0, soonest - now))

    def _handle(self, channel: ZmqChannel, message: object) -> None:
        self.heard.append(message)
        if isinstance(message, Submit):
            self.submits.append(message)
            rejected = self.script.reject(message)
            if rejected is not None:
                channel.send(rejected)
            else:
                position = len(message.output_token_ids)
                due = time.monotonic() + self.script.first_token_s
                self._running[message.request_id] = _Running(message, position, due, time.monotonic_ns())
        elif isinstance(message, Abort):
            for request_id in message.request_ids:
                self.aborted.append(request_id)
                self._running.pop(request_id, None)
        elif isinstance(message, StateQuery) and self.script.answer_state:
            channel.send(self._state(message.query_id))
        elif isinstance(message, PinPlan | ChangeSlo):
            self.orders.append(message)
            reply = self._obey(message)
            if self.script.answer_control:
                channel.send(reply)

    def _obey(self, message: PinPlan | ChangeSlo) -> ControlReply:
        if isinstance(message, ChangeSlo):
            self.slo_classes |= {known.name: known for known in message.classes}
        elif message.plan is not None and message.plan not in [plan.name for plan in PLANS]:
            return ControlReply(message.query_id, f"no plan {message.plan!r}", "name one of p2d1, shared")
        else:
            self.pinned = message.plan
        return ControlReply(message.query_id)

    def _due_items(self) -> list[OutputItem]:
        now = time.monotonic()
        due = [row for row in self._running.values() if row.due_s <= now]
        return [self._step(row, now) for row in due]

    def _step(self, row: _Running, now: float) -> OutputItem:
        script, params = self.script, row.submit.params
        request_id = row.submit.request_id
        if script.fail_at is not None and row.position >= script.fail_at:
            del self._running[request_id]
            return OutputItem(request_id, [], FinishReason.ERROR, error="the script says so")
        prompt_logprobs: list[TokenLogprob] = []
        if not row.first_ns and params.prompt_logprobs is not None:
            prompt_logprobs = [self._score(token, params.prompt_logprobs) for token in row.submit.prompt_token_ids[1:]]
        is_first, row.first_ns = not row.first_ns, row.first_ns or time.monotonic_ns()
        token_ids: list[TokenId] = []
        finish = None
        if params.max_tokens == 0:
            finish = FinishReason.LENGTH
        while finish is None and len(token_ids) < script.tokens_per_item:
            token_ids.append(script.token(row.submit, row.position))
            finish = finish_after(params, row.position, token_ids[-1])
            row.position += 1
        row.due_s = now + script.token_gap_s
        if script.hold_after is not None and row.position >= script.hold_after:
            row.due_s = float("inf")
        logprobs = [] if params.logprobs is None else [self._score(token, params.logprobs) for token in token_ids]
        times = None
        if finish is not None:
            del self._running[request_id]
        if finish is not None or is_first:
            finished_ns = 0 if finish is None else time.monotonic_ns()
            num_cached = min(script.num_cached_tokens, len(row.submit.prompt_token_ids))
            times = RequestTimes(row.submit.arrival_ns, row.scheduled_ns, row.first_ns, finished_ns, 0, num_cached)
        return OutputItem(request_id, token_ids, finish, logprobs, prompt_logprobs, times)

    @staticmethod
    def _score(token_id: TokenId, num_top: int) -> TokenLogprob:
        return TokenLogprob(LOGPROB, [((token_id + rank) % 256, LOGPROB - rank) for rank in range(num_top)])

    def _state(self, query_id: int) -> EngineState:
        now_ns = time.monotonic_ns()
        plan = PLANS[0]
        return EngineState(
            query_id=query_id,
            now_ns=now_ns,
            mode="colocated",
            policy="elastic",
            plan=plan,
            plan_seq=3,
            plans=list(PLANS),
            num_waiting=0,
            num_prefill_running=0,
            num_decode_running=len(self._running),
            blocks_total=NUM_BLOCKS,
            blocks_free=NUM_BLOCKS - len(self._running) - (20 if self.script.num_cached_tokens else 0),
            blocks_draining=0,
            block_size=16,
            switch_count=2,
            switch_counts=[("p2d1", "shared", 1), ("shared", "p2d1", 1)],
            switch_last=SwitchRecord(3, "shared", "p2d1", "idle", now_ns - 10**9, now_ns - 10**9 + 500_000, 0),
            switch_latency_ns=[400_000, 600_000],
            residency_ns={"p2d1": 3 * 10**9, "shared": 10**9},
            num_preemptions=1,
            num_ignored_commands=0,
            workers_ready={"prefill": True, "decode": True},
            blocks_cached=20 if self.script.num_cached_tokens else 0,
            prefix_queries_total=400,
            prefix_hits_total=300,
            prefix_evictions_total=7,
            discipline="edf",
            candidates=["p2d1"],
            best_static="p2d1",
            pinned=self.pinned,
            slo_classes=list(self.slo_classes.values()),
            shadow=ShadowRecord("slo", "shared", 0.75, 4),
            guards={"dwell": 3, "hysteresis": 0},
            prediction_error={"prefill": 0.05, "decode": 0.1},
            latency_source="scripted",
            set_aside_count=2,
            switch_recent=[
                SwitchRecord(2, "p2d1", "shared", "both", now_ns - 2 * 10**9, now_ns - 10**9, now_ns - 10**9),
                SwitchRecord(3, "shared", "p2d1", "idle", now_ns - 10**9, now_ns - 10**9 + 500_000, 0),
            ],
        )
