"""The emulated H200 as both scripts serve it: 132 units of a roofline prior, in slow motion."""

from __future__ import annotations

from pathlib import Path

import msgspec
from policy_study.loads import Load
from policy_study.search import KV_TOKENS
from random_model import Shape, write_random_model

from colocate.config.profile import DeviceProfile, load_profile
from colocate.sim.settings import SimSettings
from live_study.pair import Site
from live_study.slowed import slowed_profile, slowed_slo

PROFILE = Path(__file__).parents[2] / "configs/profiles/emulated-h200-roofline.yaml"
# Nothing is computed from it: it names a tokenizer, a longest prompt, and 1 KiB of KV per token.
SHAPE = Shape(hidden=64, layers=2, heads=2, kv_heads=2, intermediate=128, vocab=2048)
KV_BYTES_PER_TOKEN = 2 * 2 * 64 * 4
MAX_SLICE_MS = 20.0


def emulated_site(directory: Path, slow: float) -> tuple[Site, DeviceProfile]:
    """A checkpoint and a slowed profile in `directory`, and the flags that serve them."""
    profile = slowed_profile(load_profile(PROFILE), slow)
    path = directory / "profile.json"
    path.write_bytes(msgspec.json.encode(profile))
    model = write_random_model(directory / "tiny", SHAPE, max_model_len=32_768)
    flags = ("--device", "emulated", "--units", str(profile.units), "--profile", str(path))
    memory = ("--dtype", "float32", "--kv-memory", str(KV_TOKENS * KV_BYTES_PER_TOKEN))
    return Site(model, (*flags, *memory), tail_s=20.0 * slow), profile


def emulated_settings(profile: DeviceProfile, load: Load, slow: float, seed: int = 0) -> SimSettings:
    """As in the study of policies: one class, one discipline, a pool that never fills."""
    return SimSettings(
        profile=profile,
        slo_classes=(slowed_slo(load.slo, slow),),
        max_num_seqs=512,
        max_slice_ms=MAX_SLICE_MS * slow,
        seed=seed,
        drain_s=20.0 * slow,
    )
