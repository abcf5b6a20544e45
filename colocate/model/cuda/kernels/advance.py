# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""After a draw: the drawn token becomes the next one fed, and rows that are over stand still.

The rule is `core/stop.py`'s, so the host, which applies that one to the same tokens, comes to the same rows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from colocate.model.cuda.state import MAX_ENDS, DecodeState

_BLOCK = 128


@triton.jit(do_not_specialize=["num_rows"])  # one kernel for every bucket
def advance_kernel(
    index, drawn, token, context_len, active, granted_len, position, min_tokens, max_tokens, ends, end_finishes,
    num_rows, ENDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows without a token (drawn < 0), inactive or ungranted ones are left as they are."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_step = rows < num_rows
    slots = tl.load(index + rows, mask=in_step, other=0)
    new = tl.load(drawn + rows, mask=in_step, other=-1)
    length = tl.load(context_len + slots, mask=in_step, other=0)
    live = in_step & (new >= 0)
    live &= tl.load(active + slots, mask=in_step, other=0) != 0
    live &= length < tl.load(granted_len + slots, mask=in_step, other=0)
    num_output_tokens = tl.load(position + slots, mask=live, other=0) + 1
    is_end = tl.zeros([BLOCK], tl.int1)
    for place in tl.static_range(ENDS):
        same = tl.load(ends + slots * ENDS + place, mask=live, other=-1) == new
        is_end |= same & (tl.load(end_finishes + slots * ENDS + place, mask=live, other=0) != 0)
    is_over = is_end & (num_output_tokens >= tl.load(min_tokens + slots, mask=live, other=0))
    is_over |= num_output_tokens >= tl.load(max_tokens + slots, mask=live, other=0)
    tl.store(token + slots, new, mask=live)
    tl.store(context_len + slots, length + 1, mask=live)
    tl.store(position + slots, num_output_tokens, mask=live)
    tl.store(active + slots, (~is_over).to(tl.int32), mask=live)


def advance(state: DecodeState, index: Tensor, drawn: Tensor) -> None:
    """`drawn` int32 [B]: a token for each slot of `index` [B], negative where there is none. Slots occur once."""
    num_rows = index.shape[0]
    table = state.sampling
    advance_kernel[(triton.cdiv(num_rows, _BLOCK),)](
        index, drawn, state.token, state.context_len, state.active, state.granted_len, table.position,
        table.min_tokens, table.max_tokens, table.ends, table.end_finishes, num_rows, ENDS=MAX_ENDS, BLOCK=_BLOCK,
        num_warps=4,
    )  # fmt: skip
