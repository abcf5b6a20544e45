"""What the GPU backend does on this machine, section by section, and how far that is from the device's limits.

    python benchmarks/gpu_suite.py --list
    python benchmarks/gpu_suite.py --only first --out results/   # environment, doctor, ceilings, curves
    python benchmarks/gpu_suite.py --only serving-llama --out results/
    python benchmarks/gpu_suite.py --smoke --out /tmp/smoke      # no GPU: the fake backend and tiny shapes

Every section runs in a process of its own and writes each figure as soon as it has it: a section that fails, hangs or
is killed keeps what it measured, is recorded as failed, and the next one runs. One JSON file and one PNG per group.
`--out` defaults to $OUT, then to benchmarks/results/gpu. At the end every target is stated with its floor.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec
from gpu.sections import GROUP_LIMIT_S, GROUPS, SECTIONS, Section, choose, estimate_s
from gpu.setting import FAKE, Setting, full_setting, smoke_setting
from gpu.shapes import FULL, TINY, make_shapes
from gpu.sheet import GroupFile, SectionResult, Sheet, put_section, read_group, write_group
from gpu.targets import judge, verdict_lines
from machine import describe_machine
from msgspec.structs import replace

HERE = Path(__file__).parent
PR_SET_PDEATHSIG = 1
GRACE_S = 25.0  # for a section that was told to stop: its servers leave nothing behind


def main() -> int:
    options = parse_options()
    try:
        sections = choose(options.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list or options.estimate:
        show_list(sections, with_sum=options.estimate)
        return 0
    if options.section:
        return run_here(options)
    if options.draw:
        return conclude(options.out)
    if not options.smoke and not has_gpu():
        print("no GPU here: nothing was measured (--smoke runs the suite on the fake backend)", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    # A section's daemons die with the suite: SIGTERM must unwind like Ctrl-C.
    signal.signal(signal.SIGTERM, _leave)
    with tempfile.TemporaryDirectory(prefix="colocate-suite-") as directory:
        models = Path(directory) / "models"
        make_shapes(models, TINY if options.smoke else FULL)
        outcomes = run_all(sections, options, models)
    conclude(options.out)
    return 0 if all(outcome == "done" for outcome in outcomes) else 1


def conclude(out: Path) -> int:
    """Pictures and verdicts of whatever lies in the directory."""
    draw(out)
    groups = [read_group(path) for path in sorted(out.glob("*.json")) if is_group(path)]
    print()
    if not all(group.is_real for group in groups):
        print("some of this is of the fake backend: no figure, and no verdict, means anything")
    print("\n".join(verdict_lines(judge(groups))))
    return 0


def run_all(sections: Sequence[Section], options: argparse.Namespace, models: Path) -> list[str]:
    """One after the other until the time is up; the outcome of each."""
    until_s = time.monotonic() + options.limit
    for group in dict.fromkeys(section.group for section in sections):
        begin_group(group, options)
    outcomes = []
    for section in sections:
        path = options.out / f"{section.group}.json"
        left_s = until_s - time.monotonic()
        if left_s < 5:
            result = SectionResult("skipped", error=f"the {options.limit:g} s of this run were over")
        else:
            print(f"\n== {section.name}: {section.about}", flush=True)
            result = run_section(section, options, models, path, min(left_s, section.seconds * 2 + 30))
        put_section(path, section.name, result)
        outcomes.append(result.outcome)
        print(f"== {section.name}: {result.outcome} in {result.seconds:.1f} s", flush=True)
        if result.error:
            print(result.error[-3000:], flush=True)
    return outcomes


def begin_group(group: str, options: argparse.Namespace) -> None:
    """Sections measured before stay: a group may be run in parts."""
    path = options.out / f"{group}.json"
    known = read_group(path).sections if path.exists() and not options.smoke else {}
    command = "python benchmarks/gpu_suite.py " + shlex.join(sys.argv[1:])
    write_group(path, GroupFile(group, not options.smoke, command, describe_machine(), known))


def run_section(
    section: Section, options: argparse.Namespace, models: Path, path: Path, limit_s: float
) -> SectionResult:
    """In a process group of its own, which is gone when this returns."""
    put_section(path, section.name, SectionResult("running"))
    words = ["--section", section.name, "--into", str(path), "--models", str(models)]
    words += [*(["--smoke"] if options.smoke else []), f"--serve={options.serve}"]
    words += [f"--rates={','.join(map(str, options.rates))}", f"--loads={','.join(options.loads)}"]
    words += [f"--profile={options.profile.absolute()}"] if options.profile else []
    # Spinning threads of one process would take the cores of the other seven.
    smoke = {FAKE: "1", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    environment = {**os.environ, **(smoke if options.smoke else {})}
    started_s = time.monotonic()
    child = subprocess.Popen([sys.executable, __file__, *words], start_new_session=True, env=environment)
    killed = ""
    try:
        child.wait(limit_s)
    except subprocess.TimeoutExpired:
        killed = f"killed after {limit_s:.0f} s"
    finally:
        stop(child)
    seconds = time.monotonic() - started_s
    left = read_group(path).sections[section.name]
    if killed:
        return replace(left, outcome="killed", seconds=seconds, error=killed)
    if left.outcome == "running":  # it never came to say how it ended
        return replace(left, outcome="failed", seconds=seconds, error=f"the process ended with {child.returncode}")
    return replace(left, seconds=seconds)


def stop(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the section, then whatever is left of its group is killed."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_here(options: argparse.Namespace) -> int:
    """The child's side: one section, whose end is on its page before this process ends."""
    signal.signal(signal.SIGTERM, _leave)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # a suite that is killed takes its section along
    section = next(section for section in SECTIONS if section.name == options.section)
    sheet = Sheet(options.into, section.name)
    try:
        section.run(make_setting(options), sheet)
    except Exception:
        put_section(
            options.into, section.name, SectionResult("failed", data=dict(sheet.data), error=traceback.format_exc())
        )
        return 1
    put_section(options.into, section.name, SectionResult("done", data=dict(sheet.data)))
    return 0


def make_setting(options: argparse.Namespace) -> Setting:
    make = smoke_setting if options.smoke else full_setting
    setting = make(options.models, options.into.parent, tuple(shlex.split(options.serve)))
    named = {"rates": options.rates, "loads": options.loads, "profile": options.profile}
    return dataclasses.replace(setting, **{name: value for name, value in named.items() if value})


def _leave(signum: int, _frame: object) -> None:
    raise SystemExit(128 + signum)


def has_gpu() -> bool:
    """By NVML, which makes no CUDA context: one outside MPS would take turns with everything under it."""
    from colocate.device.gpu_probe import probe_gpu

    return bool(probe_gpu().names)


def is_group(path: Path) -> bool:
    try:
        read_group(path)
    except msgspec.DecodeError:
        return False
    return True


def draw(out: Path) -> None:
    """A picture per group, of whatever its sections have drawn; a section that cannot be drawn costs only its own."""
    from gpu.picture import draw_group

    for group in GROUPS:
        path = out / f"{group}.json"
        if path.exists():
            draw_group(read_group(path), out / f"{group}.png")


def show_list(sections: Sequence[Section], *, with_sum: bool) -> None:
    for section in sections:
        print(f"{section.group:14} {section.name:14} {section.seconds:4.0f} s  {section.about}")
    if with_sum:
        for group in dict.fromkeys(section.group for section in sections):
            print(f"{group:14} {estimate_s([each for each in sections if each.group == group]):19.0f} s")
        print(f"{'all':14} {estimate_s(sections):19.0f} s")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in _words(text))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_words, default=(), help="sections or groups, by commas")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or HERE / "results" / "gpu"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--estimate", action="store_true", help="how long it takes on a real device")
    parser.add_argument(
        "--smoke", action="store_true", help="the fake backend and tiny shapes: no figure means anything"
    )
    parser.add_argument(
        "--draw", action="store_true", help="measure nothing: pictures and verdicts of what --out holds"
    )
    parser.add_argument("--limit", type=float, default=GROUP_LIMIT_S, help="seconds; what is not begun then is skipped")
    parser.add_argument("--serve", default="", help="more flags for every `colocate serve`, such as --single-process")
    parser.add_argument("--rates", type=_numbers, default=(), help="requests per second of end-to-end loads, by commas")
    parser.add_argument("--loads", type=_words, default=(), help="chat, azure-conv, azure-code, mooncake, by commas")
    parser.add_argument("--profile", type=Path, help="of `colocate profile`, for policies that predict")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
