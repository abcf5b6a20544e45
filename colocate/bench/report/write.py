"""Put a report where it was asked for: one file, or a folder with one file per format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from colocate.bench.report.html import to_html
from colocate.bench.report.markdown import to_markdown
from colocate.bench.report.model import ReportModel
from colocate.errors import ConfigError

FORMATS = ("html", "md", "json")


def to_json(model: ReportModel) -> str:
    """The model itself."""
    return msgspec.json.format(msgspec.json.encode(model), indent=1).decode() + "\n"


RENDERERS: dict[str, Callable[[ReportModel], str]] = {"html": to_html, "md": to_markdown, "json": to_json}


def choose_files(out: Path | None, formats: Sequence[str]) -> dict[str, Path]:
    """Which file each format goes to. A path that ends in a format's name is one file of that format; any other is a
    folder for report.html, report.md and report.json. Raises ConfigError where the two contradict each other."""
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(
                "--format", f"there is no format {name!r}", f"any of {', '.join(FORMATS)}, with commas between"
            )
    suffix = out.suffix.lower().lstrip(".") if out is not None and not out.is_dir() else ""
    if out is not None and suffix in FORMATS:
        if formats and tuple(formats) != (suffix,):
            raise ConfigError("--out", f"{out} is one {suffix} file, --format asks for {', '.join(formats)}",
                              "name a folder, or drop --format")  # fmt: skip
        return {suffix: out}
    folder = Path("report") if out is None else out
    return {name: folder / f"report.{name}" for name in formats or FORMATS}


def write_report(model: ReportModel, files: dict[str, Path]) -> None:
    """Each file whole or not at all. Raises ConfigError where one cannot be written."""
    for name, path in files.items():
        text = RENDERERS[name](model)
        unfinished = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        except OSError as error:
            remove(unfinished)
            problem = f"cannot be written: {error.strerror}"
            raise ConfigError(str(path), problem, "choose another place with --out") from None


def remove(path: Path) -> None:
    """What was begun and could not be finished."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # where its folder could not be made, there is nothing to remove
