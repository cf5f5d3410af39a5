"""Rendering of turns by the tokenizer's chat template, or as ChatML if it has none."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spin_composer.data.dates import TemplateDate
from spin_composer.data.rows import Turn
from spin_composer.data.text_slots import TextSlots
from spin_composer.data.text_tokenizer import text_tokenizer
from spin_composer.data.tokenizer_errors import TemplateFailure, errors_as

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_CHAT_TEMPLATE = (
    r"{%- for message in messages -%}"
    r"{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    r"{%- endfor -%}"
    r"{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""ChatML, llm-foundry's default for tokenizers without a template."""


# transformers 5 drops a turn's keys that are null before the template sees it, and templates ask
# for `content is none` beside calls: such turns are handed over as a variable. One line, whose end
# the templates' own settings (trim_blocks) drop.
_WITH_NULL = "{% set messages = spin_messages %}\n"


class ChatTemplate:
    """Renders turns as text.

    Args:
        tokenizer: Has the template.
        date_string: The date for the template; today's if None.
        quiet: Do not warn about a template that prints today's date.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        date_string: str | None = None,
        quiet: bool = False,
    ) -> None:
        self._tokenizer = text_tokenizer(tokenizer)
        self.source = str(tokenizer.chat_template or DEFAULT_CHAT_TEMPLATE)
        self._date = TemplateDate(date_string, quiet)
        self._slots = None
        if not isinstance(tokenizer.chat_template, Mapping) and not renders_itself(tokenizer):
            self._slots = TextSlots(self.source, self._rendered)

    def __call__(
        self,
        messages: Sequence[Turn],
        generation_prompt: bool = False,
        tools: Sequence[object] | None = None,
        arguments: Mapping[str, object] | None = None,
    ) -> str:
        """Return the turns' text.

        Args:
            messages: The turns.
            generation_prompt: Add the generation prompt.
            tools: The tools that the turns may call.
            arguments: Further template arguments; they take precedence over the date.

        Raises:
            InputError: The template prints a date, and ``date_string`` is not a date.
            TemplateFailure: The template cannot render these turns.
        """
        if self._slots is None or tools or arguments:
            return self._rendered(messages, generation_prompt, tools, arguments)
        return self._slots(messages, generation_prompt)

    def _rendered(
        self,
        messages: Sequence[Turn],
        generation_prompt: bool,
        tools: Sequence[object] | None = None,
        arguments: Mapping[str, object] | None = None,
    ) -> str:
        template = None if self._tokenizer.chat_template is not None else DEFAULT_CHAT_TEMPLATE
        if self._date.patch_template(self.source):
            # A tokenizer may have several templates, one of them for tools.
            template = self._choose(tools)
            template = self._date.patch_template(template) or template
        given = dict(arguments or {})
        if any(message.get("content", "") is None for message in messages):
            template = _WITH_NULL + (template or self._choose(tools))
            given["spin_messages"] = messages

        def render(**date: object) -> str:
            with errors_as(TemplateFailure):
                return self._tokenizer.apply_chat_template(
                    messages, tokenize=False, tools=tools, add_generation_prompt=generation_prompt,
                    chat_template=template, **{**date, **given},
                )  # fmt: skip

        return self._date.render(render, self.source)

    def _choose(self, tools: Sequence[object] | None) -> str:
        with errors_as(TemplateFailure):  # it may have no template for turns with tools
            return self._tokenizer.get_chat_template(None, tools)

    def source_for(self, tools: Sequence[object] | None) -> str:
        """Return the template that turns with these tools are rendered by.

        Raises:
            TemplateFailure: The tokenizer has several templates, and none for such turns.
        """
        if not isinstance(self._tokenizer.chat_template, Mapping):
            return self.source
        return self._choose(tools)

    def names_for(self, tools: Sequence[object] | None) -> tuple[str, str] | None:
        """Return the names of the template for turns without tools, and of that for turns with.

        None unless the tokenizer has both, and there are no tools.
        """
        templates = self._tokenizer.chat_template
        names = ("default", "tool_use")
        both = isinstance(templates, Mapping) and all(name in templates for name in names)
        return names if both and not tools else None


def with_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer that has the template which :class:`ChatTemplate` renders by.

    Args:
        tokenizer: Left as it is; a copy is returned if it has no template.
    """
    if tokenizer.chat_template is not None or renders_itself(tokenizer):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    return tokenizer


def renders_itself(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether chats are rendered by code of the tokenizer's own class, not by its template."""
    made = type(tokenizer).apply_chat_template
    return made.__module__ != "transformers.tokenization_utils_base"
