"""Replies that are held to a form: what the mask costs at each token, and what given tokens save."""

import copy
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import lookup
import steps
from driving import finish, opened, run
from figures import Ground, Row

from repl.core import settings
from repl.generation import decode
from repl.generation.interface import Request
from repl.session.session import Session

FORMS = {
    "a text that may be anything": r"/[\s\S]*/",
    "a long JSON string": '{"type": "object", "properties": {"text": {"type": "string", "minLength": 2000}}, '
    '"required": ["text"], "additionalProperties": false}',
}
FIELDS = "/format first_name, last_name, year_of_birth int, place_of_birth, nationality, main_occupation"
PROMPT = "Tell me about Ada Lovelace."


def rows(ground: Ground) -> list[Row]:
    """Measure single steps in turn, then whole replies of six fields, with tokens given and without."""
    with opened(ground.model, reuse="off") as session:
        finish(session.run_on_model(lambda emit: lookup.single_thread()))
        masks = [row for name, form in FORMS.items() for row in mask_rows(session, name, form, ground.rounds)]
        run(session, "/greedy", "/max 120", FIELDS)
        pairs = [pair(session, turn) for turn in range(ground.rounds)]
    return [*masks, lookup.row("tokens given by a form of six fields", pairs, 1.2)]


def mask_rows(session: Session, name: str, form: str, rounds: int) -> list[Row]:
    """Let our loop make a reply with and without the mask, step by step in turn."""
    resident = session.store.current()
    inputs = resident.tokenizer(steps.PROMPT, return_tensors="pt")
    config = copy.deepcopy(resident.model.generation_config)
    config.do_sample, config.min_new_tokens, config.max_new_tokens = False, steps.TOKENS, steps.TOKENS
    given = {**inputs, "generation_config": config}
    chosen = session.settings.put("format", settings.read_setting("format", form), "you")
    request = Request(chosen)

    def bare(**more: Any) -> Any:
        return decode.loop.generate(resident.model, **more)

    def masked(**more: Any) -> Any:
        mask = decode.format_mask.make_mask(resident, request, inputs["input_ids"][0].tolist(), config)
        return decode.loop.generate(resident.model, mask=mask, **more)

    found = [step for _ in range(rounds) for step in steps.together([bare, masked], given, alike=form.startswith("/"))]
    return [steps.row(f"own loop : with a mask, {name}", found, 0.95)]


def pair(session: Session, turn: int) -> tuple[float, float]:
    """Return the tokens/s of a reply with tokens given and of one without; the ids must be the same."""
    mask, own = decode.format_mask.FormatMask, decode.format_mask.FormatMask.given
    found = {}
    for gives in (True, False) if turn % 2 else (False, True):
        mask.given = own if gives else lambda *_: []  # type: ignore[method-assign]
        found[gives] = lookup.reply(session, PROMPT, "/seed 1")
    mask.given = own  # type: ignore[method-assign]
    assert found[True][1] == found[False][1], "other ids"
    return found[True][0], found[False][0]
