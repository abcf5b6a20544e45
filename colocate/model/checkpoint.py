"""What lies in a checkpoint of safetensors files, and whether it is the model that config.json describes.

Format of a file: an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the
data. Only headers are read here.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colocate.errors import ConfigError
from colocate.model.config import ModelConfig
from colocate.model.layout import Part, WeightEntry, WeightLayout

_REMEDY = "download or export the checkpoint again"

# bfloat16 travels as its bit pattern: numpy has no such type.
NUMPY_TYPES: dict[str, npt.DTypeLike] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}

# Written by some exporters, derived from the configuration, never a weight.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file. `offset_bytes` is absolute."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int


def plan_loading(model_dir: Path, config: ModelConfig, layout: WeightLayout) -> list[tuple[WeightEntry, Part, Stored]]:
    """Where each part of each entry comes from, in the layout's order.

    Raises ConfigError naming the file and the tensor for anything missing, unexpected, truncated or ill-shaped.
    """
    stored = _index(model_dir)
    plan = [(entry, part, _find(stored, entry, part, model_dir)) for entry in layout.entries for part in entry.parts]
    _refuse_unexpected(stored, layout, config)
    return plan


def _index(model_dir: Path) -> dict[str, Stored]:
    if not model_dir.is_dir():
        raise ConfigError(str(model_dir), "is not a directory", "give a Hugging Face model directory")
    index_path = model_dir / "model.safetensors.index.json"
    paths = _shards(index_path) if index_path.exists() else sorted(model_dir.glob("*.safetensors"))
    if not paths:
        raise ConfigError(str(model_dir), "holds no *.safetensors file", "convert the weights to safetensors")
    stored: dict[str, Stored] = {}
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


def _read_header(path: Path) -> list[Stored]:
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
            tensors.append(Stored(path, name, facts["dtype"], tuple(facts["shape"]), 8 + header_bytes + begin))
            if 8 + header_bytes + end > size_bytes:
                missing = 8 + header_bytes + end - size_bytes
                raise ConfigError(f"{path}: {name}", f"file is truncated, {missing} bytes are missing", _REMEDY)
            if facts["dtype"] in NUMPY_TYPES:
                want = prod(facts["shape"]) * np.dtype(NUMPY_TYPES[facts["dtype"]]).itemsize
                if begin < 0 or end - begin != want:
                    raise ConfigError(f"{path}: {name}", "its data offsets do not fit its shape", _REMEDY)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(str(path), f"is not a safetensors file: {error!r}", _REMEDY) from None
    return tensors


def _find(stored: dict[str, Stored], entry: WeightEntry, part: Part, model_dir: Path) -> Stored:
    source = stored.get(part.checkpoint_name)
    if source is None:
        problem = f"tensor {part.checkpoint_name} is missing"
        raise ConfigError(str(model_dir), problem, "the weights do not belong to this config.json")
    where = f"{source.path}: {source.name}"
    if source.dtype not in NUMPY_TYPES:
        raise ConfigError(where, f"dtype {source.dtype} is not supported", "export as F32, F16 or BF16")
    want = (part.num_rows, *entry.shape[1:])
    if source.shape != want:
        problem = f"shape {list(source.shape)} does not match config.json, which asks for {list(want)}"
        raise ConfigError(where, problem, "the weights do not belong to this config.json")
    return source


def _refuse_unexpected(stored: dict[str, Stored], layout: WeightLayout, config: ModelConfig) -> None:
    known = {part.checkpoint_name for entry in layout.entries for part in entry.parts}
    if config.tie_word_embeddings:
        known.add("lm_head.weight")  # some exporters write the tied copy out
    for name, source in stored.items():
        if name not in known and not name.endswith(_IGNORED_SUFFIXES):
            problem = f"tensor {name} is not part of a {config.architecture} with this config.json"
            raise ConfigError(str(source.path), problem, "the model has parts that are not supported")
