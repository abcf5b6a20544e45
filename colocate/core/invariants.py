"""What must hold after every event. Used by tests after each step, and by `replay --check`."""

from __future__ import annotations

from collections import Counter

from colocate.core.engine import Engine
from colocate.core.request import AfterLeave, Request, Stage
from colocate.errors import InvariantError

HOMES = {
    Stage.WAITING: "queue",
    Stage.PREFILLING: "prefill",
    Stage.CANCELLING: "prefill",
    Stage.READY: "ready",
    Stage.DECODING: "rows",
    Stage.LEAVING: "rows",
}


def check_invariants(engine: Engine) -> None:
    """Raises InvariantError with the story of the request that breaks a rule. O(requests + blocks)."""
    _check_blocks(engine)
    for request in engine.books.requests.values():
        _check_home(engine, request)
        _check_tokens(engine, request)
    _check_no_strangers(engine)


def _fail(request: Request, message: str) -> None:
    raise InvariantError(f"request {request.request_id} ({request.stage.value}): {message}", tuple(request.story))


def _check_blocks(engine: Engine) -> None:
    """No block is leaked, owned twice, or free while owned. The prefix tree is one more holder of its blocks."""
    pool, requests, tree = engine.books.pool, engine.books.requests.values(), engine.books.memory.tree
    tree.check()
    owners = Counter(block for request in requests for block in request.block_table)
    owners.update(tree.blocks())
    for block in range(pool.num_blocks):
        if pool.ref_count(block) != owners[block]:
            raise InvariantError(f"block {block} counts {pool.ref_count(block)} holders and has {owners[block]}")
    if pool.num_free + len(owners) != pool.num_blocks:
        raise InvariantError(f"{pool.num_blocks} blocks, {pool.num_free} free, {len(owners)} held")
    draining = sum(
        len(request.block_table)
        for request in requests
        if request.after_leave in (AfterLeave.FINISH, AfterLeave.REQUEUE)
    )
    if draining != pool.num_draining:
        raise InvariantError(f"{draining} blocks drain, the account says {pool.num_draining}")


def _check_home(engine: Engine, request: Request) -> None:
    """Every request is in exactly one place, the one its stage names."""
    request_id = request.request_id
    places = [
        name
        for name, members in (
            ("queue", engine.books.queue),
            ("prefill", engine.prefill.running),
            ("ready", engine.decode.ready),
            ("rows", engine.decode.rows),
        )
        if request_id in members
    ]
    if places != [HOMES[request.stage]]:
        _fail(request, f"is in {places}, belongs in {HOMES[request.stage]}")
    leaving = request.stage in (Stage.LEAVING, Stage.CANCELLING)
    if leaving != (request.after_leave is not None):
        _fail(request, f"after_leave is {request.after_leave}")


def _check_tokens(engine: Engine, request: Request) -> None:
    capacity = len(request.block_table) * engine.books.pool.block_size
    if request.num_computed > capacity:
        _fail(request, f"{request.num_computed} tokens computed, blocks hold {capacity}")
    if request.num_computed > request.num_prefill_tokens:
        _fail(request, f"{request.num_computed} tokens computed of {request.num_prefill_tokens}")
    if len(request.output_token_ids) > max(request.params.max_tokens, 0):
        _fail(request, f"{len(request.output_token_ids)} output tokens, at most {request.params.max_tokens} asked for")
    in_decode = request.stage in (Stage.READY, Stage.DECODING, Stage.LEAVING)
    if in_decode and request.num_computed != request.num_prefill_tokens - 1:
        _fail(request, "decode feeds exactly the one token whose KV is not written")
    if request.stage is Stage.WAITING and (request.block_table or request.num_computed):
        _fail(request, "waits with blocks or KV")


def _check_no_strangers(engine: Engine) -> None:
    """Nothing outside the books is tracked anywhere."""
    known = engine.books.requests
    for name, members in (
        ("prefill", engine.prefill.running),
        ("ready", engine.decode.ready),
        ("rows", engine.decode.rows),
        ("starved", engine.decode.starved),
    ):
        for request_id in members:
            if request_id not in known:
                raise InvariantError(f"request {request_id} is in {name} but not in the books")
    num_urgent = sum(batch.urgent for batch in engine.prefill.batches)
    if num_urgent > 1 or len(engine.prefill.batches) - num_urgent > engine.settings.prefill_depth:
        raise InvariantError(f"{len(engine.prefill.batches)} prefill batches in flight, {num_urgent} of them urgent")
