"""Stop strings, matched on text as it grows, whatever the token boundaries are."""

from __future__ import annotations


class StopMatcher:
    """Holds back the shortest tail that may still become a stop string; owned by one choice."""

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: tuple[str, ...], include_stop: bool) -> None:
        self._stops = stops
        self._include = include_stop
        self._held = ""

    def feed(self, new_text: str) -> tuple[str, bool]:
        """The text that is safe to send, and whether a stop string ended it. After True, feed no more."""
        text = self._held + new_text
        hits = [(position, stop) for stop in self._stops if (position := text.find(stop)) >= 0]
        if hits:
            # the stop string whose last character arrived first; of those, the one that began first
            position, stop = min(hits, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            self._held = ""
            return text[: position + len(stop) if self._include else position], True
        keep = max((self._longest_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """The end came otherwise: what was held back is text after all."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _longest_overlap(text: str, stop: str) -> int:
        """Length of the longest proper prefix of `stop` that `text` ends with."""
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
