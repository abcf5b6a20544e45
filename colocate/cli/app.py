"""The whole command line: a module of `commands` adds its commands when it is imported, in the order of `--help`."""

from __future__ import annotations

# isort: off
from colocate.cli.root import app
from colocate.cli.commands import serving as _serving  # noqa: F401
from colocate.cli.commands import predicting as _predicting  # noqa: F401
from colocate.cli.commands import measuring as _measuring  # noqa: F401
from colocate.cli.commands import comparing as _comparing  # noqa: F401
from colocate.cli.workload import app as workload_app
# isort: on

__all__ = ["app"]

app.add_typer(workload_app, name="workload")


@app.command(help="Print the version.")
def version() -> None:
    from colocate import __version__

    print(__version__)
