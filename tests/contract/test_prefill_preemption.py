"""A real prompt set aside between two layer slices for an urgent one: same tokens, same KV, the urgent one first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from colocate.messages.prefill import PrefillBatch, PrefillDone, PrefillRow
from colocate.messages.sampling import SampleState
from colocate.types import Role
from tests.checkpoints import make_checkpoint
from tests.model_harness import Harness, greedy
from tests.worker_harness import Bench


def tokens(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 259, (length,), generator=generator).tolist()


@pytest.mark.parametrize("turns", [1, 2])
def test_the_forward_set_aside_ends_with_the_bits_it_would_have_had(tmp_path: Path, kernels: str, turns: int) -> None:
    make_checkpoint(tmp_path, "llama", num_hidden_layers=3)
    harness = Harness.load(tmp_path)
    long, short = tokens(1, 200), tokens(2, 30)
    plain = [harness.allocate(len(prompt)) for prompt in (long, short)]
    alone = [harness.prompt(i, prompt, plain[i]) for i, prompt in enumerate((long, short))]

    blocks = [harness.allocate(len(prompt)) for prompt in (long, short)]
    rows = [PrefillRow(i, 1, prompt, 0, blocks[i], SampleState(greedy(), 0)) for i, prompt in enumerate((long, short))]
    bench = Bench(Role.PREFILL, prefill=harness.prefill)
    bench.say(PrefillBatch(1, [rows[0]]))
    bench.turn(turns)  # so many of three layers
    bench.say(PrefillBatch(2, [rows[1]], urgent=True))
    done = [message for message in bench.settle() if isinstance(message, PrefillDone)]
    bench.close()

    assert [(each.batch_id, each.rows[0].token_id) for each in done] == [(2, alone[1]), (1, alone[0])]
    for ours, theirs, prompt in zip(blocks, plain, (long, short), strict=True):
        assert (harness.stored_kv(ours, len(prompt)) == harness.stored_kv(theirs, len(prompt))).all()
