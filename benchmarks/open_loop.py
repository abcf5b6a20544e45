"""An open-loop load driver: sends a workload on its schedule, whatever has become of the requests before.

    python benchmarks/open_loop.py 8000 --trace FILE [--speed 2] [--seconds 60] [--records FILE]
    python benchmarks/open_loop.py 8000 --lengths 128/32 --rate 2 --seconds 30

One asyncio process, one connection per request, prompts as token ids of exactly the length that the workload names,
and answers of exactly its length (`ignore_eos`). What comes of a request is a `RequestRecord` as the simulator writes
it, on the client's clock, so the same functions read both; times count from when the request was due, not from when it
was sent, and a request that failed is a miss and keeps its row.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct
from stream_client import StreamRecord, stream

from colocate.config.slo import SloClass
from colocate.sim.records import Quantiles, RequestRecord, Summary, itl_p99, quantiles, summarise
from colocate.workload.prompts import PromptLayout, drawn_tokens, lay_out
from colocate.workload.recipe import Recipe, cook
from colocate.workload.rows import Workload, WorkloadRow

# Ids that are words in every tokenizer at hand: neither special tokens nor single bytes.
VOCABULARY = range(300, 2000)
TOO_MANY = 429
USAGE: Mapping[str, bool] = {"include_usage": True}
_AHEAD_S = 0.0015  # `asyncio.sleep` wakes up to a millisecond late: the rest is waited for turn by turn


class LiveRequest(Struct, frozen=True):
    """One request as its client saw it. Seconds after the start of the run.

    `record.scheduled_s` is None: only the engine knows it.
    """

    record: RequestRecord
    sent_s: float
    token_s: tuple[float, ...]  # when each output token arrived
    finish_reason: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class LiveRun:
    requests: tuple[LiveRequest, ...]
    duration_s: float  # of the load
    elapsed_s: float  # until the last answer

    @property
    def records(self) -> tuple[RequestRecord, ...]:
        return tuple(request.record for request in self.requests)

    @property
    def errors(self) -> list[str]:
        return [request.error for request in self.requests if request.error is not None]

    @property
    def late_s(self) -> list[float]:
        """How long after it was due each request was sent: the driver's own fault."""
        return [each.sent_s - each.record.arrival_s for each in self.requests]

    def lateness(self) -> Quantiles:
        return quantiles(self.late_s)

    def summary(self, classes: Sequence[SloClass] = (), default_class: str = "") -> Summary:
        return summarise(self.records, self.duration_s, classes, default_class)


class OpenLoop:
    """One run of one workload. Used once."""

    def __init__(
        self,
        workload: Workload,
        port: int,
        model: str,
        *,
        seed: int = 0,
        drain_s: float = 60.0,
        stream_options: Mapping[str, bool] = USAGE,
    ) -> None:
        """`seed` draws the prompts: equal prefixes give equal tokens. `drain_s`: how long requests may finish after the
        last one was due; the rest is cut off and unfinished. `stream_options`: what this server is asked for."""
        self._workload = workload
        self._port = port
        self._model = model
        self._seed = seed
        self._drain_s = drain_s
        self._stream_options = dict(stream_options)
        self._layouts = lay_out(workload.rows)
        # A later turn of a session holds the answer to the one before, which is known once that has come.
        self._prompts = [
            None if row.session else drawn_tokens(layout.pieces, VOCABULARY, seed)
            for row, layout in zip(workload.rows, self._layouts, strict=True)
        ]
        self._answers: dict[int, list[int]] = {}
        self._streams = [StreamRecord(0.0) for _ in workload.rows]

    async def run(self) -> LiveRun:
        """Send everything when it is due and wait for the answers."""
        gc.collect()
        gc.freeze()  # prompts are many objects: walking them in the middle of a run would be lateness
        start_s = time.perf_counter()
        tasks: list[asyncio.Task[None]] = []
        for index, row in enumerate(self._workload.rows):
            await _until(start_s + row.arrival_s)
            tasks.append(asyncio.create_task(self._send(index, row)))
        _, late = await asyncio.wait(tasks, timeout=self._drain_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gc.unfreeze()
        requests = tuple(self._request(index, start_s) for index in range(len(tasks)))
        for task in set(tasks) - late:
            task.result()
        return LiveRun(requests, self._workload.duration_s, time.perf_counter() - start_s)

    async def _send(self, index: int, row: WorkloadRow) -> None:
        record = self._streams[index]
        extra: dict[str, object] = {"stream_options": self._stream_options}
        if row.slo_class:
            extra["slo_class"] = row.slo_class
        layout = self._layouts[index]
        prompt = self._prompts[index] or self._conversation(layout)
        try:
            await stream(self._port, self._model, prompt, row.output_tokens, record, **extra)
        except (OSError, ValueError) as error:  # refused, reset, or an answer that is none
            record.error = f"{type(error).__name__}: {error}"
        if row.session:
            self._answers[layout.answer] = record.token_ids

    def _conversation(self, layout: PromptLayout) -> list[int]:
        """With the answers that really came; drawn tokens stand for one that has not come yet, or not whole."""
        tokens: list[int] = []
        for piece in layout.pieces:
            number, num_tokens = piece
            answer = self._answers.get(number, [])
            tokens += answer if len(answer) == num_tokens else drawn_tokens([piece], VOCABULARY, self._seed)
        return tokens

    def _request(self, index: int, start_s: float) -> LiveRequest:
        row, heard = self._workload.rows[index], self._streams[index]
        error = heard.error
        if error is None and heard.finish_reason is None:
            error = "cut off: not finished in time"
        token_s = tuple(at_s - start_s for at_s in heard.token_s)
        return LiveRequest(
            record=RequestRecord(
                request_id=index + 1,
                arrival_s=row.arrival_s,
                prompt_tokens=row.prompt_tokens,
                max_tokens=row.output_tokens,
                slo_class=row.slo_class,
                first_token_s=token_s[0] if token_s else None,
                finished_s=token_s[-1] if token_s and error is None else None,
                output_tokens=len(token_s),
                cached_tokens=heard.num_cached_tokens,
                itl_p99_s=None if error else itl_p99([int(at_s * 1e9) for at_s in token_s]),
                rejected=heard.status == TOO_MANY,
            ),
            sent_s=heard.sent_s - start_s,
            token_s=token_s,
            finish_reason=heard.finish_reason,
            error=error,
        )


def offer(
    workload: Workload,
    port: int,
    model: str,
    *,
    seed: int = 0,
    drain_s: float = 60.0,
    stream_options: Mapping[str, bool] = USAGE,
) -> LiveRun:
    """Send the workload to the server on this port of this machine."""
    loop = OpenLoop(workload, port, model, seed=seed, drain_s=drain_s, stream_options=stream_options)
    return asyncio.run(loop.run())


async def _until(due_s: float) -> None:
    left_s = due_s - time.perf_counter()
    if left_s > _AHEAD_S:
        await asyncio.sleep(left_s - _AHEAD_S)
    while time.perf_counter() < due_s:  # noqa: ASYNC110 - waits for a time, not for an event
        await asyncio.sleep(0)


def show(run: LiveRun) -> None:
    """The figures of a run, and how late the driver itself was."""
    summary, late = run.summary(), run.lateness()
    print(
        f"{summary.num_finished} of {summary.num_offered} finished, {summary.num_rejected} rejected, "
        f"{summary.output_tokens_per_s:.1f} tokens/s over {run.duration_s:.1f} s"
    )
    named = (("TTFT", summary.ttft_s), ("TPOT", summary.tpot_s), ("ITL p99", summary.itl_p99_s), ("sent late", late))
    for name, figures in named:
        cells = (
            f"{label} {_ms(value)}" for label, value in zip(("p50", "p90", "p99"), figures_of(figures), strict=True)
        )
        print(f"{name:10} " + "   ".join(cells))
    for error in sorted(set(run.errors)):
        print(f"failed {run.errors.count(error)}: {error[:200]}")


def figures_of(figures: Quantiles) -> tuple[float | None, float | None, float | None]:
    return figures.p50, figures.p90, figures.p99


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--lengths")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--arrivals", default="poisson")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--speed", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--records", type=Path, help="write every request with the time of every token, as JSON lines")
    options = parser.parse_args()
    recipe = Recipe(
        trace=options.trace,
        rates=() if options.rate is None else (options.rate,),
        lengths=() if options.lengths is None else (options.lengths,),
        arrivals=options.arrivals,
        duration_s=options.seconds,
        speed=options.speed,
    )
    run = offer(cook(recipe, options.seed), options.port, options.model, seed=options.seed)
    show(run)
    if options.records:
        options.records.write_bytes(b"".join(msgspec.json.encode(request) + b"\n" for request in run.requests))


if __name__ == "__main__":
    main()
