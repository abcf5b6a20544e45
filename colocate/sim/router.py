"""Which replica a request goes to. A router sees what a proxy sees: prompts, and what was sent and is not back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from colocate.errors import ConfigError
from colocate.sim.run import Choice
from colocate.workload.prompts import Piece, PromptLayout

RouterName = Literal["round-robin", "least-loaded", "prefix"]
ROUTERS: tuple[str, ...] = get_args(RouterName)

# The prefix router follows a prefix only where it is this share of the prompt: instructions that everybody shares would
# else send everybody to one replica.
MIN_MATCH = 0.5
# It gives up a cached prefix where its replica has this many requests more in flight than the emptiest.
MAX_IMBALANCE = 16


def round_robin(num_replicas: int) -> Choice:
    """Request i to replica i mod n. Static: needs no knowledge of the replicas."""
    return lambda index, in_flight: index % num_replicas


def least_loaded(index: int, in_flight: Sequence[int]) -> int:
    """The replica with the fewest requests in flight; of equals the first."""
    return min(range(len(in_flight)), key=in_flight.__getitem__)


class PrefixRouter:
    """The replica that has seen most of this prompt, unless it is too busy or that is little; else the least loaded.

    It remembers every prefix it sent: the replicas' evictions are unknown to it, as they are to a proxy.
    """

    def __init__(self, layouts: Sequence[PromptLayout]) -> None:
        self._layouts = layouts
        self._nodes: dict[tuple[int, Piece], int] = {}  # (parent, piece) -> node; the root is 0
        self._seen: list[set[int]] = [set()]  # by node: replicas that were sent it

    def choose(self, index: int, in_flight: Sequence[int]) -> int:
        layout = self._layouts[index]
        replica = self._best(layout.pieces, in_flight)
        node = 0
        for piece in (*layout.pieces, (layout.answer, 0)):
            child = self._nodes.setdefault((node, piece), len(self._seen))
            if child == len(self._seen):
                self._seen.append(set())
            self._seen[child].add(replica)
            node = child
        return replica

    def _best(self, pieces: Sequence[Piece], in_flight: Sequence[int]) -> int:
        emptiest = least_loaded(0, in_flight)
        limit = in_flight[emptiest] + MAX_IMBALANCE
        enough = MIN_MATCH * sum(num_tokens for _, num_tokens in pieces)
        node, best, num_matched = 0, emptiest, 0
        for piece in pieces:
            child = self._nodes.get((node, piece))
            able = [] if child is None else [each for each in sorted(self._seen[child]) if in_flight[each] <= limit]
            if child is None or not able:
                break
            best = min(able, key=in_flight.__getitem__)
            num_matched += piece[1]
            node = child
        return best if num_matched >= enough else emptiest


def choose_router(name: str, num_replicas: int, layouts: Sequence[PromptLayout]) -> Choice:
    """Raises ConfigError for a name that is no router."""
    if name == "round-robin":
        return round_robin(num_replicas)
    if name == "least-loaded":
        return least_loaded
    if name == "prefix":
        return PrefixRouter(layouts).choose
    raise ConfigError("router", f"no router is named {name!r}", f"choose one of: {', '.join(ROUTERS)}")
