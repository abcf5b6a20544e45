"""CRC-32 of a large segment on several threads: `zlib.crc32` of pieces, joined as zlib's `crc32_combine` does.

zlib runs at about 1 GB/s on one core; 16 GB of weights would take as long as everything else of a start.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

PIECE_BYTES = 1 << 24
_MAX_THREADS = 8
_POLYNOMIAL = 0xEDB88320  # CRC-32, reflected


def checksum(num_bytes: int, read: Callable[[int, int], memoryview]) -> int:
    """zlib.crc32 of `num_bytes`. `read(start, stop)` gives at most PIECE_BYTES and is called from several threads; its
    result is used until the same thread calls again."""

    def crc_of(start: int) -> int:
        return zlib.crc32(read(start, min(num_bytes, start + PIECE_BYTES)))

    starts = range(0, num_bytes, PIECE_BYTES)
    num_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)), max(1, len(starts)))
    with ThreadPoolExecutor(num_threads, "checksum") as pool:
        pieces = list(pool.map(crc_of, starts))
    crc32 = 0
    whole = _shift_of(PIECE_BYTES)
    for start, piece in zip(starts, pieces, strict=True):
        length = min(num_bytes, start + PIECE_BYTES) - start
        crc32 = _times(whole if length == PIECE_BYTES else _shift_of(length), crc32) ^ piece
    return crc32


def _shift_of(num_bytes: int) -> list[int]:
    """The matrix over GF(2), one column per bit, that appending `num_bytes` zero bytes applies to a CRC: that of one
    zero bit, raised to 8 * num_bytes by squaring."""
    power = [_POLYNOMIAL, *(1 << bit for bit in range(31))]
    result = [1 << bit for bit in range(32)]
    exponent = 8 * num_bytes
    while exponent:
        if exponent & 1:
            result = [_times(power, column) for column in result]
        power = [_times(power, column) for column in power]
        exponent >>= 1
    return result


def _times(matrix: list[int], vector: int) -> int:
    result = 0
    bit = 0
    while vector:
        if vector & 1:
            result ^= matrix[bit]
        vector >>= 1
        bit += 1
    return result
