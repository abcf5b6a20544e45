"""Fetch the wheels that a machine without a package registry lacks, for its Python and platform.

    python benchmarks/gpu/wheels.py wheels/ --python 3.12 --have torch triton numpy pydantic
    pip install --no-index --no-deps wheels/*.whl        # there

Names are the dependencies of this package and what they need at run time; versions are those of constraints.txt. What
the machine has already (`--have`) is left out: torch alone is larger than everything else together.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What the direct dependencies import in turn and a bare machine may lack; checked by installing into an empty venv.
TRANSITIVE = (
    "annotated-doc", "annotated-types", "anyio", "certifi", "click", "cuda-bindings", "cuda-pathfinder", "filelock",
    "fsspec", "h11", "hf-xet", "httpcore", "httpx", "idna", "MarkupSafe", "markdown-it-py", "mdurl", "packaging",
    "pydantic_core", "Pygments", "requests", "charset-normalizer", "shellingham", "starlette", "tqdm",
    "typing-inspection", "typing_extensions", "urllib3",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_5_x86_64")
EXTRAS = ("cuda",)


def wanted(extras: Sequence[str] = EXTRAS) -> list[str]:
    """Names of distributions, direct ones first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]
    names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in lines]
    return list({canonical(name): name for name in (*names, *TRANSITIVE)}.values())


def pinned() -> dict[str, str]:
    """Canonical name -> `name==version` of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonical(line.split("==")[0]): line.strip() for line in lines if "==" in line}


def canonical(name: str) -> str:
    """As package indexes compare names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def download_arguments(names: Sequence[str], python: str, platforms: Sequence[str], target: Path) -> list[str]:
    """Arguments of pip. Names without a pin are fetched in their newest version."""
    pins = pinned()
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for platform in platforms:
        arguments += ["--platform", platform]
    return [*arguments, "--dest", str(target), *(pins.get(canonical(name), name) for name in names)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--platform", nargs="*", default=list(PLATFORMS))
    parser.add_argument("--have", nargs="*", default=[], help="what is installed there")
    parser.add_argument("--only", nargs="*", help="these and no others")
    parser.add_argument("--print", action="store_true", help="show the command and fetch nothing")
    options = parser.parse_args()
    have = {canonical(name) for name in options.have}
    names = [name for name in options.only or wanted() if canonical(name) not in have]
    command = [
        sys.executable,
        "-m",
        "pip",
        *download_arguments(names, options.python, options.platform, options.target),
    ]
    if options.print:
        print(" ".join(command))
        return 0
    done = subprocess.run(command, check=False).returncode
    wheels = list(options.target.glob("*.whl"))
    print(f"{len(wheels)} wheels, {sum(path.stat().st_size for path in wheels) / 1e6:.1f} MB in {options.target}")
    return done


if __name__ == "__main__":
    sys.exit(main())
