"""The engine client over an in-memory channel that refuses, breaks and is replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from colocate.errors import Overloaded
from colocate.frontend.detokenizer import ByteLevelDetokenizer
from colocate.frontend.engine_client import EngineClient
from colocate.frontend.generation import Choice, Generation, TextOptions
from colocate.frontend.measures import RequestMeasures
from colocate.frontend.slo import SloTable
from colocate.messages.client import Abort, OutputItem, Outputs, Rejected, Submit
from colocate.messages.sampling import SamplingParams
from colocate.transport.memory_channel import MemoryChannel, memory_pair
from colocate.transport.vocabulary import ENGINE_TO, FROM_FRONTEND
from colocate.types import FinishReason, Role
from tests.limits import LIMIT_S

LOST_LIMIT_S = 0.8  # long enough to connect to a successor in time on any machine
TABLE = [bytes([byte]) for byte in range(256)]


@dataclass
class Wire:
    """Hands out channels whose other ends the test holds, newest last."""

    high_water: int = 64
    engines: list[MemoryChannel] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def open(self, address: str) -> MemoryChannel:
        ours, engine = memory_pair(ENGINE_TO[Role.FRONTEND], FROM_FRONTEND, high_water=self.high_water)
        self.engines.append(engine)
        return ours

    def client(self, max_in_flight: int = 100) -> EngineClient:
        client = EngineClient(
            self.open, self.broken.append, 3, max_in_flight, lost_limit_s=LOST_LIMIT_S, slo=SloTable((), None)
        )
        client.connect("memory")
        return client

    def heard(self) -> list[object]:
        messages: list[object] = []
        while (message := self.engines[-1].recv()) is not None:
            messages.append(message)
        return messages


def generation_of(client: EngineClient, num_choices: int = 1, stops: tuple[str, ...] = ()) -> Generation:
    generation = Generation(RequestMeasures(), 1 << 20, wake_per_token=True)
    for index in range(num_choices):
        submit = Submit(client.new_id(), [1, 2], SamplingParams(max_tokens=9), time.monotonic_ns())
        generation.add(Choice(generation, index, submit, ByteLevelDetokenizer(TABLE), TextOptions(stops=stops)))
    return generation


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def test_what_the_channel_refuses_is_sent_later_and_in_order() -> None:
    wire = Wire(high_water=2)
    client = wire.client()
    generation = generation_of(client, 5)
    client.submit(generation)
    client.release(generation, FinishReason.ABORT)
    heard: list[object] = []

    def all_heard() -> bool:
        heard.extend(wire.heard())
        return len(heard) == 6

    await eventually(all_heard)
    ids = [choice.request_id for choice in generation.choices]
    assert [message.request_id for message in heard[:5] if isinstance(message, Submit)] == ids
    assert heard[5] == Abort(ids) and client.num_in_flight == 0
    client.close()


async def test_ids_carry_the_incarnation() -> None:
    client = Wire().client()
    assert client.new_id() == 3 << 40 and client.new_id() == (3 << 40) + 1
    client.close()


async def test_tokens_after_a_stop_string_count_for_nothing() -> None:
    wire = Wire()
    client = wire.client()
    generation = generation_of(client, stops=("b",))
    client.submit(generation)
    [request_id] = [choice.request_id for choice in generation.choices]
    wire.engines[0].send(Outputs([OutputItem(request_id, list(b"abcd"))]))
    wire.engines[0].send(Outputs([OutputItem(request_id, list(b"e"), FinishReason.LENGTH)]))
    await generation.wait()
    [update] = generation.take()
    assert update.text == "a" and update.finish is FinishReason.STOP and generation.choices[0].num_output_tokens == 2
    assert generation.done and wire.heard()[-1] == Abort([request_id])
    client.close()


async def test_outputs_of_strangers_are_ignored() -> None:
    wire = Wire()
    client = wire.client()
    wire.engines[0].send(Outputs([OutputItem(99, [1], FinishReason.STOP)]))
    wire.engines[0].send(Rejected(98, 429, "full", 1.0))
    await asyncio.sleep(0.01)
    assert client.num_in_flight == 0 and not wire.broken
    client.close()


async def test_a_rejection_fails_the_whole_request() -> None:
    wire = Wire()
    client = wire.client()
    generation = generation_of(client, 2)
    client.submit(generation)
    first, second = (choice.request_id for choice in generation.choices)
    wire.engines[0].send(Rejected(second, 429, "full", 1.5))
    await generation.wait()
    assert isinstance(generation.failure, Overloaded) and generation.failure.retry_after_s == 1.5
    client.release(generation, FinishReason.ERROR)
    assert wire.heard()[-1] == Abort([first])
    client.close()


async def test_too_many_in_flight() -> None:
    client = Wire().client(max_in_flight=2)
    client.submit(generation_of(client, 2))
    with pytest.raises(Overloaded):
        client.submit(generation_of(client))
    client.close()


async def test_a_gap_is_reported_and_the_successor_gets_what_is_left() -> None:
    wire = Wire()
    client = wire.client()
    generation, finished = generation_of(client), generation_of(client)
    client.submit(generation)
    client.submit(finished)
    alive, done = generation.choices[0].request_id, finished.choices[0].request_id
    items = [OutputItem(alive, list(b"ab")), OutputItem(done, list(b"z"), FinishReason.STOP)]
    wire.engines[0].send(Outputs(items))
    await generation.wait()
    wire.engines[0].inject((b"\xff" * 8, b"\x82\xa4type\xa7Outputs\xa5items\x90"))
    await eventually(lambda: bool(wire.broken))
    client.connect("successor")
    [submit] = wire.heard()
    assert isinstance(submit, Submit) and submit.request_id == alive
    assert submit.output_token_ids == list(b"ab") and submit.resubmitted
    await asyncio.sleep(1.2 * LOST_LIMIT_S)
    assert generation.failure is None
    client.close()


async def test_an_engine_that_stays_away_fails_what_waits() -> None:
    wire = Wire()
    client = wire.client()
    generation = generation_of(client)
    client.submit(generation)
    client.lost()
    client.lost()  # said once a second
    await asyncio.wait_for(generation.wait(), LIMIT_S)
    assert generation.failure is not None and generation.failure.code == "engine_lost"
    client.close()


async def test_idle_is_told_once_all_has_ended() -> None:
    wire = Wire()
    client = wire.client()
    generation = generation_of(client)
    client.submit(generation)
    told: list[bool] = []
    client.when_idle(lambda: told.append(True))
    assert not told
    wire.engines[0].send(Outputs([OutputItem(generation.choices[0].request_id, [97], FinishReason.LENGTH)]))
    await eventually(lambda: bool(told))
    client.release(generation, FinishReason.ABORT)
    assert told == [True] and generation.choices[0].finish is FinishReason.LENGTH
    client.close()
