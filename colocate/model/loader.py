"""safetensors -> the weights segment, without torch and without a second copy in memory.

Each file is mapped, converted row range by row range straight into its slice of the segment, and the pages read are
given back, so the resident peak is one copy of the weights plus one chunk. Format: an 8-byte little-endian header
length, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colocate.errors import ConfigError
from colocate.model.config import ModelConfig
from colocate.model.layout import Part, WeightEntry, WeightLayout

_CHUNK_ELEMENTS = 1 << 21
_REMEDY = "download or export the checkpoint again"

# bfloat16 travels as its bit pattern: numpy has no such type.
_NUMPY_TYPES: dict[str, npt.DTypeLike] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}

# Written by some exporters, derived from the configuration, never a weight.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in a file. `offset_bytes` is absolute."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int


def load_weights(
    model_dir: Path, config: ModelConfig, layout: WeightLayout, buffer: memoryview, progress: Progress
) -> None:
    """Fill `buffer` (layout.nbytes long, owned by the caller) from the checkpoint in `model_dir`.

    `progress(done_bytes, total_bytes)` counts bytes of the segment and is called after every checkpoint tensor.
    Raises ConfigError naming the file and the tensor for anything missing, unexpected, truncated or ill-shaped; the
    whole checkpoint is checked before the first byte is written.
    """
    stored = _index(model_dir)
    plan = [(entry, part, _find(stored, entry, part, model_dir)) for entry in layout.entries for part in entry.parts]
    _refuse_unexpected(stored, layout, config)
    path: Path | None = None
    done_bytes = 0
    for entry, part, source in plan:
        if source.path != path:
            path = source.path
            mapped = _map(path)  # the mapping before it is released with its last reference
        _copy(mapped, source, buffer, entry, part)
        done_bytes += entry.nbytes * part.num_rows // entry.shape[0]
        progress(done_bytes, layout.nbytes)


def _index(model_dir: Path) -> dict[str, _Stored]:
    if not model_dir.is_dir():
        raise ConfigError(str(model_dir), "is not a directory", "give a Hugging Face model directory")
    index_path = model_dir / "model.safetensors.index.json"
    paths = _shards(index_path) if index_path.exists() else sorted(model_dir.glob("*.safetensors"))
    if not paths:
        raise ConfigError(str(model_dir), "holds no *.safetensors file", "convert the weights to safetensors")
    stored: dict[str, _Stored] = {}
    for path in paths:
        stored.update({tensor.name: tensor for tensor in _read_header(path)})
    return stored


def _shards(index_path: Path) -> list[Path]:
    try:
        weight_map: dict[str, str] = json.loads(index_path.read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(str(index_path), f"is not an index of shards: {error!r}", _REMEDY) from None
    paths = [index_path.parent / name for name in names]
    for path in paths:
        if not path.exists():
            raise ConfigError(str(path), f"shard is missing, {index_path.name} names it", _REMEDY)
    return paths


def _read_header(path: Path) -> list[_Stored]:
    size_bytes = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(8)
            header_bytes = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            if header_bytes < 0 or 8 + header_bytes > size_bytes:
                raise ConfigError(str(path), "is truncated: its header is not complete", _REMEDY)
            header: dict[str, Any] = json.loads(file.read(header_bytes))
        tensors = []
        for name, facts in header.items():
            if name == "__metadata__":
                continue
            begin, end = facts["data_offsets"]
            tensors.append(_Stored(path, name, facts["dtype"], tuple(facts["shape"]), 8 + header_bytes + begin))
            if 8 + header_bytes + end > size_bytes:
                missing = 8 + header_bytes + end - size_bytes
                raise ConfigError(f"{path}: {name}", f"file is truncated, {missing} bytes are missing", _REMEDY)
            if facts["dtype"] in _NUMPY_TYPES:
                want = prod(facts["shape"]) * np.dtype(_NUMPY_TYPES[facts["dtype"]]).itemsize
                if begin < 0 or end - begin != want:
                    raise ConfigError(f"{path}: {name}", "its data offsets do not fit its shape", _REMEDY)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(str(path), f"is not a safetensors file: {error!r}", _REMEDY) from None
    return tensors


def _find(stored: dict[str, _Stored], entry: WeightEntry, part: Part, model_dir: Path) -> _Stored:
    source = stored.get(part.checkpoint_name)
    if source is None:
        problem = f"tensor {part.checkpoint_name} is missing"
        raise ConfigError(str(model_dir), problem, "the weights do not belong to this config.json")
    where = f"{source.path}: {source.name}"
    if source.dtype not in _NUMPY_TYPES:
        raise ConfigError(where, f"dtype {source.dtype} is not supported", "export as F32, F16 or BF16")
    want = (part.num_rows, *entry.shape[1:])
    if source.shape != want:
        problem = f"shape {list(source.shape)} does not match config.json, which asks for {list(want)}"
        raise ConfigError(where, problem, "the weights do not belong to this config.json")
    return source


def _refuse_unexpected(stored: dict[str, _Stored], layout: WeightLayout, config: ModelConfig) -> None:
    known = {part.checkpoint_name for entry in layout.entries for part in entry.parts}
    if config.tie_word_embeddings:
        known.add("lm_head.weight")  # some exporters write the tied copy out
    for name, source in stored.items():
        if name not in known and not name.endswith(_IGNORED_SUFFIXES):
            problem = f"tensor {name} is not part of a {config.architecture} with this config.json"
            raise ConfigError(str(source.path), problem, "the model has parts that are not supported")


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_SEQUENTIAL)
    return mapped


def _copy(mapped: mmap.mmap, source: _Stored, buffer: memoryview, entry: WeightEntry, part: Part) -> None:
    """Convert chunk by chunk from the mapping to the slice of the segment."""
    count = prod(source.shape)
    row_bytes = entry.nbytes // entry.shape[0]
    start = entry.offset_bytes + part.first_row * row_bytes
    target_type = np.float32 if entry.dtype == "float32" else np.uint16
    target = np.frombuffer(buffer, target_type, count, start)
    stored_type = np.dtype(_NUMPY_TYPES[source.dtype])
    values = np.ndarray((count,), stored_type, mapped, source.offset_bytes)
    for begin in range(0, count, _CHUNK_ELEMENTS):
        chunk = values[begin : begin + _CHUNK_ELEMENTS]
        _convert(chunk, source.dtype, entry.dtype, target[begin : begin + len(chunk)])
    del values  # the mapping cannot close while an array looks into it
    first = source.offset_bytes // mmap.PAGESIZE * mmap.PAGESIZE
    end = source.offset_bytes + count * stored_type.itemsize
    mapped.madvise(mmap.MADV_DONTNEED, first, end - first)


def _convert(chunk: npt.NDArray[Any], stored_dtype: str, dtype: str, target: npt.NDArray[Any]) -> None:
    if dtype == "float32":
        if stored_dtype == "BF16":
            np.left_shift(chunk.astype(np.uint32), 16, out=target.view(np.uint32))
        else:
            target[:] = chunk
    elif stored_dtype == "BF16":
        target[:] = chunk
    else:
        target[:] = _round_to_bfloat16(chunk.astype(np.float32))


def _round_to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even, as hardware does; a NaN stays a (quiet) NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
