# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Logits to tokens on the device: `model/sampler.py` without penalties and biases, in float32.

Four kernels, so that a row is read by many SMs: `scan` finds the peak of each piece of a row, `floor` puts the pieces
together and finds the lowest logit that top-k, top-p and min-p let through, `draw` adds noise piece by piece, `pick`
ends it. Rows without filters pass through `floor` without a look at their logits; a filtered row is searched by ONE
program: about 15 to 35 passes over the row per filter, from L2, ended as soon as the set is settled. What this costs
is to be measured on a GPU (on paper 5 microseconds per pass and 128k tokens).

The draw is argmax((logit - peak) / temperature + noise) among the logits at or above the floor. Floors are exact values
of the row, found by bisection over the integers that order float32, with counts in int32 and nucleus weights in fixed
point (2^-40 of the peak's weight), whose sums do not depend on their order: a draw is the same however many programs
take part. Differences to the host: float32 rounding, and tokens whose logits equal the nucleus's lowest are all kept
(the host takes them by the lower id).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from colocate.model.cuda.activations import MAX_SPLITS
from colocate.model.cuda.kernels.noise import gumbel, noise_bits, noise_key
from colocate.model.cuda.state import MAX_ENDS, DecodeState, SamplingTable

_SCAN_BLOCK = 2048
_FLOOR_BLOCK = 8192

NO_TOKEN = -1  # the row is not live
DAMAGED = -2  # its logits hold NaN or no finite maximum

# Verdicts of `floor`: a token, one of the above, or that noise decides.
_DRAW: tl.constexpr = tl.constexpr(-3)
_DRAW_UNMASKED: tl.constexpr = tl.constexpr(-4)  # every finite logit is an end: ends are not ruled out then
_NO_TOKEN: tl.constexpr = tl.constexpr(NO_TOKEN)
_DAMAGED: tl.constexpr = tl.constexpr(DAMAGED)
_LAST: tl.constexpr = tl.constexpr(2**31 - 1)
_WEIGHT_ONE: tl.constexpr = tl.constexpr(2.0**40)
_LOWEST: tl.constexpr = tl.constexpr(-2139095041)  # the order of minus infinity


@triton.jit
def _is_live(slot, active, context_len, granted_len, HAS_STATE: tl.constexpr):
    live = slot >= 0
    if HAS_STATE:
        live &= (tl.load(active + slot) != 0) & (tl.load(context_len + slot) < tl.load(granted_len + slot))
    return live


@triton.jit
def _without_ends(x, columns, ends_of_row, ENDS: tl.constexpr):
    for place in tl.static_range(ENDS):
        x = tl.where(columns == tl.load(ends_of_row + place), -float("inf"), x)
    return x


@triton.jit
def scan_kernel(
    logits, index, position, min_tokens, ends, active, context_len, granted_len, piece_max, piece_token, num_columns,
    piece_columns, pieces_stride, HAS_STATE: tl.constexpr, ENDS: tl.constexpr, PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Largest logit of a piece and the lowest token that has it: plane 0 as they are, plane 1 without the ends.

    A piece with NaN or plus infinity has the maximum plus infinity.
    """
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    slot = tl.load(index + row).to(tl.int64)
    if _is_live(slot, active, context_len, granted_len, HAS_STATE):
        masked = tl.load(position + slot) < tl.load(min_tokens + slot)
        best = tl.full([BLOCK], -float("inf"), tl.float32)
        best_kept = best
        token = tl.full([BLOCK], _LAST, tl.int32)
        token_kept = token
        last = tl.minimum((piece + 1) * piece_columns, num_columns)
        for first in range(piece * piece_columns, last, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            x = tl.load(logits + row * num_columns + columns, mask=columns < last, other=-float("inf"))
            x = tl.where(x != x, float("inf"), x)
            token = tl.where(x > best, columns, token)
            best = tl.maximum(best, x)
            if masked:
                kept = _without_ends(x, columns, ends + slot * ENDS, ENDS)
                token_kept = tl.where(kept > best_kept, columns, token_kept)
                best_kept = tl.maximum(best_kept, kept)
        peak = tl.max(best, axis=0)
        place = row * PIECES + piece
        tl.store(piece_max + place, peak)
        tl.store(piece_token + place, tl.min(tl.where(best == peak, token, _LAST), axis=0))
        if masked:
            peak = tl.max(best_kept, axis=0)
            tl.store(piece_max + pieces_stride + place, peak)
            lowest = tl.min(tl.where(best_kept == peak, token_kept, _LAST), axis=0)
            tl.store(piece_token + pieces_stride + place, lowest)


@triton.jit
def _best_piece(piece_max, piece_token, num_pieces, PIECES: tl.constexpr):
    """(largest, lowest token that has it) over the pieces of a row."""
    places = tl.arange(0, PIECES)
    mask = places < num_pieces
    values = tl.load(piece_max + places, mask=mask, other=-float("inf"))
    tokens = tl.load(piece_token + places, mask=mask, other=_LAST)
    peak = tl.max(values, axis=0)
    return peak, tl.min(tl.where(values == peak, tokens, _LAST), axis=0)


@triton.jit
def _order(x):
    """int32 that orders float32; both zeros are one."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(order):
    """The float32 of an order."""
    bits = order ^ ((order >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _count_from(
    logits_of_row, ends_of_row, masked, num_columns, peak, temperature, lowest, ENDS: tl.constexpr, BLOCK: tl.constexpr
):
    """Over the logits of order `lowest` and above: (how many, sum of exp((x - peak) / temperature) in fixed point)."""
    count = tl.zeros([BLOCK], tl.int32)
    weight = tl.zeros([BLOCK], tl.int64)
    for first in range(0, num_columns, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        in_row = columns < num_columns
        x = tl.load(logits_of_row + columns, mask=in_row, other=-float("inf"))
        if masked:
            x = _without_ends(x, columns, ends_of_row, ENDS)
        taken = in_row & (_order(x) >= lowest)
        count += taken.to(tl.int32)
        share = tl.where(taken, tl.exp((x - peak) / temperature), 0.0)
        weight += (share * _WEIGHT_ONE).to(tl.int64)
    return tl.sum(count, axis=0), tl.sum(weight, axis=0)


@triton.jit
def _floor_of_row(
    logits_of_row, ends_of_row, masked, num_columns, peak, temperature, top_k, top_p, min_p,
    ENDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The lowest logit that top-k, then top-p, then min-p keep, as in `sampler._filtered`."""
    low = tl.full([], _LOWEST, tl.int64)
    above = _order(peak).to(tl.int64) + 1
    if (top_k > 0) & (top_k < num_columns):
        # At least top_k logits lie at or above `low`, fewer at or above `high`.
        high = above
        count = num_columns
        while (high - low > 1) & (count != top_k):
            middle = low + (high - low) // 2
            found, _ = _count_from(
                logits_of_row, ends_of_row, masked, num_columns, peak, temperature, middle.to(tl.int32), ENDS, BLOCK
            )
            if found >= top_k:
                low = middle
                count = found
            else:
                high = middle
    if top_p < 1.0:
        count_low, total = _count_from(
            logits_of_row, ends_of_row, masked, num_columns, peak, temperature, low.to(tl.int32), ENDS, BLOCK
        )
        target = (total.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64)
        # What lies at or above `low` weighs the target or more, what lies at or above `high` less. A logit is kept
        # where those above it weigh less than the target: the smallest set that reaches it.
        high = above
        count_high = tl.zeros([], tl.int32)
        while (high - low > 1) & (count_low - count_high > 1):
            middle = low + (high - low) // 2
            found, weight = _count_from(
                logits_of_row, ends_of_row, masked, num_columns, peak, temperature, middle.to(tl.int32), ENDS, BLOCK
            )
            if weight >= target:
                low = middle
                count_low = found
            else:
                high = middle
                count_high = found
    floor = _value(low.to(tl.int32))
    if min_p > 0.0:
        floor = tl.maximum(floor, peak + temperature * tl.log(min_p))
    return floor


@triton.jit(do_not_specialize=["num_pieces"])
def floor_kernel(
    logits, index, position, min_tokens, ends, temperature, top_k, top_p, min_p, active, context_len, granted_len,
    piece_max, piece_token, row_peak, row_floor, row_verdict, num_columns, num_pieces, pieces_stride,
    HAS_STATE: tl.constexpr, ENDS: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row: what becomes of it (`row_verdict`), and for a draw its peak and floor."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(index + row).to(tl.int64)
    if _is_live(slot, active, context_len, granted_len, HAS_STATE):
        peak, token = _best_piece(piece_max + row * PIECES, piece_token + row * PIECES, num_pieces, PIECES)
        if tl.abs(peak) == float("inf"):
            tl.store(row_verdict + row, _DAMAGED)
        else:
            masked = tl.load(position + slot) < tl.load(min_tokens + slot)
            if masked:
                kept_peak, kept_token = _best_piece(
                    piece_max + pieces_stride + row * PIECES, piece_token + pieces_stride + row * PIECES, num_pieces,
                    PIECES,
                )  # fmt: skip
                masked = kept_peak != -float("inf")
                peak = tl.where(masked, kept_peak, peak)
                token = tl.where(masked, kept_token, token)
            heat = tl.load(temperature + slot)
            if heat <= 0.0:
                tl.store(row_verdict + row, token)
            else:
                k, p, ratio = tl.load(top_k + slot), tl.load(top_p + slot), tl.load(min_p + slot)
                floor = _floor_of_row(
                    logits + row * num_columns, ends + slot * ENDS, masked, num_columns, peak, heat, k, p, ratio,
                    ENDS, BLOCK,
                )  # fmt: skip
                tl.store(row_peak + row, peak)
                tl.store(row_floor + row, floor)
                tl.store(row_verdict + row, tl.where(masked, _DRAW, _DRAW_UNMASKED))
    else:
        tl.store(row_verdict + row, _NO_TOKEN)


@triton.jit
def draw_kernel(
    logits, index, position, min_tokens, ends, temperature, seed_key, row_peak, row_floor, row_verdict, piece_max,
    piece_token, num_columns, piece_columns, ENDS: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Largest noisy score of a piece and the lowest token that has it, into plane 0."""
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    verdict = tl.load(row_verdict + row)
    if verdict <= _DRAW:
        slot = tl.load(index + row).to(tl.int64)
        peak, floor, heat = tl.load(row_peak + row), tl.load(row_floor + row), tl.load(temperature + slot)
        drawn_position = tl.load(position + slot)
        key = noise_key(tl.load(seed_key + slot), drawn_position)
        masked = (drawn_position < tl.load(min_tokens + slot)) & (verdict == _DRAW)
        best = tl.full([BLOCK], -float("inf"), tl.float32)
        token = tl.full([BLOCK], _LAST, tl.int32)
        last = tl.minimum((piece + 1) * piece_columns, num_columns)
        for first in range(piece * piece_columns, last, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            x = tl.load(logits + row * num_columns + columns, mask=columns < last, other=-float("inf"))
            if masked:
                x = _without_ends(x, columns, ends + slot * ENDS, ENDS)
            score = (x - peak) / heat + gumbel(noise_bits(key, columns))
            score = tl.where(x >= floor, score, -float("inf"))
            token = tl.where(score > best, columns, token)
            best = tl.maximum(best, score)
        peak = tl.max(best, axis=0)
        tl.store(piece_max + row * PIECES + piece, peak)
        tl.store(piece_token + row * PIECES + piece, tl.min(tl.where(best == peak, token, _LAST), axis=0))


@triton.jit(do_not_specialize=["num_pieces"])
def pick_kernel(row_verdict, piece_max, piece_token, drawn, num_pieces, PIECES: tl.constexpr):
    """One program per row: its verdict, or the best of its pieces."""
    row = tl.program_id(0).to(tl.int64)
    verdict = tl.load(row_verdict + row)
    if verdict <= _DRAW:
        _, token = _best_piece(piece_max + row * PIECES, piece_token + row * PIECES, num_pieces, PIECES)
        tl.store(drawn + row, token)
    else:
        tl.store(drawn + row, verdict)


class RowSampler:
    """Launches the kernels above, always the same compiled ones: none is compiled once a worker serves.

    Owns nothing but the buffers it is given (`ActivationPlan`): one draw at a time.
    """

    def __init__(self, buffers: dict[str, Tensor]) -> None:
        self._piece_max, self._piece_token = buffers["piece_max"], buffers["piece_token"]
        self._row_peak, self._row_floor = buffers["row_peak"], buffers["row_floor"]
        self._row_verdict = buffers["row_verdict"]

    def sample(
        self,
        logits: Tensor,
        table: SamplingTable,
        index: Tensor,
        drawn: Tensor,
        num_sms: int,
        state: DecodeState | None = None,
    ) -> None:
        """drawn[i] = the token of logits row i, by slot index[i] of the table; NO_TOKEN or DAMAGED where there is none.

        `logits` float32 [N, vocab], contiguous; `index` and `drawn` int32 [N]. An index below 0 is skipped; with
        `state`, so is a row that is not live.
        """
        num_rows, num_columns = logits.shape
        num_pieces = pieces_of(num_rows, num_columns, num_sms)
        piece_columns = triton.cdiv(triton.cdiv(num_columns, num_pieces), _SCAN_BLOCK) * _SCAN_BLOCK
        num_pieces = triton.cdiv(num_columns, piece_columns)
        common = {"ENDS": MAX_ENDS, "PIECES": MAX_SPLITS}
        live = (index, index, index) if state is None else (state.active, state.context_len, state.granted_len)
        plane = self._piece_max.stride(0)
        scan_kernel[(num_rows, num_pieces)](
            logits, index, table.position, table.min_tokens, table.ends, *live, self._piece_max, self._piece_token,
            num_columns, piece_columns, plane, HAS_STATE=state is not None, BLOCK=_SCAN_BLOCK, num_warps=8, **common,
        )  # fmt: skip
        floor_kernel[(num_rows,)](
            logits, index, table.position, table.min_tokens, table.ends, table.temperature, table.top_k, table.top_p,
            table.min_p, *live, self._piece_max, self._piece_token, self._row_peak, self._row_floor, self._row_verdict,
            num_columns, num_pieces, plane, HAS_STATE=state is not None, BLOCK=_FLOOR_BLOCK, num_warps=16, **common,
        )  # fmt: skip
        draw_kernel[(num_rows, num_pieces)](
            logits, index, table.position, table.min_tokens, table.ends, table.temperature, table.seed_key,
            self._row_peak, self._row_floor, self._row_verdict, self._piece_max, self._piece_token,
            num_columns, piece_columns, BLOCK=_SCAN_BLOCK, num_warps=8, **common,
        )  # fmt: skip
        pick_kernel[(num_rows,)](
            self._row_verdict, self._piece_max, self._piece_token, drawn, num_pieces, PIECES=MAX_SPLITS, num_warps=1
        )


def pieces_of(num_rows: int, num_columns: int, num_sms: int) -> int:
    """Into how many pieces a row is cut: about four programs per SM of the share, none smaller than a block."""
    programs = 4 * max(num_sms, 2)
    return max(1, min(-(-programs // num_rows), -(-num_columns // _SCAN_BLOCK), MAX_SPLITS))
