"""What the suite can run, in the order it is worth running, and what each part of it is expected to take."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from gpu.setting import Setting
from gpu.sheet import Sheet

GROUP_LIMIT_S = 540.0


@dataclass(frozen=True, slots=True)
class Section:
    """`module` is a module of this package with `run(setting, sheet)`, and `draw(figure, data)` where there is a
    picture. `seconds` is the estimate on a real device; twice that and it is killed."""

    name: str
    group: str
    module: str
    seconds: float
    about: str
    argument: str = ""  # of `run`, where one module serves several sections

    def load(self) -> ModuleType:
        return importlib.import_module(f"gpu.{self.module}")

    def run(self, setting: Setting, sheet: Sheet) -> None:
        runner: Callable[..., None] = self.load().run
        if self.argument:
            runner(setting, sheet, self.argument)
        else:
            runner(setting, sheet)


SECTIONS = (
    Section("environment", "first", "environment", 10, "versions, driver, clocks, MPS binaries, limits"),
    Section("doctor", "first", "doctor", 60, "colocate doctor: what co-location rests on, proven"),
    Section("ceilings", "first", "ceilings", 25, "copy bandwidth and bf16 matrix rate, per share too"),
    Section("decode", "first", "decode_curve", 70, "decode step by share, batch and context, from graph replays"),
    Section("prefill", "first", "prefill_curve", 50, "prefill forward by share and length"),
    Section("switching", "partition", "switching", 60, "1,000 plan switches under load: host and device"),
    Section("memory", "partition", "plan_memory", 90, "what 8 plans add; one copy of weights and KV"),
    Section("contention", "partition", "contention", 330, "both phases at once on every pair of shares, and a profile"),
    Section("attention", "kernels", "attention_table", 150, "prefill and decode attention: ours, FlashInfer, torch"),
    Section("launches", "kernels", "launch_sweep", 240, "launch parameters of the two attention kernels"),
    Section("gemm", "kernels", "gemm_table", 60, "the matrix products of a layer, per share"),
    Section("hand-over", "live", "hand_over", 90, "prefill's last slice to the first step of the row, live"),
    Section("restart", "live", "restart", 150, "kill -9 of each worker under load"),
    Section("serving-llama", "serving-llama", "serving", 520, "every policy, end to end, Llama-3.1-8B shape", "0"),
    Section("serving-qwen", "serving-qwen", "serving", 520, "the same, Qwen3-8B shape", "1"),
    Section("peers", "peers", "peers", 520, "vLLM and SGLang, where installed, with the same client"),
)  # fmt: skip
GROUPS = tuple(dict.fromkeys(section.group for section in SECTIONS))


def choose(words: Sequence[str]) -> list[Section]:
    """Sections by their names or their groups' names, in the order of the table. Raises ValueError naming a word that
    is neither."""
    names = {section.name for section in SECTIONS}
    for word in words:
        if word not in names and word not in GROUPS:
            raise ValueError(f"{word!r} is no section or group; choose among {', '.join([*GROUPS, *sorted(names)])}")
    return [section for section in SECTIONS if not words or section.name in words or section.group in words]


def estimate_s(sections: Sequence[Section]) -> float:
    return sum(section.seconds for section in sections)
