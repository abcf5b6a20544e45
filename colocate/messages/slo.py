"""Service-level objectives as messages carry them: what a class of requests is promised."""

from __future__ import annotations

from colocate.config.slo import SloClass

__all__ = ["NO_SLO", "SloClass"]

NO_SLO = SloClass("none")
