"""kill -9 of each worker under load: seconds until its phase works again, and until it is as fast as before.

Streams are watched from outside. After decode's death: the longest gap between tokens of a running stream. After
prefill's: the first token of a request sent at that moment. `as_before_s`: until gaps are back within half again of
what they were, which is when captured graphs replace eager steps.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from server import Server
from stream_client import StreamRecord, percentile, stream

from gpu.live import NAME, serving
from gpu.setting import Setting
from gpu.sheet import Sheet
from gpu.targets import target_rows

_NUM_STREAMS = 8
_WINDOW = 5  # consecutive gaps that must be back to normal


def run(setting: Setting, sheet: Sheet) -> None:
    worst = 0.0
    for role in ("decode", "prefill"):
        with serving(setting, setting.model) as server:
            row = asyncio.run(Drill(setting, server, role).run())
            row["restarts"] = restarts(server, role)
        sheet.put(role, row)
        print(f"{role}: {row}")
        worst = max(worst, row["back_s"])
        sheet.put("targets", target_rows({"restart": (worst, 0.0)}))


def restarts(server: Server, role: str) -> int:
    return next(worker["restarts"] for worker in server.state()["workers"] if worker["role"] == role)


class Drill:
    """One death. `before_s` of load, the kill, and load until everything has ended."""

    def __init__(self, setting: Setting, server: Server, role: str) -> None:
        self._setting = setting
        self._server = server
        self._role = role
        self._num_tokens = 40 if setting.is_smoke else 2000
        self._num_streams = 2 if setting.is_smoke else _NUM_STREAMS
        self._prompt_tokens = 16 if setting.is_smoke else 512

    async def run(self) -> dict[str, Any]:
        streams = [StreamRecord(0.0) for _ in range(self._num_streams)]
        tasks = [asyncio.create_task(self._stream(each, index)) for index, each in enumerate(streams)]
        await self._until_going(streams, tasks)
        state = await asyncio.to_thread(self._server.state)
        pid = next(worker["pid"] for worker in state["workers"] if worker["role"] == self._role)
        killed_s = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        fresh = StreamRecord(0.0)
        await asyncio.gather(*tasks, self._stream(fresh, 99))
        failed = [each.error for each in (*streams, fresh) if each.error]
        if failed or not fresh.token_s:
            raise RuntimeError(f"after the death of {self._role} a stream failed: {failed or 'no first token'}")
        before = [gap for each in streams for gap in each.gaps_s(end_s=killed_s)]
        found: dict[str, Any] = {"tokens_before": sum(at_s < killed_s for each in streams for at_s in each.token_s)}
        if self._role == "prefill":
            return found | {"back_s": fresh.token_s[0] - killed_s}
        after = [
            (later, later - sooner) for each in streams for sooner, later in _pairs(each.token_s) if later > killed_s
        ]
        back_s = max((first_after(each.token_s, killed_s) for each in streams), default=0.0) - killed_s
        normal = percentile(before, 50)
        return found | {
            "gap_before_s": normal,
            "back_s": back_s,
            "as_before_s": settled_s(sorted(after), normal, killed_s),
        }

    async def _stream(self, record: StreamRecord, seed: int) -> None:
        prompt = [300 + (seed * 131 + index * 7) % 1500 for index in range(self._prompt_tokens)]
        await stream(self._server.port, NAME, prompt, self._num_tokens, record)

    async def _until_going(self, streams: Sequence[StreamRecord], tasks: Sequence[asyncio.Task[None]]) -> None:
        """Every stream has some tokens. Raises RuntimeError where one ended before."""
        while any(len(each.token_s) < 5 for each in streams):
            if any(task.done() for task in tasks):
                raise RuntimeError(f"a stream ended before the kill: {[each.error for each in streams]}")
            await asyncio.sleep(0.01)


def first_after(token_s: Sequence[float], moment_s: float) -> float:
    """The second token after it: the first one may have been on its way. Infinite where there is none."""
    later = [at_s for at_s in token_s if at_s > moment_s]
    return later[1] if len(later) > 1 else float("inf")


def settled_s(gaps: Sequence[tuple[float, float]], normal: float, killed_s: float) -> float | None:
    """Seconds from the kill until that many gaps in a row are within half again of normal, after the longest one; None
    where they never are. `gaps`: (when it ended, how long it was), in order of time."""
    if not gaps:
        return None
    longest = max(range(len(gaps)), key=lambda place: gaps[place][1])
    run = 0
    for ended_s, gap in gaps[longest + 1 :]:
        run = run + 1 if gap <= 1.5 * normal else 0
        if run == _WINDOW:
            return ended_s - killed_s
    return None


def _pairs(values: Sequence[float]) -> list[tuple[float, float]]:
    return list(itertools.pairwise(values))
