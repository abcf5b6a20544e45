"""Chat templates: untrusted jinja2 from a model directory, run in a sandbox with the helpers such templates expect."""

from __future__ import annotations

import datetime
import json
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from colocate.errors import ConfigError, RequestError

# A rendered prompt longer than this is refused: no model here has a context that would hold it.
MAX_RENDERED_CHARS = 16 * 1024 * 1024


class _BoundedSandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox bounds loops over `range` but not `"a" * 10**10` or `2 ** 10**9`: these are bounded here."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = next((value for value in (left, right) if isinstance(value, str | list | tuple)), None)
        if operator == "*" and sized is not None:
            factor = right if sized is left else left
            if isinstance(factor, int) and len(sized) * factor > MAX_RENDERED_CHARS:
                raise SecurityError("a repetition is too large")
        if operator == "**" and isinstance(right, int) and abs(right) > 64:
            raise SecurityError("an exponent is too large")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now(tz=datetime.UTC).astimezone().strftime(pattern)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


class ChatTemplate:
    """A compiled template. `render` is slow and may be endless: run it off the event loop, under a time limit."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = _BoundedSandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template: Template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError("chat_template", f"line {error.lineno}: {error.message}", "mend the template") from None
        self._special_tokens = special_tokens

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool, extra: dict[str, Any]) -> str:
        """Raises RequestError where the template refuses these messages."""
        variables = {
            **self._special_tokens,
            **extra,
            "messages": messages,
            "tools": None,
            "add_generation_prompt": add_generation_prompt,
        }
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(variables):
                length += len(part)
                if length > MAX_RENDERED_CHARS:
                    raise RequestError("the rendered chat is too long", param="messages")
                parts.append(part)
        except (TemplateError, SecurityError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise RequestError(f"the model's chat template refused the messages: {error}", param="messages") from None
        return "".join(parts)
