"""The SLO classes in force, and which one a request falls under."""

from __future__ import annotations

from colocate.messages.client import Submit
from colocate.messages.slo import NO_SLO, SloClass


class SloBook:
    """Owned by the engine. Requests keep the targets they were admitted with."""

    def __init__(self, classes: tuple[SloClass, ...], default: str) -> None:
        self.classes = {each.name: each for each in classes}
        self._default = default if default in self.classes else next(iter(self.classes), "")

    def of(self, message: Submit) -> SloClass:
        """The request's class with its own overrides. The frontend refuses unknown names; here they are the default."""
        slo = self.classes.get(message.slo_class) or self.classes.get(self._default, NO_SLO)
        return slo.with_targets(message.ttft_s, message.tpot_s, message.itl_s)

    def change(self, changed: list[SloClass]) -> str:
        """Replace targets of existing classes. Returns what is wrong, empty where it was done; all or nothing."""
        for each in changed:
            if each.name not in self.classes:
                return f"there is no class {each.name!r}; there are: {', '.join(self.classes) or 'none'}"
            for what, target_s in (
                ("ttft", each.ttft_s),
                ("tpot", each.tpot_s),
                ("itl", each.itl_s),
                ("ttft_per_token", each.ttft_per_token_s),
            ):
                if target_s is not None and target_s <= 0:
                    return f"{each.name}: {what} must be above 0, not {target_s:g} s"
        for each in changed:
            self.classes[each.name] = each
        return ""
