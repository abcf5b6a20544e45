"""The `colocate` command. Nothing here imports torch: `--help` and the emulated device start at once."""

from __future__ import annotations

import sys

from colocate.cli.app import app
from colocate.errors import ConfigError

EXIT_OPERATOR_ERROR = 2


def main() -> None:
    """Entry point. Exit codes: 0 clean, 1 gave up after a crash loop or a failed check, 2 something the operator can
    mend, which is then named without a traceback."""
    try:
        app(prog_name="colocate")
    except ConfigError as error:
        print(f"colocate: {error.where}: {error.problem}", file=sys.stderr)
        if error.remedy:
            print(f"  to mend it: {error.remedy}", file=sys.stderr)
        sys.exit(EXIT_OPERATOR_ERROR)
