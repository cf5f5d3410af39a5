"""``tokenize: turns``: tokenization turn by turn, as in llm-foundry's SFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spin_composer.data.bad_row import BadRow, Location, template_error, tokenizer_error
from spin_composer.data.control_tokens import ControlTokenFinder, control_tokens, iter_texts
from spin_composer.data.counts import DataReport
from spin_composer.data.dates import ANOTHER_DAY
from spin_composer.data.rendering import Renderer
from spin_composer.data.rows import Row
from spin_composer.data.stop import StopRule
from spin_composer.data.template_losses import KEYS_WITHOUT_TEXT
from spin_composer.data.text_tokenizer import text_tokenizer
from spin_composer.data.tokenizer_errors import TemplateFailure, TokenizerFailure
from spin_composer.data.turn_encoder import TurnEncoder, TurnFault
from spin_composer.errors import format_value
from spin_composer.settings.dataset import DatasetConfig

if TYPE_CHECKING:
    import logging

    from transformers import PreTrainedTokenizerBase


class TurnTokenizer:
    """Returns the ids that llm-foundry's SFT trains on.

    Args:
        tokenizer: The model's tokenizer.
        config: The checked ``dataset:`` block.
        kind: plain or chat.
        rule: How responses end.
        legacy: Drop what early versions dropped, and skip checks that they did not have.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: DatasetConfig,
        kind: str,
        rule: StopRule,
        legacy: bool,
    ) -> None:
        self._encode = TurnEncoder(tokenizer, config.date_string)
        self._tokenizer, self._old = tokenizer, legacy
        self._kind, self._config = kind, config
        self._spelled = ControlTokenFinder(tokenizer, control_tokens(tokenizer))
        self._stop_text = text_tokenizer(tokenizer).convert_ids_to_tokens(rule.token_id)
        self._renderer = (
            Renderer(tokenizer, config.date_string, quiet=True)
            if kind == "chat" and not legacy else None
        )  # fmt: skip
        if kind == "plain" and tokenizer("a")["input_ids"][-1] == rule.token_id:  # pyright: ignore
            _log().warning(
                "The tokenizer %s ends every text with EOS, the prompts too: SFT by llm-foundry "
                "trains on that, and so does SPIN. Set tokenizer.kwargs.add_eos_token: false for "
                "both if it is not meant.", format_value(tokenizer.name_or_path),
            )  # fmt: skip
        if kind == "chat" and "date_string" in str(tokenizer.chat_template) and (
            config.date_string is None
        ):  # fmt: skip
            _log().warning("The chat template prints today's date, %s", ANOTHER_DAY)

    def __call__(
        self, row: Row, where: Location, report: DataReport
    ) -> tuple[list[int], list[int], str]:
        """Return the ids before the last response, those of the last response, and ``""``."""
        if self._renderer is not None and self._holds_other_roles(row):
            messages = row["messages"]
            try:
                whole = self._renderer.text(messages, row)
            except TemplateFailure:  # the attempt turn by turn says why
                whole = None
            if whole is not None:
                self._renderer.check_contents(messages, row, whole, where)
        row = self._with_known_keys(row, where)
        try:
            turns = self._encode(row)
        except (TurnFault, TemplateFailure, TokenizerFailure) as error:
            raise self._encoding_error(row, where, error) from error
        if not self._old:
            check_control_tokens(
                row,
                self._spelled,
                self._stop_text,
                where,
                report,
                self._config.special_tokens_in_text == "error",
            )
        prompt: list[int] = []
        for asked, answered in turns[:-1]:
            prompt += asked + answered
        last, response = turns[-1]
        prompt += last
        bos = self._tokenizer.bos_token_id
        # The text spells out BOS, and the tokenizer or the template adds it as well.
        if bos is not None and prompt[:2] == [bos, bos]:
            prompt = prompt[1:]
        return prompt, response, ""

    def _holds_other_roles(self, row: Row) -> bool:
        return any(turn["role"] not in ("user", "assistant") for turn in row["messages"])

    def _with_known_keys(self, row: Row, where: Location) -> Row:
        """Return the row with only the keys that are encoded; reject others."""
        if self._kind == "plain":
            return row
        if not self._old:
            keys = {
                f"messages[{i}].{key}"
                for i, message in enumerate(row["messages"])
                for key in message.keys() - KEYS_WITHOUT_TEXT
            }
            keys |= row.keys() - {"messages"}
            for key in sorted(keys):
                raise BadRow(
                    where, "unused key", f"{key} is not used by tokenize: turns, so it would be "
                    "lost", "Set tokenize: rendering, or remove it.",
                )  # fmt: skip
        return {
            "messages": [
                {"role": str(message["role"]), "content": message["content"]}
                for message in row["messages"]
            ]
        }

    def _encoding_error(
        self, row: Row, where: Location, error: TurnFault | TemplateFailure | TokenizerFailure
    ) -> BadRow:
        if isinstance(error, TokenizerFailure):
            what = f"the row {format_value(row)}"
            if self._kind == "plain":
                prompt, response = map(format_value, (row["prompt"], row["response"]))
                what = f"prompt={prompt} and response={response}"
            return tokenizer_error(where, what, error)
        who = "the chat template refuses"
        if isinstance(error, TurnFault):
            who = "tokenize: turns cannot encode"
        more = "; with tokenize: turns no turn may change once others follow, with rendering it may"
        return template_error(where, error, row.get("messages"), who, more)


def _log() -> logging.Logger:
    import logging

    return logging.getLogger(__name__)


def check_control_tokens(
    row: Row,
    spelled: ControlTokenFinder,
    stop: str,
    where: Location,
    report: DataReport,
    refuse: bool,
) -> None:
    """Reject a response that spells out a control token; count, or refuse, such a prompt.

    Raises:
        BadRow: Names the token.
    """
    before, answer = split_answer(row)
    for text in iter_texts(answer):
        # A stop token within a response is found by its id; at the end it may be spelled out.
        for token in spelled(text):
            if token != stop:
                raise _control_token_error(token, text, "response", where, "")
    for text in iter_texts(before):
        if found := spelled(text):
            remedy = ", or set train_loader.dataset.special_tokens_in_text: text"
            if "messages" not in row:  # else their own structure would become text
                remedy += ", unless the rows are rendered already and mean the token"
            if refuse:
                raise _control_token_error(found[0], text, "prompt", where, remedy)
            report.spelled_prompts += 1
            if report.spelled_prompts == 1:
                report.note(str(_control_token_error(found[0], text, "prompt", where, remedy)))
            return


def without_end(text: str, stop: str) -> str:
    """Return a text without the stop token that it spells out at its end, or before white space."""
    end = text.rstrip()
    return end.removesuffix(stop) if end.endswith(stop) else text


def split_answer(row: Row) -> tuple[object, object]:
    """Split a row into what precedes the answer, and the answer."""
    if "messages" not in row:
        return row["prompt"], row["response"]
    return [row["messages"][:-1], row.get("tools")], row["messages"][-1]


def _control_token_error(token: str, text: str, part: str, where: Location, remedy: str) -> BadRow:
    how = "" if token in text else " once the tokenizer has normalized it"
    return BadRow(
        where, f"control token in the {part}",
        f"the {part} {format_value(text)} spells out {token!r}{how}, which becomes a control token",
        f"Remove it from the text{remedy}.",
    )  # fmt: skip
