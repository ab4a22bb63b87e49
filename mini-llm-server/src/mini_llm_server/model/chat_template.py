"""A model's chat template: messages to the text that the model was trained to continue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

from mini_llm_server.model.tokenizer import Message


class ChatTemplate:
    """A Jinja template in a sandbox, with what transformers gives its templates.

    Args:
        source: the template.
        variables: what else it may use: bos_token and the like.

    Raises:
        ValueError: it is no template.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_in_template
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = _to_json
        self._variables = dict(variables)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ValueError(f"the chat template is broken: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """Return the conversation up to where the assistant's answer starts.

        Raises:
            ValueError: the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, **self._variables
            )
        except (jinja2.TemplateError, TypeError, ArithmeticError, LookupError,
                AttributeError, RecursionError, OverflowError) as error:  # fmt: skip
            raise ValueError(f"the chat template refuses these messages: {error}") from error


def _raise_in_template(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    """As transformers has it: Jinja's own escapes <, > and & for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
