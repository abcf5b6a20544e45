"""Where a model's files come from: the embedded demo, a local directory, or the Hugging Face hub."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

from colocate.errors import ConfigError

DEMO = "demo"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
# Weights only as safetensors: nothing that is read from the hub can run code.
_WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json"]
_OTHER_FILES = ["*.json", "tokenizer*", "*.model", "*.jinja", "*.txt"]


def locate_model(model: str, revision: str | None = None, *, needs_weights: bool = True) -> Path:
    """The directory with config.json, safetensors and tokenizer. A hub id is downloaded (or taken from the cache);
    without its weights where they are not needed.

    Raises ConfigError where there is none.
    """
    if model == DEMO:
        return _embedded_demo()
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(path)
    if path.exists():
        raise ConfigError("model", f"{model} is a file", "name the directory that holds config.json")
    if _HUB_ID.match(model) and not model.startswith((".", "/", "~")):
        files = [*_WEIGHT_FILES, *_OTHER_FILES] if needs_weights else _OTHER_FILES
        return _checked(_from_hub(model, revision, files))
    raise ConfigError("model", f"there is no directory {model}", "give a Hugging Face directory, a hub id, or `demo`")


def model_label(model: str) -> str:
    """The name clients use when none is given: the hub id, the directory's name, or `demo`."""
    if model == DEMO or (_HUB_ID.match(model) and not Path(model).expanduser().exists()):
        return model
    return Path(model).expanduser().resolve().name


def _embedded_demo() -> Path:
    root = importlib.resources.files("colocate.model") / "demo"
    path = Path(str(root))
    if not (path / "config.json").is_file():
        raise ConfigError("model", "this installation does not contain the demo model", "give a model directory")
    return path


def _checked(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ConfigError(str(path), "has no config.json", "name a directory in Hugging Face format")
    return path.resolve()


def _from_hub(model: str, revision: str | None, files: list[str]) -> Path:
    # Imported here: only this path needs it, and it costs a second and 60 MB.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=files))
    except RevisionNotFoundError:
        raise ConfigError("revision", f"{model} has no revision {revision!r}", "look it up on the hub") from None
    except RepositoryNotFoundError:
        remedy = "check the spelling, or give a local directory; a private model needs `hf auth login`"
        raise ConfigError("model", f"the hub has no model {model!r}, and there is no such directory", remedy) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "connect to the network, or download it elsewhere and give the directory"
        raise ConfigError("model", f"{model} is neither here nor could it be downloaded: {reason}", remedy) from None
