"""The counter-based noise: its bits, its uniformity, and that a token's noise does not depend on its neighbours."""

from __future__ import annotations

import math

import numpy as np

from colocate.model.noise import GAMMA, gumbel, mix, noise_key, token_counters, uniform


def test_mix_gives_the_published_splitmix64_stream() -> None:
    # First outputs of SplitMix64 from state 0 and from state 1234567, as in the public reference vectors.
    assert [mix(GAMMA * (i + 1) % 2**64) for i in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    assert mix((1234567 + GAMMA) % 2**64) == 6457827717110365317


def test_vector_form_equals_the_scalar_definition() -> None:
    key = noise_key(seed=2**62 + 5, choice=3, position=77)
    ids = np.array([0, 1, 2, 31_999, 151_935])
    for token_id, u in zip(ids, uniform(key, token_counters(ids)), strict=True):
        assert u == ((mix((key + (int(token_id) + 1) * GAMMA) % 2**64) >> 12) + 0.5) / 2**52


def test_uniforms_pass_chi_square_over_tokens_positions_and_seeds() -> None:
    """255 degrees of freedom: mean 255, standard deviation 22.6; 5 deviations are allowed on fixed inputs."""
    counters = token_counters(np.arange(4096))
    by_token = np.concatenate([uniform(noise_key(seed, 0, 0), counters) for seed in range(64)])
    one = token_counters(np.array([17]))
    by_position = np.concatenate([uniform(noise_key(1, 0, position), one) for position in range(40_000)])
    by_seed = np.concatenate([uniform(noise_key(seed, 0, 5), one) for seed in range(40_000)])
    by_choice = np.concatenate([uniform(noise_key(9, choice, 5), one) for choice in range(40_000)])
    for sample in (by_token, by_position, by_seed, by_choice):
        observed = np.histogram(sample, bins=256, range=(0.0, 1.0))[0]
        expected = len(sample) / 256
        statistic = float(((observed - expected) ** 2 / expected).sum())
        assert abs(statistic - 255) < 5 * math.sqrt(2 * 255)


def test_neighbouring_draws_are_independent() -> None:
    """Pairs (this draw, next draw) fill a 16 x 16 table evenly, whichever coordinate moves by one."""
    counters = token_counters(np.arange(50_001))
    base = uniform(noise_key(4, 0, 9), counters)
    pairs = {
        "token": (base[:-1], base[1:]),
        "position": (base, uniform(noise_key(4, 0, 10), counters)),
        "seed": (base, uniform(noise_key(5, 0, 9), counters)),
        "choice": (base, uniform(noise_key(4, 1, 9), counters)),
        "seed and position swapped": (base, uniform(noise_key(9, 0, 4), counters)),
    }
    for name, (left, right) in pairs.items():
        table = np.histogram2d(left, right, bins=16, range=((0, 1), (0, 1)))[0]
        expected = len(left) / 256
        statistic = float(((table - expected) ** 2 / expected).sum())
        assert abs(statistic - 255) < 5 * math.sqrt(2 * 255), name


def test_noise_of_a_token_does_not_depend_on_which_others_are_computed() -> None:
    counters = token_counters(np.arange(32_003))
    key = noise_key(11, 0, 3)
    whole = gumbel(key, counters)
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 8, 9, 63, 1000, 32_000):
        for start in (0, 1, 3):
            chosen = np.sort(rng.choice(len(counters), size, replace=False))
            buffer = np.empty(size + start, dtype=np.uint64)
            buffer[start:] = counters[chosen]
            assert np.array_equal(gumbel(key, buffer[start:]), whole[chosen])


def test_gumbel_is_finite_and_has_the_right_moments() -> None:
    g = np.concatenate([gumbel(noise_key(seed, 0, 0), token_counters(np.arange(10_000))) for seed in range(40)])
    assert np.isfinite(g).all()
    deviation = math.pi / math.sqrt(6)
    assert abs(g.mean() - 0.5772156649) < 5 * deviation / math.sqrt(len(g))
    assert abs(g.std() - deviation) < 0.01
