"""The whole decoder of the GPU against that of the CPU (`model/llama.py`), in float32 on CPU tensors.

Logits agree within TOLERANCE, which is rounding of float32 sums taken in another order; greedy tokens are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import colocate.model
from colocate.errors import InvariantError
from colocate.messages.prefill import PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model.config import ModelConfig
from colocate.model.cuda.activations import activation_bytes, rotary_bytes
from colocate.model.cuda.attention import attention_for
from colocate.model.cuda.model import CudaModel
from colocate.model.cuda.rotary import rotary_table
from colocate.model.cuda.rows import PrefillBatchRows
from colocate.model.cuda.state import DecodeState
from colocate.model.layout import KVLayout, WeightLayout
from colocate.model.llama import Packed, bytes_tensor, map_weights
from colocate.worker.mapped_model import MappedModel
from colocate.worker.packed_rows import PackedChunk
from tests.checkpoints import make_checkpoint
from tests.cuda.device_rows import fill_table
from tests.model_harness import Harness, facts_for, greedy

DEMO = Path(colocate.model.__file__).parent / "demo"
TOLERANCE = 2e-4
MAX_TOKENS, MAX_ROWS, MAX_LEN, NUM_BLOCKS, BLOCK_SIZE = 48, 5, 96, 24, 16
SMALL = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 40}
MODELS = {
    "llama, untied": ("llama", {**SMALL, "tie_word_embeddings": False}),
    "llama, biased": ("llama", {**SMALL, "attention_bias": True}),
    "qwen2, tied, windows above": (
        "qwen2",
        {**SMALL, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {**SMALL, "head_dim": 24}),
    "mistral, windows": ("mistral", {**SMALL, "sliding_window": 7, "head_dim": 16}),
}  # fmt: skip


class World:
    """Both models over the same weights, each with a pool of its own. Blocks of a row are scattered."""

    def __init__(self, directory: Path) -> None:
        self.cpu = Harness.load(directory, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
        self.config: ModelConfig = self.cpu.config
        self.pool = torch.zeros(KVLayout(self.config, "float32", NUM_BLOCKS, BLOCK_SIZE).shape)
        weights = map_weights(WeightLayout.of(self.config, "float32"), bytes_tensor(memoryview(self.cpu.weights)))
        self.model = CudaModel(
            self.config,
            weights,
            self.pool,
            attention_for(self.config, self.pool, max_rows=MAX_ROWS, max_tokens=MAX_TOKENS),
            max_tokens=MAX_TOKENS,
            max_rows=MAX_ROWS,
            rotary=rotary_table(self.config, MAX_LEN, "cpu"),
        )
        self.state = DecodeState.allocate(MAX_ROWS - 1, MAX_LEN // BLOCK_SIZE, "cpu")

    def rows(self, tables: Sequence[list[int]], starts: Sequence[int], lengths: Sequence[int]) -> PrefillBatchRows:
        positions = [torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]
        slots = [
            torch.tensor(table)[own // BLOCK_SIZE] * BLOCK_SIZE + own % BLOCK_SIZE
            for table, own in zip(tables, positions, strict=True)
        ]
        width = max(len(table) for table in tables)
        return PrefillBatchRows(
            positions=torch.cat(positions).int(),
            slots=torch.cat(slots),
            cu_lens=torch.tensor([0, *lengths]).cumsum(0).int(),
            starts=torch.tensor(starts, dtype=torch.int32),
            block_tables=torch.tensor([table + [0] * (width - len(table)) for table in tables], dtype=torch.int32),
            max_new=max(lengths),
            max_context=max(s + n for s, n in zip(starts, lengths, strict=True)),
        )

    def reference(self, token_ids: Sequence[int]) -> torch.Tensor:
        """float32 [tokens, vocab] of the CPU's model: the logits behind every token of one sequence."""
        facts = facts_for(self.config, "float32", NUM_BLOCKS, BLOCK_SIZE)
        mapped = MappedModel(self.config, facts, memoryview(self.cpu.weights), memoryview(self.cpu.kv), False)
        chunk = PackedChunk(mapped, [PrefillRow(1, 1, list(token_ids), 0, list(range(6)), None)])
        hidden = mapped.model.embed(chunk.token_ids)
        packed = Packed(*mapped.rotary.at(chunk.positions), chunk.rows)
        mapped.model.run_layers(hidden, 0, self.config.num_layers, packed)
        return mapped.model.logits(hidden)

    def embedded(self, token_ids: Sequence[int]) -> torch.Tensor:
        hidden = torch.full((len(token_ids), self.config.hidden_size), float("nan"))
        self.model.embed(torch.tensor(token_ids, dtype=torch.int32), hidden)
        return hidden

    def prefill(
        self, prompts: Sequence[list[int]], tables: Sequence[list[int]], starts: Sequence[int], cuts: Sequence[int] = ()
    ) -> torch.Tensor:
        """Hidden states after all layers, run in slices that end at `cuts`."""
        hidden = self.embedded([token for prompt in prompts for token in prompt])
        rows = self.rows(tables, starts, [len(prompt) for prompt in prompts])
        ends = [0, *cuts, self.config.num_layers]
        for start, stop in pairwise(ends):
            self.model.prefill_layers(hidden, start, stop, rows, 0)
        return hidden

    def seat(self, slot: int, table: list[int], length: int, token: int, params: SamplingParams | None = None) -> None:
        state = self.state
        state.token[slot], state.context_len[slot], state.active[slot] = token, length, 1
        state.granted_len[slot] = len(table) * BLOCK_SIZE
        state.block_table[slot, : len(table)] = torch.tensor(table, dtype=torch.int32)
        fill_table(state.sampling, [slot], [SampleState(params or greedy(1000), 1)], self.config.vocab_size)


def prompt(seed: int, length: int, vocab_size: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab_size, (length,), generator=generator).tolist()


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, (family, sizes) in MODELS.items():
        make_checkpoint(root / name, family, **sizes)
    return {"demo": DEMO, **{name: root / name for name in MODELS}}


@pytest.mark.parametrize("name", ["demo", *MODELS])
def test_prompts_and_steps_yield_the_cpus_logits_and_tokens(name: str, directory_of: dict[str, Path]) -> None:
    """Two prompts in one forward, one of them in two chunks; then steps of both rows, and of one place of padding."""
    num_steps = 8 if name == "demo" else 2
    world = World(directory_of[name])
    vocab_size = world.config.vocab_size
    sequences = [prompt(1, 19, vocab_size), prompt(2, 6, vocab_size)]
    tables = [[7, 2, 11], [5, 3]]
    world.prefill([sequences[0][:8]], tables[:1], [0])
    hidden = world.prefill([sequences[0][8:], sequences[1]], tables, [8, 0])
    found: list[list[torch.Tensor]] = [[], []]
    last = world.model.logits(hidden[[10, 16]], 0)
    for row, sequence in enumerate(sequences):
        found[row].append(last[row].clone())
        sequence.append(int(last[row].argmax()))
        world.seat(row, tables[row], len(sequence) - 1, sequence[-1])
    index = torch.tensor([1, 0, world.state.padding_slot], dtype=torch.int32)
    drawn = torch.zeros(3, dtype=torch.int32)
    for _ in range(num_steps):
        world.model.decode_step(world.state, index, drawn, 0)
        logits = world.model._rows("logits", 3)
        for place, row in enumerate((1, 0)):
            found[row].append(logits[place].clone())
            sequences[row].append(int(drawn[place]))
        assert drawn[2] == -1
    for row, sequence in enumerate(sequences):
        exact = world.reference(sequence[:-1])[-num_steps - 1 :]
        torch.testing.assert_close(torch.stack(found[row]), exact, atol=TOLERANCE, rtol=TOLERANCE)
        assert exact.argmax(-1).tolist() == sequence[-num_steps - 1 :]
    assert world.state.context_len.tolist() == [
        19 + num_steps,
        6 + num_steps,
        0,
        0,
        0,
    ] and world.state.active.tolist() == [1, 1, 0, 0, 0]


def test_slices_cut_anywhere_yield_the_same_bits(directory_of: dict[str, Path]) -> None:
    world = World(directory_of["qwen2, tied, windows above"])
    tokens = prompt(3, 5, world.config.vocab_size)
    results = []
    for cuts in ((), (1,), (2,), (0, 1, 1, 2)):
        world.pool.zero_()
        hidden = world.prefill([tokens], [[1, 4]], [0], cuts)
        results.append((hidden, world.pool.clone()))
    for hidden, pool in results[1:]:
        assert torch.equal(hidden, results[0][0]) and torch.equal(pool, results[0][1])


def test_another_forward_between_two_slices_changes_nothing(directory_of: dict[str, Path]) -> None:
    """The arena is shared; what a forward keeps is its own."""
    world = World(directory_of["qwen3"])
    vocab_size = world.config.vocab_size
    tokens, urgent = prompt(3, 6, vocab_size), prompt(4, 20, vocab_size)
    alone = world.prefill([tokens], [[1, 4]], [0])
    hidden, rows = world.embedded(tokens), world.rows([[1, 4]], [0], [6])
    world.model.prefill_layers(hidden, 0, 2, rows, 0)
    world.prefill([urgent], [[0, 8]], [0])
    world.model.logits(hidden[:2], 0)
    world.model.prefill_layers(hidden, 2, 3, rows, 0)
    assert torch.equal(hidden, alone)


def test_a_chunk_and_rows_in_one_forward(directory_of: dict[str, Path]) -> None:
    """As by themselves: the chunk's hidden states, the rows' logits and all KV."""
    name = "qwen2, tied, windows above"
    apart, together = World(directory_of[name]), World(directory_of[name])
    vocab_size = apart.config.vocab_size
    standing, chunk = prompt(5, 20, vocab_size), prompt(6, 9, vocab_size)
    for world in (apart, together):
        world.prefill([standing], [[6, 9]], [0])
        world.seat(2, [6, 9], 20, 33)
    index = torch.tensor([together.state.padding_slot, 2], dtype=torch.int32)
    own = apart.prefill([chunk], [[3]], [0])
    logits = apart.model.decode_logits(apart.state, index, 0).clone()
    both = torch.cat((together.embedded(chunk), together.embedded([0, 33])))
    rows = together.rows([[3]], [0], [9])
    for layer in range(3):
        together.model.hybrid_layers(both, layer, layer + 1, rows, together.state, index, 0)
    torch.testing.assert_close(both[:9], own, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(together.model.logits(both[9:], 0)[1], logits[1], atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(together.pool, apart.pool, atol=TOLERANCE, rtol=TOLERANCE)


def test_rows_that_are_not_live_stay_as_they_are(directory_of: dict[str, Path]) -> None:
    """An inactive row, a full one, and one that ends in the middle, beside one that goes on."""
    world = World(directory_of["llama, untied"])
    vocab_size, state = world.config.vocab_size, world.state
    tokens = prompt(7, 16, vocab_size)
    tables = [[0, 1], [2], [3, 4], [5, 6]]
    world.prefill([tokens[:6]] * 4, tables, [0] * 4)
    for slot, table in enumerate(tables):
        world.seat(slot, table, 6, tokens[6], greedy(4) if slot == 2 else None)
    state.active[0] = 0
    state.context_len[1] = state.granted_len[1]
    before = world.pool.clone()
    index = torch.tensor([3, 0, 2, 1], dtype=torch.int32)
    drawn = torch.zeros(4, dtype=torch.int32)
    steps = []
    for _ in range(5):
        world.model.decode_step(state, index, drawn, 0)
        steps.append(drawn.tolist())
    assert [step[1] for step in steps] == [step[3] for step in steps] == [-1] * 5
    assert [step[0] for step in steps][:3] == [step[2] for step in steps][:3], "the same prompt, the same tokens"
    assert [step[2] for step in steps][3:] == [-1, -1] and min(step[0] for step in steps) >= 0
    assert state.active.tolist() == [0, 1, 0, 1, 0] and state.context_len.tolist() == [6, 16, 9, 11, 0]
    for blocks in (tables[0], tables[1]):
        assert torch.equal(world.pool[:, :, blocks], before[:, :, blocks])


def test_damaged_weights_draw_minus_two(directory_of: dict[str, Path]) -> None:
    world = World(directory_of["llama, untied"])
    tables = [[0], [1]]
    world.prefill([[5, 6, 7]] * 2, tables, [0, 0])
    for slot in range(2):
        world.seat(slot, tables[slot], 3, 8)
    world.pool[0, 0, 0, :, 0] = float("nan")
    drawn = torch.zeros(2, dtype=torch.int32)
    world.model.decode_step(world.state, torch.tensor([0, 1], dtype=torch.int32), drawn, 0)
    assert drawn[0] == -2 and drawn[1] >= 0
    assert world.state.context_len[:2].tolist() == [3, 4], "the damaged row has not moved"


def test_the_arena_is_what_was_planned_and_stays_where_it_is(directory_of: dict[str, Path]) -> None:
    world = World(directory_of["qwen3"])
    config, model = world.config, world.model
    assert model.activation_bytes == activation_bytes(config, "float32", MAX_TOKENS, MAX_ROWS)
    assert rotary_table(config, MAX_LEN, "cpu").nbytes == rotary_bytes(config, MAX_LEN)
    logits = model.logits(torch.ones(2, config.hidden_size), 0)
    again = model.logits(torch.ones(1, config.hidden_size), 0)
    assert logits.data_ptr() == again.data_ptr(), "valid until the next call"
    with pytest.raises(InvariantError, match="6 rows"):
        model.logits(torch.ones(MAX_ROWS + 1, config.hidden_size), 0)
