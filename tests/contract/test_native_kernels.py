"""The native kernels against double precision, against torch's path, and against themselves: the same bits whatever
the batch, the thread count, the chunking and the phase."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from colocate.messages.prefill import PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.model.attention.fused import FusedAttention
from colocate.model.attention.native import NativeAttention
from colocate.model.attention.seam import Attention, DecodeRows, DecodeTables, PrefillRows, PrefillSpan
from colocate.model.kv import KVPool
from colocate.model.native import load_kernels
from colocate.model.native_kernels import NativeKernels
from tests.checkpoints import make_checkpoint
from tests.model_harness import Harness

pytestmark = pytest.mark.skipif(load_kernels() is None, reason="this machine has no compiler for the native kernels")


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def kernels() -> NativeKernels:
    library = load_kernels()
    assert library is not None
    return NativeKernels(library)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("n", "k"), [(1, 8), (5, 16), (37, 40), (96, 100), (259, 64)])
def test_linear_equals_double_precision(n: int, k: int, dtype: torch.dtype, threads: int) -> None:
    for rows in (1, 2, 3, 4, 5, 6, 7, 13, 16, 97, 200):
        check_linear(rows, n, k, dtype)


def check_linear(rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    x, weight = random(rows, k + 3)[:, :k], random(n, k, seed=1).to(dtype)
    expected = x.double() @ weight.double().t()
    out = torch.full((rows, n + 5), 7.0)
    kernels().linear(x, weight, out[:, :n])
    torch.testing.assert_close(out[:, :n].double(), expected, rtol=1e-5, atol=1e-5)
    assert (out[:, n:] == 7.0).all()
    kernels().linear(x, weight, out[:, :n], accumulate=True)
    torch.testing.assert_close(out[:, :n].double(), 2 * expected, rtol=1e-5, atol=2e-5)


def test_linear_of_a_row_has_the_same_bits_in_any_batch_and_on_any_threads() -> None:
    x, weight = random(200, 300), random(333, 300, seed=1)
    out = torch.empty(200, 333)
    kernels().linear(x, weight, out)
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        for rows in (1, 2, 3, 4, 5, 6, 9, 16, 96, 97, 200):
            part = torch.empty(rows, 333)
            kernels().linear(x[200 - rows :], weight, part)
            assert torch.equal(part, out[200 - rows :])
    torch.set_num_threads(2)


IMPLEMENTATIONS = ("fused", "native")
HEADS = [(4, 4), (6, 1), (8, 2)]


def build(name: str, pool: KVPool, num_heads: int, window: int | None) -> Attention:
    if name == "fused":
        return FusedAttention(pool, num_heads, [window])
    return NativeAttention(kernels(), pool, num_heads, [window], pool.head_dim**-0.5)


def reference(q: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """One query per row of `q` [heads, dim] over keys [kv_heads, n, dim], in double precision, head by head."""
    group = len(q) // len(keys)
    first = 0 if window is None else max(0, keys.shape[1] - window)
    heads = []
    for head, query in enumerate(q.double()):
        k, v = keys[head // group, first:].double(), values[head // group, first:].double()
        heads.append(torch.softmax(k @ query / len(query) ** 0.5, 0) @ v)
    return torch.stack(heads)


class Paged:
    """Rows of random context, their KV scattered over a pool."""

    def __init__(self, contexts: list[int], kv_heads: int, dim: int, block_size: int, dtype: torch.dtype) -> None:
        counts = [-(-context // block_size) for context in contexts]
        order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(3)).tolist()
        shape = (1, 2, len(order), kv_heads, block_size, dim)
        self.pool = KVPool(torch.full(shape, float("nan")).to(dtype))  # what is read without being written shows
        self.kv = [random(c, 2, kv_heads, dim, seed=i).to(dtype) for i, c in enumerate(contexts)]
        self.blocks = [[order.pop() for _ in range(count)] for count in counts]
        self.block_size = block_size
        tables = torch.zeros(len(contexts), max(counts), dtype=torch.int64)
        for row, blocks in enumerate(self.blocks):
            tables[row, : len(blocks)] = torch.tensor(blocks)
        self.rows = DecodeRows(DecodeTables(tables), torch.tensor(contexts), max(contexts), torch.empty(0))

    def slots(self, row: int) -> Tensor:
        positions = torch.arange(len(self.kv[row]))
        return torch.tensor(self.blocks[row])[positions // self.block_size] * self.block_size + (
            positions % self.block_size
        )


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("block_size", [8, 32])
@pytest.mark.parametrize(("num_heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("window", [None, 1, 600])
def test_decode_attention_equals_double_precision(
    name: str, num_heads: int, kv_heads: int, block_size: int, window: int | None, dtype: torch.dtype
) -> None:
    contexts = [1, 15, 16, 17, 33, 511, 512, 513, 1100]
    paged = Paged(contexts, kv_heads, 32, block_size, dtype)
    paged.pool.pool.nan_to_num_(0.25)  # the fused path masks by adding minus infinity, which NaN would survive
    attention = build(name, paged.pool, num_heads, window)
    for row, kv in enumerate(paged.kv):
        attention.write(0, kv, paged.slots(row))
    q = random(len(contexts), num_heads + 2, 32, seed=9).to(dtype)[:, :num_heads]
    out = torch.empty(len(contexts), num_heads * 32, dtype=dtype)
    torch.set_num_threads(1 + kv_heads % 2)
    attention.decode(0, q, paged.rows, out)
    torch.set_num_threads(2)
    tolerance = 2e-6 if dtype is torch.float32 else 2e-2
    for row, kv in enumerate(paged.kv):
        expected = reference(q[row], kv[:, 0].transpose(0, 1), kv[:, 1].transpose(0, 1), window)
        torch.testing.assert_close(out[row].view(num_heads, 32).double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize("window", [None, 100])
def test_native_decode_attention_reads_nothing_it_should_not_and_is_independent_of_the_batch(
    block_size: int, window: int | None
) -> None:
    contexts = [700, 3, 16, 1025]
    paged = Paged(contexts, 2, 16, block_size, torch.float32)
    paged.pool.pool.masked_fill_(paged.pool.pool.isnan(), 1e30)  # finite in any kernel, absurd in any result
    attention = build("native", paged.pool, 6, window)
    for row, kv in enumerate(paged.kv):
        attention.write(0, kv, paged.slots(row))
    q = random(4, 6, 16, seed=9)
    together = torch.empty(4, 96)
    attention.decode(0, q, paged.rows, together)
    assert together.abs().max() < 10
    for row, context in enumerate(contexts):
        table = DecodeTables(torch.tensor([paged.blocks[row]]))
        alone = torch.empty(1, 96)
        attention.decode(
            0, q[row : row + 1], DecodeRows(table, torch.tensor([context]), context, torch.empty(0)), alone
        )
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_write_touches_its_slots_alone(name: str, dtype: torch.dtype) -> None:
    paged = Paged([37], 2, 16, 16, dtype)
    attention = build(name, paged.pool, 4, None)
    paged.pool.pool.fill_(-3.0)
    projection = torch.zeros(37, 8, 16, dtype=dtype)  # the decoder hands over a slice of a wider row
    kv = projection[:, 4:].view(37, 2, 2, 16)
    kv.copy_(paged.kv[0])
    attention.write(0, kv, paged.slots(0))
    expected = torch.full_like(paged.pool.pool, -3.0)
    for position, slot in enumerate(paged.slots(0).tolist()):
        expected[0, :, slot // 16, :, slot % 16] = paged.kv[0][position]
    assert torch.equal(paged.pool.pool, expected)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [None, 20])
def test_prefill_attention_over_a_cached_prefix(name: str, window: int | None, threads: int) -> None:
    paged = Paged([50, 17, 90], 2, 16, 16, torch.float32)
    paged.pool.pool.nan_to_num_(0.25)
    attention = build(name, paged.pool, 4, window)
    starts = [30, 0, 33]
    spans, first = [], 0
    for row, (kv, start) in enumerate(zip(paged.kv, starts, strict=True)):
        attention.write(0, kv, paged.slots(row))
        spans.append(PrefillSpan(first, len(kv) - start, start, torch.tensor(paged.blocks[row])))
        first += len(kv) - start
    q, kv = random(first, 4, 16, seed=5), torch.cat([kv[s:] for kv, s in zip(paged.kv, starts, strict=True)])
    out = torch.empty(first, 64)
    attention.prefill(0, q, kv, PrefillRows(tuple(spans), torch.empty(0)), out)
    for span, whole in zip(spans, paged.kv, strict=True):
        for i in range(span.num_tokens):
            seen = whole[: span.start + i + 1]
            expected = reference(q[span.first + i], seen[:, 0].transpose(0, 1), seen[:, 1].transpose(0, 1), window)
            got = out[span.first + i].view(4, 16).double()
            torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)


class Prompts:
    """Spans over cached prefixes, every token's KV written, and the packed queries and KV of the spans."""

    def __init__(self, name: str, shape: tuple[int, int, int], window: int | None, block_size: int) -> None:
        num_heads, kv_heads, dim = shape
        self.starts, self.contexts = [0, 70, 129, 5, 0], [1, 71, 290, 68, 161]
        self.paged = Paged(self.contexts, kv_heads, dim, block_size, torch.float32)
        if name == "fused":
            self.paged.pool.pool.nan_to_num_(0.25)  # it masks by adding minus infinity, which NaN would survive
        self.attention = build(name, self.paged.pool, num_heads, window)
        self.window, self.num_heads, self.dim = window, num_heads, dim
        self.q = [random(c, num_heads, dim, seed=c) * 3 for c in self.contexts]  # peaked, so that the peak moves
        for row, kv in enumerate(self.paged.kv):
            self.attention.write(0, kv, self.paged.slots(row))

    def attend(self, pieces: list[tuple[int, int, int]]) -> list[Tensor]:
        """One call over pieces (row, start, stop); their results, each [tokens, num_heads, dim]."""
        spans, first = [], 0
        for row, start, stop in pieces:
            spans.append(PrefillSpan(first, stop - start, start, torch.tensor(self.paged.blocks[row])))
            first += stop - start
        wide = torch.full((first, self.num_heads + 2, self.dim), float("nan"))  # q is a slice of a wider row
        wide[:, : self.num_heads] = torch.cat([self.q[row][start:stop] for row, start, stop in pieces])
        kv = torch.cat([self.paged.kv[row][start:stop] for row, start, stop in pieces])
        out = torch.empty(first, self.num_heads * self.dim)
        rows = PrefillRows(tuple(spans), torch.empty(0))
        self.attention.prefill(0, wide[:, : self.num_heads], kv, rows, out)
        heads = out.view(first, self.num_heads, self.dim)
        return [heads[span.first : span.first + span.num_tokens] for span in spans]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [None, 1, 63, 100])
@pytest.mark.parametrize("shape", [(4, 4, 16), (6, 1, 64), (8, 2, 80), (12, 12, 64)], ids=str)
@pytest.mark.parametrize("block_size", [8, 24])
def test_prefill_attention_equals_double_precision(
    name: str, window: int | None, shape: tuple[int, int, int], block_size: int, threads: int
) -> None:
    prompts = Prompts(name, shape, window, block_size)
    ends = zip(prompts.starts, prompts.contexts, strict=True)
    pieces = [(row, start, stop) for row, (start, stop) in enumerate(ends)]
    for (row, start, stop), got in zip(pieces, prompts.attend(pieces), strict=True):
        expected = causal(prompts.q[row], prompts.paged.kv[row], window)[start:stop]
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def causal(q: Tensor, kv: Tensor, window: int | None) -> Tensor:
    """[tokens, heads, dim] of q [tokens, heads, dim] and kv [tokens, 2, kv_heads, dim], in double precision."""
    group = q.shape[1] // kv.shape[2]
    keys, values = (side.double().repeat_interleave(group, 1).transpose(0, 1) for side in kv.unbind(1))
    scores = q.double().transpose(0, 1) @ keys.transpose(1, 2) / q.shape[2] ** 0.5
    behind = torch.arange(len(q)).unsqueeze(1) - torch.arange(len(q))
    hidden = (behind < 0) | (behind >= (window or len(q)))
    return (torch.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ values).transpose(0, 1)


@pytest.mark.parametrize("window", [None, 63])
@pytest.mark.parametrize("shape", [(6, 1, 64), (4, 4, 32)], ids=str)
def test_native_prefill_of_a_token_has_the_same_bits_in_any_chunks_and_on_any_threads(
    window: int | None, shape: tuple[int, int, int]
) -> None:
    prompts = Prompts("native", shape, window, 16)
    whole = prompts.attend([(2, 0, 290)])[0]
    for count, step in [(1, 290), (2, 290), (3, 290), (1, 7), (2, 64), (3, 101)]:
        torch.set_num_threads(count)
        pieces = [(2, start, min(start + step, 290)) for start in range(0, 290, step)]
        for (_, start, stop), got in zip(pieces, prompts.attend(pieces), strict=True):
            assert torch.equal(got, whole[start:stop])
    torch.set_num_threads(2)


@pytest.fixture(scope="module", params=["llama", "qwen3", "qwen2", "mistral"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    options = {"mistral": {"sliding_window": 40}, "qwen3": {"head_dim": 32}}.get(request.param, {})
    make_checkpoint(directory, request.param, **options)
    return directory


def kv_of(harness: Harness, blocks: list[int], num_tokens: int) -> Tensor:
    """KV of the first tokens of a row: [layers, 2, kv_heads, tokens, head_dim]."""
    config = harness.config
    pool = torch.frombuffer(harness.kv, dtype=torch.float32).view(
        config.num_layers, 2, -1, config.num_kv_heads, harness.block_size, config.head_dim
    )
    rows = pool[:, :, blocks].transpose(2, 3)
    return rows.reshape(config.num_layers, 2, config.num_kv_heads, -1, config.head_dim)[:, :, :, :num_tokens].clone()


def test_deterministic_kv_and_tokens_are_the_same_bits_however_they_were_computed(checkpoint: Path) -> None:
    """Whole prompt, chunks, other companions, other thread counts, prefill instead of decode: one arithmetic."""
    harness = Harness.load(checkpoint, deterministic=True)
    prompt = torch.randint(0, 259, (61,), generator=torch.Generator().manual_seed(1)).tolist()
    torch.set_num_threads(1)
    blocks = harness.allocate(100)
    row = harness.row(0, prompt, harness.prompt(0, prompt, blocks), blocks)
    for _ in range(20):
        harness.step([row], 0)
    tokens = [*prompt, *row.output_token_ids]
    expected = kv_of(harness, blocks, 81)

    for count in (1, 2, 3):
        torch.set_num_threads(count)
        chunked = harness.allocate(100)
        harness.prompt(1, tokens[:81], chunked, chunk=7 * count)  # what decode wrote above, prefill writes here
        assert torch.equal(kv_of(harness, chunked, 81), expected)

        companions = [harness.allocate(40) for _ in range(3)]
        crowd = [harness.row(i, [i, 5], harness.prompt(i, [i, 5], b), b) for i, b in enumerate(companions)]
        again = harness.allocate(100)
        guest = harness.row(9, prompt, harness.prompt(9, prompt, again, chunk=10), again)
        for _ in range(20):
            harness.step([*crowd, guest], version=count)
        assert guest.output_token_ids == row.output_token_ids
        assert torch.equal(kv_of(harness, again, 81), expected)
        harness.free += [*chunked, *again, *(block for table in companions for block in table)]
    torch.set_num_threads(2)


def test_logprobs_of_prefill_and_decode_are_the_same_bits_when_deterministic(checkpoint: Path) -> None:
    harness = Harness.load(checkpoint, deterministic=True)
    prompt = list(range(3, 40))
    blocks = harness.allocate(64)
    params = SamplingParams(max_tokens=99, temperature=0.0, logprobs=3)
    row = harness.row(0, prompt, harness.prompt(0, prompt, blocks), blocks, params)
    first = row.last_token_id
    stepped = harness.decode.step([row], 0)
    other = harness.allocate(64)
    fed = PrefillRow(1, 1, [*prompt, first], 0, other, SampleState(params, 1))
    done = harness.run_prefill([fed])[0]
    assert stepped.logprobs is not None
    assert (done.token_id, done.logprob) == (stepped.token_ids[0], stepped.logprobs[0])


def test_a_step_of_many_rows_equals_torch(checkpoint: Path) -> None:
    """Beyond the size the fused step takes, and with fewer rows than threads over several chunks of keys."""
    harness = Harness.load(checkpoint, num_blocks=900)
    prompts = [[i % 250, 7, i % 13] for i in range(70)]
    many = harness.generate(prompts, 4)
    alone = [harness.generate([prompt], 4)[0] for prompt in prompts]
    assert many == alone
    torch.set_num_threads(2)
    long = torch.randint(0, 259, (900,), generator=torch.Generator().manual_seed(2)).tolist()
    shared_out = harness.generate([long], 8)
    torch.set_num_threads(1)
    assert harness.generate([long], 8) == shared_out
    torch.set_num_threads(2)
