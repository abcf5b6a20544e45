"""Before a worker says it is ready: run its largest shapes once, so that the first request meets warm kernels.

Runs on scratch KV blocks. The pool itself may hold the live blocks of other requests: a worker that is restarted must
not touch them before the engine tells it to.
"""

from __future__ import annotations

from msgspec import structs

from colocate.messages.prefill import PrefillBatch, PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.messages.spec import ProcessSpec, RuntimeFacts
from colocate.worker.executor import DecodeExecutor, HybridExecutor, PrefillExecutor, StandingRow

_PARAMS = SamplingParams(max_tokens=2)


def largest_prefill(spec: ProcessSpec) -> tuple[RuntimeFacts, PrefillBatch]:
    """The biggest forward that this configuration allows, and the facts of a pool just large enough for it."""
    facts = spec.facts
    num_tokens = max(1, min(spec.config.scheduler.max_num_batched_tokens, facts.max_model_len))
    num_blocks = -(-num_tokens // facts.block_size)
    token_ids = [token % facts.vocab_size for token in range(num_tokens)]
    row = PrefillRow(0, 0, token_ids, 0, list(range(num_blocks)), SampleState(_PARAMS, 0))
    return replace_blocks(facts, num_blocks), PrefillBatch(0, [row])


def largest_decode(spec: ProcessSpec) -> tuple[RuntimeFacts, list[StandingRow]]:
    """A full standing batch, one block per row."""
    facts, num_rows = spec.facts, spec.config.scheduler.max_num_seqs
    context_len = min(facts.block_size, facts.max_model_len) - 1
    rows = [StandingRow(index, 0, 0, context_len, [index], SampleState(_PARAMS, 0), 0) for index in range(num_rows)]
    return replace_blocks(facts, num_rows), rows


def largest_hybrid(spec: ProcessSpec) -> tuple[RuntimeFacts, PrefillBatch, list[StandingRow]]:
    """A full chunk beside a full standing batch, whose blocks come after the chunk's."""
    chunk_facts, batch = largest_prefill(spec)
    row_facts, rows = largest_decode(spec)
    for row in rows:
        row.block_table = [chunk_facts.num_blocks + block for block in row.block_table]
    return replace_blocks(spec.facts, chunk_facts.num_blocks + row_facts.num_blocks), batch, rows


def replace_blocks(facts: RuntimeFacts, num_blocks: int) -> RuntimeFacts:
    """The same run with a pool of another size."""
    return structs.replace(facts, num_blocks=num_blocks)


def warm_prefill(executor: PrefillExecutor, batch: PrefillBatch) -> None:
    forward = executor.begin(batch)
    is_launched = False
    while not is_launched:
        is_launched = forward.run_slice(executor.num_layers)
        forward.wait_slice()
    forward.results()


def warm_decode(executor: DecodeExecutor, rows: list[StandingRow]) -> None:
    """The full batch twice (the second step meets cached tables), then a batch of one."""
    for some, version in ((rows, 1), (rows, 1), (rows[:1], 2)):
        executor.launch(some, version)
        executor.collect()


def warm_hybrid(executor: HybridExecutor, batch: PrefillBatch, rows: list[StandingRow]) -> None:
    """Both together, each alone, and a batch of one."""
    for chunk, some, version in ((batch, rows, 1), (batch, [], 1), (None, rows, 1), (None, rows[:1], 2)):
        executor.launch(chunk, some, version)
        executor.collect()
