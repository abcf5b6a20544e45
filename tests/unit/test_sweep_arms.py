"""Names of arms, and the flags each stands for: held against what `colocate serve` accepts."""

from __future__ import annotations

import pytest

from colocate.bench.records import SweepArm
from colocate.bench.sweep.arms import DEFAULT_ARMS, Grounds, as_flags, resolve_arms, wants_every_plan
from colocate.bench.systems.command import CommandSystem, PeerEntry, parse_peers
from colocate.config.load import load_config
from colocate.config.settings import SETTINGS
from colocate.errors import ConfigError

PEERS = parse_peers(
    "peers",
    {
        "vllm": {
            "command": ["vllm", "serve", "{model}", "--port", "{port}"],
            "model": "bench",
            "environment": {"HOME_OF": "{model}"},
            "variants": {"default": [], "chunk512": ["--max-num-batched-tokens", "512"]},
        },
        "plain": {"command": ["serve-it", "{port}"], "ready": "/v1/models"},
    },
)
GROUNDS = Grounds(static_plans=("p2d1", "p1d2"), chunk_sizes=(32, 128), max_num_seqs=64, peers=PEERS)


def _settings(arm: SweepArm) -> dict[str, str]:
    return dict(zip(arm.flags[::2], arm.flags[1::2], strict=True))


def test_the_default_arms_are_every_way_this_package_can_serve() -> None:
    arms = resolve_arms(DEFAULT_ARMS, GROUNDS)
    assert [(arm.name, arm.group) for arm in arms] == [
        ("static:p2d1", "static"), ("static:p1d2", "static"), ("shared", "shared"), ("chunked:32", "chunked"),
        ("chunked:128", "chunked"), ("elastic", "dynamic"), ("slo", "dynamic"), ("on-demand", "dynamic"),
    ]  # fmt: skip
    by_flag = {SETTINGS[name].flag: name for name in SETTINGS}
    for arm in arms:
        scheduler = load_config(flags={by_flag[flag]: value for flag, value in _settings(arm).items()}).scheduler
        assert scheduler.mode == {"shared": "shared", "chunked": "chunked"}.get(arm.group, "colocated")
        if arm.group in ("static", "dynamic"):
            assert scheduler.plan == arm.name
        if arm.group == "chunked":
            assert scheduler.max_num_batched_tokens == int(arm.name.partition(":")[2]) >= scheduler.max_num_seqs


def test_one_arm_changes_one_setting() -> None:
    (arm,) = resolve_arms(["slo+discipline=edf+prefix-caching=false"], GROUNDS)
    assert arm.name == "slo+discipline=edf+prefix-caching=false"
    assert arm.flags[-3:] == ("--discipline", "edf", "--no-prefix-caching")
    assert [arm.name for arm in resolve_arms(["static+discipline=edf"], GROUNDS)] == [
        "static:p2d1+discipline=edf",
        "static:p1d2+discipline=edf",
    ]


def test_only_all_splits_need_the_device() -> None:
    assert wants_every_plan(["shared", "static"]) and wants_every_plan(["static+discipline=edf"])
    assert not wants_every_plan(["shared", "static:p1d1", "elastic"])


def test_peers_run_their_first_variant_a_named_one_or_all() -> None:
    def names(*asked: str) -> list[tuple[str, tuple[str, ...]]]:
        return [(arm.name, arm.flags) for arm in resolve_arms(asked, GROUNDS)]

    chunk = ("vllm:chunk512", ("--max-num-batched-tokens", "512"))
    assert names("peer:vllm") == [("vllm:default", ())]
    assert names("peer:vllm:chunk512") == [chunk]
    assert names("peer:vllm:*", "peer:plain") == [("vllm:default", ()), chunk, ("plain", ())]

    launch = CommandSystem("vllm", PEERS["vllm"], "some/model").launch(chunk[1], 4321)
    assert launch.command == ("vllm", "serve", "some/model", "--port", "4321", *chunk[1])
    assert launch.url == "http://127.0.0.1:4321" and launch.ready_path == "/health" and launch.model == "bench"
    assert launch.environ == {"HOME_OF": "some/model"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["statik"], "no arm is named 'statik'"),
        (["chunked:many"], "'many' is not a number of tokens"),
        (["chunked:0"], "'0' is not a number of tokens"),
        (["shared", "shared"], "'shared' is named twice"),
        (["slo+disciplin=edf"], "'disciplin=edf' is not a setting"),
        (["slo+discipline"], "'discipline' is not a setting"),
        (["slo+discipline=best"], "'best' is not one of"),
        (["peer:sglang"], "no peer is named 'sglang'"),
        (["peer:vllm:chunk64"], "no variant 'chunk64'"),
        (["peer:vllm+discipline=edf"], "changes settings of colocate in a peer"),
        ([], "leaves nothing to run"),
    ],
)
def test_what_is_no_arm_is_refused_with_its_name(names: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_arms(names, GROUNDS)
    assert said in str(caught.value) and caught.value.remedy


def test_a_device_that_cannot_be_split_has_no_static_arm() -> None:
    assert resolve_arms(["static", "shared"], Grounds())[0].name == "shared"
    with pytest.raises(ConfigError, match="nothing to run"):
        resolve_arms(["static"], Grounds())


def test_settings_become_flags_as_serve_reads_them() -> None:
    settings = {"slo_class": ["a: ttft 1 s", "b: none"], "units": 2, "deterministic": True, "prefix_caching": "no"}
    assert as_flags(settings) == (
        "--slo-class", "a: ttft 1 s", "--slo-class", "b: none", "--units", "2", "--deterministic",
        "--no-prefix-caching",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"command": []}, "length"),
        ({"command": ["x", "{port}"], "comand": []}, "comand"),
        ({"command": ["x"]}, "never says {port}"),
        ({"command": ["x", "{port}", "{modle}"]}, "{modle}"),
        ({"command": ["x", "{port}"], "variants": {"a": ["{"]}}, "'{'"),
    ],
)
def test_a_peer_that_cannot_be_started_is_refused(entry: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_peers("file: peers", {"x": entry})
    assert said in str(caught.value)


def test_braces_are_written_twice() -> None:
    entry = PeerEntry(("x", "{port}", '--json={{"a": 1}}'))
    assert CommandSystem("x", entry, "m").launch((), 7).command == ("x", "7", '--json={"a": 1}')
