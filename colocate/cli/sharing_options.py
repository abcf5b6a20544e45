"""The options that shape a pattern which shares prefixes: one table for every command that makes such a load."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from colocate.workload.patterns import PatternShape

PANEL = "Sharing"
# Field of PatternShape -> help.
HELP: Mapping[str, str] = {
    "shared_tokens": "Of the instructions, document or prefix shared.",
    "num_shared": "Documents open at a time, children of an agent's step, or conversations under way.",
    "num_uses": "Questions to a document, depth of an agent's tree, or turns of a conversation.",
    "num_prefixes": "eviction-pressure: how many return in turn.",
    "block_tokens": "Tokens that one prefix id stands for.",
}
# Commands that read traces have a --block-tokens of their own, of Mooncake's.
_SPELLINGS: Mapping[str, tuple[str, ...]] = {"block_tokens": ("--prefix-block-tokens",)}
SHORTER: Mapping[str, tuple[str, ...]] = {"block_tokens": ("--prefix-block-tokens", "--block-tokens")}


def with_sharing(
    spellings: Mapping[str, tuple[str, ...]] = _SPELLINGS,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per field of PatternShape. The command gets those that were given as its `sharing`
    argument, a dict from field to number."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def wrapper(**arguments: Any) -> None:
            given = {name: arguments.pop(f"shape_{name}") for name in HELP}
            sharing = {name: value for name, value in given.items() if value is not None}
            command(sharing=sharing, **arguments)

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != "sharing"]
        own += [_parameter(name, spellings.get(name, ("--" + name.replace("_", "-"),))) for name in HELP]
        wrapper.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        wrapper.__doc__, wrapper.__name__ = command.__doc__, command.__name__
        return wrapper

    return decorate


def _parameter(name: str, flags: tuple[str, ...]) -> inspect.Parameter:
    help_text = f"{HELP[name]} [dim](default {getattr(PatternShape(), name)})[/]"
    option = typer.Option(*flags, metavar="N", help=help_text, rich_help_panel=PANEL, show_default=False)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(f"shape_{name}", kind, default=None, annotation=Annotated[int | None, option])
