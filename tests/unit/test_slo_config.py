"""SLO classes as operators write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.config.load import load_config
from colocate.config.slo import SloClass, parse_slo_classes, slo_classes
from colocate.errors import ConfigError

INTERACTIVE = SloClass("interactive", ttft_s=0.3, tpot_s=0.05)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("interactive: ttft 300 ms, tpot 50 ms", (INTERACTIVE,)),
        ("interactive: ttft=300ms tpot=50ms", (INTERACTIVE,)),
        ("interactive: TTFT 0.3 s; tpot: .05s", (INTERACTIVE,)),
        ("batch: none", (SloClass("batch"),)),
        ("s: itl 100 ms", (SloClass("s", itl_s=0.1),)),
        ("interactive: ttft 300 ms, tpot 50 ms, itl 100 ms", (SloClass("interactive", 0.3, 0.05, itl_s=0.1),)),
        ("s: ITL=.1s; tpot=50ms, itl-free: none", (SloClass("s", tpot_s=0.05, itl_s=0.1), SloClass("itl-free"))),
        ("p: ttft_per_token=1.5ms", (SloClass("p", ttft_per_token_s=0.0015),)),
        ("p: ttft 0.2s ttft-per-token 1.5ms", (SloClass("p", ttft_s=0.2, ttft_per_token_s=0.0015),)),
        ("interactive: ttft 300 ms, tpot 50 ms, batch: none", (INTERACTIVE, SloClass("batch"))),
    ],
)
def test_forms(text: str, parsed: tuple[SloClass, ...]) -> None:
    assert parse_slo_classes([text], "slo_class") == parsed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("interactive: ttfb 300 ms", "unknown measure 'ttfb', known are ttft, tpot, ttft_per_token, itl"),
        ("interactive: itl 0 ms", "must be above zero, 'itl 0 ms' is not"),
        ("interactive: itl 100", "'itl 100' needs a unit, ms or s"),
        ("interactive: itl 1 ms itl 2 ms", "itl is given twice"),
        ("itl: 5 ms", "has no class name"),
        ("interactive: ttft 0 ms", "must be above zero, 'ttft 0 ms' is not"),
        ("interactive: tpot -5 ms", "must be above zero, 'tpot -5 ms' is not"),
        ("interactive: ttft 300", "'ttft 300' needs a unit, ms or s"),
        ("interactive: ttft=300 tpot=5ms", "'ttft=300' needs a unit"),
        ("interactive: ttft 300 years", "needs a unit"),
        ("interactive: ttft 1e999 s", "is outside"),
        ("interactive: ttft 1e-9 ms", "is outside"),
        ("interactive: ttft nan ms", "cannot read 'ttft nan ms'"),
        ("interactive: ttft 3 ms ttft 4 ms", "ttft is given twice"),
        ("interactive: none, tpot 4 ms", "cannot read 'none'"),
        ("interactive: tpot 4 ms,", "cannot read ''"),
        ("interactive:", "cannot read ''"),
        ("a: none, a: none", "the class 'a' is defined twice"),
        ("two words: none", "'two words' is not a class name"),
        (": none", "'' is not a class name"),
        ("ttft 300 ms", "has no class name"),
        ("", "has no class name"),
    ],
)
def test_refusals_name_the_key_and_give_an_example_or_a_remedy(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_slo_classes([text], "--slo-class")
    assert refusal.value.where == "--slo-class" and says in refusal.value.problem
    assert "interactive: ttft 300 ms, tpot 50 ms" in refusal.value.remedy or "keep one" in refusal.value.remedy


_milliseconds = st.floats(0.001, 86_400_000).map(lambda value: float(f"{value:.6g}"))
_name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(
    lambda name: name not in ("ttft", "tpot", "ttft_per_token", "itl")
)
_class = st.builds(
    lambda name, *targets_ms: (name, dict(zip(("ttft", "tpot", "ttft_per_token", "itl"), targets_ms, strict=True))),
    _name, *(st.none() | _milliseconds for _ in range(4)),
)  # fmt: skip


@given(st.lists(_class, min_size=1, max_size=4, unique_by=lambda entry: entry[0]), st.data())
def test_what_is_written_is_read_back_in_every_form(
    classes: list[tuple[str, dict[str, float | None]]], data: st.DataObject
) -> None:
    texts, expected = [], []
    for name, targets in classes:
        given_ms = {measure: value for measure, value in targets.items() if value is not None}
        separator = data.draw(st.sampled_from([", ", " ", ";"]))
        mark = data.draw(st.sampled_from([" ", "=", ": "]))
        texts.append(f"{name}: " + (separator.join(f"{key}{mark}{ms!r}ms" for key, ms in given_ms.items()) or "none"))
        seconds = {f"{measure}_s": ms / 1000 for measure, ms in given_ms.items()}
        expected.append(SloClass(name, **seconds))
    assert parse_slo_classes(texts, "slo_class") == tuple(expected)
    assert parse_slo_classes([", ".join(texts)], "slo_class") == tuple(expected)


@given(st.text(alphabet="tfpoil:=,; 0123456789.-emsn\n", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        classes = parse_slo_classes([text], "slo_class")
    except ConfigError:
        return
    targets = [
        target for known in classes
        for target in (known.ttft_s, known.tpot_s, known.ttft_per_token_s, known.itl_s)
    ]  # fmt: skip
    assert classes and all(target is None or 0 < target <= 86_400 for target in targets)


@pytest.mark.parametrize(
    "yaml",
    [
        "slo_class: ['interactive: ttft 300 ms, tpot 50 ms', 'batch: none']",
        "slo-class:\n  - interactive: ttft 300 ms, tpot 50 ms\n  - batch: none",
        "slo-class:\n  interactive: ttft 300 ms, tpot 50 ms\n  batch: none",
        "slo-class:\n  interactive: {ttft: 300 ms, tpot: 50 ms}\n  batch:",
    ],
)
def test_files_may_use_lists_or_mappings(tmp_path: Path, yaml: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(yaml)
    assert slo_classes(load_config(path).scheduler) == (INTERACTIVE, SloClass("batch"))


def test_the_environment_splits_at_commas_and_means_the_same() -> None:
    environ = {"COLOCATE_SLO_CLASS": "interactive: ttft 300 ms, tpot 50 ms, batch: none"}
    assert slo_classes(load_config(None, environ).scheduler) == (INTERACTIVE, SloClass("batch"))


def test_a_bad_class_is_refused_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("slo-class: ['a: none', 'b: ttft 0 s']")
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert refusal.value.where == f"{path}: slo-class"
    with pytest.raises(ConfigError, match=r"--slo-class: .*unknown measure 'x'"):
        load_config(None, {}, {"slo_class": ["a: x 5 ms"]})


def test_the_default_class_must_be_defined() -> None:
    with pytest.raises(ConfigError, match=r"default_slo_class: there is no SLO class 'c' \(one of a, b\)"):
        load_config(None, {}, {"slo_class": ["a: none", "b: none"], "default_slo_class": "c"})
    with pytest.raises(ConfigError, match=r"define it with slo_class, for example `c: ttft 300 ms"):
        load_config(None, {}, {"default_slo_class": "c"})
    given = load_config(None, {}, {"slo_class": ["a: none", "b: none"], "default_slo_class": "b"})
    assert given.scheduler.default_slo_class == "b"


def test_every_guard_can_be_switched_off() -> None:
    assert load_config(None, {}, {"guards": ["none"]}).scheduler.guards == ()
    assert load_config(None, {"COLOCATE_GUARDS": "dwell,fallback"}).scheduler.guards == ("dwell", "fallback")
    with pytest.raises(ConfigError, match="is not one of hysteresis, dwell, decode-first, fallback, or none"):
        load_config(None, {}, {"guards": ["some"]})
    for words in (["none", "dwell"], ["dwell", "none"]):
        with pytest.raises(ConfigError, match="'none' is given beside 'dwell'") as refused:
            load_config(None, {}, {"guards": words})
        assert refused.value.where == "--guards" and refused.value.remedy


def test_a_request_s_own_first_token_target_is_the_whole_of_it() -> None:
    known = SloClass("p", ttft_s=0.2, tpot_s=0.05, ttft_per_token_s=0.001)
    assert known.ttft_target_s(100) == pytest.approx(0.3)
    own = known.with_targets(0.5, None, None)
    assert own.ttft_target_s(100) == 0.5 and own.tpot_s == 0.05
    assert known.with_targets(None, 0.01, None) == SloClass("p", 0.2, 0.01, 0.001)
    assert known.with_targets(None, None, 0.02) == SloClass("p", 0.2, 0.05, 0.001, 0.02)


@pytest.mark.parametrize(
    ("targets", "step_s"),
    [({}, None), ({"tpot_s": 0.05}, 0.05), ({"itl_s": 0.1}, 0.1), ({"tpot_s": 0.05, "itl_s": 0.02}, 0.02)],
)
def test_a_step_may_take_what_the_stricter_target_allows(targets: dict[str, float], step_s: float | None) -> None:
    assert SloClass("p", **targets).step_s == step_s
