"""CUDA graphs of decode steps: one for each armed share and bucket of rows.

A graph's kernels stay in the partition of the lane that captured it, so every share needs its own. A step runs in the
smallest bucket that holds its rows; the entries left over point at the padding slot, which every kernel skips.

At the first start all are captured before the worker is ready, the largest first: if memory is short, it is the small
steps, whose launches weigh most, that run eagerly, and what graphs there are share one pool per lane that the largest
one sized. A worker that is restarted serves at once and captures while it serves: a step that ran eagerly leaves its
graph behind, at most one in `_EVERY_STEPS` steps. That step's successor then waits for the capture (tens of
milliseconds: a pass of the host over all launches), which is why it is not done for each of them. Capturing in pauses
would cost nobody anything, but a restart under load has none.

A capture that the driver refuses, for want of memory or because something in a step cannot be captured, is the last:
what is not captured by then runs eagerly, which is slower and not wrong. A failed capture may leave torch's pool of
that lane unusable, so none is tried again.

Memory is read from the device around each capture, so what another process takes meanwhile is seen as well: the worker
of the other phase starts at the same time and takes gigabytes. A step allocates nothing while it is captured, and its
few hundred nodes take some MiB at most, so a growth beyond `_MOST_BYTES` is another's and counted as that much.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from colocate.device.cuda.device_lost import is_device_lost
from colocate.device.cuda.driver import CudaError
from colocate.device.cuda.lane import Graph, Lane
from colocate.errors import InvariantError

_EVERY_STEPS = 16
_MOST_BYTES = 32 << 20
_log = logging.getLogger(__name__)


def buckets_for(max_num_seqs: int) -> tuple[int, ...]:
    """1, 2, 4, then multiples of 8, up to and with `max_num_seqs`."""
    sizes = [size for size in (1, 2, 4, *range(8, max_num_seqs, 8)) if size < max_num_seqs]
    return (*sizes, max_num_seqs)


class DecodeGraphs:
    """Owned by one worker. `step(bucket, num_sms)` launches one decode step over the first `bucket` entries of the
    index on the current stream."""

    def __init__(
        self,
        step: Callable[[int, int], None],
        max_num_seqs: int,
        limit_bytes: int,
        used_bytes: Callable[[], int],
    ) -> None:
        """`limit_bytes` 0: everything runs eagerly. `used_bytes` reads the device's memory in use."""
        self._step = step
        self._buckets = buckets_for(max_num_seqs)
        self._limit_bytes = limit_bytes
        self._used_bytes = used_bytes
        self._graphs: dict[tuple[Lane, int], Graph] = {}
        self._captures_while_serving = False
        self._eager_since_capture = 0
        self.num_bytes = 0

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def bucket_of(self, num_rows: int) -> int:
        for bucket in self._buckets:
            if bucket >= num_rows:
                return bucket
        raise InvariantError(f"a step of {num_rows} rows, room for {self._buckets[-1]}")

    def run(self, lane: Lane, bucket: int) -> None:
        """One step, inside the lane's `use()`."""
        graph = self._graphs.get((lane, bucket))
        if graph is not None:
            graph.replay()
            return
        self._step(bucket, lane.num_sms)
        self._eager_since_capture += 1
        if self._captures_while_serving and self._eager_since_capture >= _EVERY_STEPS:
            self._capture(lane, bucket)

    def warm(self, lanes: Sequence[Lane]) -> None:
        """Run every step once that may be captured or run eagerly, over padding: kernels are compiled and libraries
        initialised for it, and no row, block or token is touched."""
        for lane in lanes:
            with lane.use():
                for bucket in reversed(self._buckets):
                    self._step(bucket, lane.num_sms)
            lane.mark().wait()

    def capture_all(self, lanes: Sequence[Lane], announce: Callable[[str], object]) -> None:
        """Everything warm is captured, until the bound is reached. `announce` hears "34/112"."""
        wanted = [(lane, bucket) for bucket in reversed(self._buckets) for lane in lanes]
        for done, (lane, bucket) in enumerate(wanted):
            if not self._limit_bytes or self.num_bytes >= self._limit_bytes:
                announce(f"{done}/{len(wanted)}, the rest runs eagerly")
                return
            if not self._capture(lane, bucket):
                announce(f"{done}/{len(wanted)}, a capture failed, the rest runs eagerly")
                return
            announce(f"{done + 1}/{len(wanted)}")

    def capture_while_serving(self) -> None:
        """From here on, instead of `capture_all`."""
        self._captures_while_serving = self._limit_bytes > 0

    def _capture(self, lane: Lane, bucket: int) -> bool:
        """False where it was refused. Raises CudaError where the device is lost."""
        before = self._used_bytes()
        try:
            graph = lane.capture(lambda: self._step(bucket, lane.num_sms))
        except CudaError as error:
            if is_device_lost(error):
                raise
            _log.warning("decode steps of %d rows on %d SMs run eagerly: %s", bucket, lane.num_sms, error)
            self._captures_while_serving = False
            return False
        self._graphs[lane, bucket] = graph
        self._eager_since_capture = 0
        self.num_bytes += min(max(0, self._used_bytes() - before), _MOST_BYTES)
        if self.num_bytes >= self._limit_bytes:
            self._captures_while_serving = False
        return True
