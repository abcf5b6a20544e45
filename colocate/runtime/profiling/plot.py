"""A profile as a picture: latency against units, contention, predicted against measured.

matplotlib is not needed to serve: it comes with `pip install colocate[bench]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from colocate.config.profile import DeviceProfile, Phase
from colocate.core.latency import LatencyModel
from colocate.errors import ConfigError
from colocate.runtime.profiling.fit import predict
from colocate.runtime.profiling.show import curves_of, shares_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: dict[Phase, str] = {"prefill": "#3b6fb6", "decode": "#c8553d"}
_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Refuse before measuring what could not be drawn after it."""
    if path.suffix not in _SUFFIXES:
        raise ConfigError("plot", f"{path} is no picture's name", f"end it in one of {', '.join(_SUFFIXES)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ConfigError("plot", "matplotlib is not installed", "pip install 'colocate[bench]'") from None


def plot_profile(profile: DeviceProfile, path: Path) -> None:
    """PNG, SVG or PDF, by the suffix. Raises ConfigError where it cannot be written."""
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    _draw_latency(axes[0][0], profile, "prefill")
    _draw_latency(axes[0][1], profile, "decode")
    _draw_contention(axes[1][0], profile)
    _draw_errors(axes[1][1], profile)
    measured = "measured" if profile.is_measured else "a prior, not measured"
    figure.suptitle(f"{profile.model or 'any model'} on {profile.name} ({profile.units} units), {measured}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise ConfigError("plot", f"{path} cannot be written: {error.strerror}", "name a writable file") from None


def _draw_latency(axes: Axes, profile: DeviceProfile, phase: Phase) -> None:
    units = shares_of(profile)
    curves = [curve for curve in curves_of(profile) if curve.phase == phase]
    for index, curve in enumerate(curves):
        shade = 0.35 + 0.65 * (index + 1) / len(curves)
        axes.plot(units, curve.milliseconds, marker="o", ms=3, color=_COLOURS[phase], alpha=shade)
        axes.annotate(
            curve.label, (units[0], curve.milliseconds[0]), fontsize=8, xytext=(4, 4), textcoords="offset points"
        )
        knee_ms = curve.milliseconds[units.index(curve.knee_units)]
        axes.plot([curve.knee_units], [knee_ms], marker="o", ms=10, mfc="none", color=_COLOURS[phase], ls="none")
    work = "new tokens of one forward" if phase == "prefill" else "rows x context of one step"
    axes.set_title(f"{phase}: {work}; ring: the knee", fontsize=10)
    axes.set_xlabel("units")
    axes.set_ylabel("milliseconds")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.margins(x=0.1)
    axes.grid(alpha=0.3)
    if len(units) <= 8:
        axes.set_xticks(units)


def _draw_contention(axes: Axes, profile: DeviceProfile) -> None:
    axes.set_title("contention: times slower beside the other phase", fontsize=10)
    pairs = profile.contention
    if not pairs:
        axes.text(0.5, 0.5, "none given", ha="center")
        axes.set_axis_off()
        return
    names = [
        f"p{pair.prefill_units} d{pair.decode_units}"
        + ("\nshared" if pair.prefill_units + pair.decode_units > profile.units else "")
        for pair in pairs
    ]
    factors = [[pair.prefill for pair in pairs], [pair.decode for pair in pairs]]
    strongest = max(2.0, *factors[0], *factors[1])  # a tenth more must not look like the end of the scale
    image = axes.imshow(factors, cmap="YlOrRd", vmin=1.0, vmax=1.3 * strongest, aspect="auto")
    axes.figure.colorbar(image, ax=axes)
    axes.set_xticks(range(len(pairs)), names, fontsize=8, rotation=90 if len(pairs) > 8 else 0)
    axes.set_yticks((0, 1), ("prefill", "decode"))
    for row, values in enumerate(factors):
        for column, value in enumerate(values):
            size = 9 if len(pairs) <= 8 else 6
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=size)


def _draw_errors(axes: Axes, profile: DeviceProfile) -> None:
    axes.set_title("held-out states: predicted against measured, band 15%", fontsize=10)
    held_out = [sample for sample in profile.samples if sample.held_out]
    if not held_out:
        axes.text(0.5, 0.5, "no samples in this profile", ha="center")
        axes.set_axis_off()
        return
    model = LatencyModel(profile)
    for phase, colour in _COLOURS.items():
        for contended, marker in ((False, "o"), (True, "x")):
            chosen = [s for s in held_out if s.phase == phase and (s.peer_units > 0) == contended]
            measured = [1e3 * sample.seconds for sample in chosen]
            predicted = [1e3 * predict(model, sample) for sample in chosen]
            label = f"{phase}, {'contended' if contended else 'alone'}"
            axes.plot(measured, predicted, marker, ms=4, color=colour, alpha=0.7, label=label)
    low = 1e3 * min(sample.seconds for sample in held_out)
    high = 1e3 * max(sample.seconds for sample in held_out)
    axes.plot([low, high], [low, high], color="#555", lw=1)
    axes.fill_between([low, high], [0.85 * low, 0.85 * high], [1.15 * low, 1.15 * high], color="#999", alpha=0.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("measured ms")
    axes.set_ylabel("predicted ms")
    axes.legend(fontsize=8)
