"""What the library makes of a chat, asked directly: the measure for prompts."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from repl.core.parts import Parts

Message = Mapping[str, Any]


def steering(tokenizer: Any, template: str) -> list[str]:
    """Return the tokens that the library keeps from acting in what a person says."""
    added = tokenizer.added_tokens_decoder.values()
    return [str(one) for one in added if one.special or (str(one) in template and not str(one).isspace())]


def library(tokenizer: Any, messages: Sequence[Message], **options: Any) -> list[int]:
    """Return the ids of the library's own call, what persons and files say marked where it holds control tokens."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    longest = sorted(steering(tokenizer, str(tokenizer.chat_template)), key=len, reverse=True)
    control = re.compile("|".join(map(re.escape, longest)) or "(?!)")
    options = {"add_generation_prompt": "continue_final_message" not in options, **options}
    if not any(control.search(str(one["content"])) for one in messages if one["role"] != "assistant"):
        return list(tokenizer.apply_chat_template(list(messages), **options)["input_ids"])
    marked = [one if one["role"] == "assistant" else mark_control_tokens(dict(one), control) for one in messages]
    text = tokenizer.apply_chat_template(marked, tokenize=False, **options)
    return list(tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)["input_ids"])


def said(raw: str, thinking: str = "", answer: str = "", *calls: dict[str, Any]) -> dict[str, Any]:
    """Return a reply as a conversation keeps it."""
    return {"role": "assistant", "content": raw, "parts": Parts(thinking, answer, calls)}
