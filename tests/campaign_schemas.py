"""Schemas of other people: is every finished reply valid, or was the schema refused before?

`HUB_REPL_SCHEMAS=FOLDER pytest -s -n 0 -m campaign tests/campaign_schemas.py` goes through the `*.json` files below a
folder: schemas, or the lists of cases of the public JSON Schema test suite (its folder `tests/draft2020-12`), 300 of
them spread evenly (`HUB_REPL_COUNT` for another number). Greedy and sampled, on a tiny random model and on the built-in
one. Nothing is fetched.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from driving import ask, opened, run

from repl.core.errors import Failed, UsageError

pytestmark = pytest.mark.campaign

show = sys.stdout.write
WAYS = {"greedy": ("/greedy",), "sampled": ("/sample temperature=1", "/seed 1")}
LENGTHS = {"llama": 150, "builtin": 40}  # most tokens of a reply
PARTS = 10  # a test each
PROMPT = "Give me an example in JSON."


def schemas() -> list[Any]:
    """Return the schemas of a folder that are objects, so many of them."""
    place, count = os.environ.get("HUB_REPL_SCHEMAS"), int(os.environ.get("HUB_REPL_COUNT", "300"))
    found: list[Any] = []
    for file in sorted(Path(place).rglob("*.json")) if place else []:
        held = json.loads(file.read_text(encoding="utf-8"))
        found += [case["schema"] for case in held if "schema" in case] if isinstance(held, list) else [held]
    found = [schema for schema in found if isinstance(schema, dict)]
    return [found[place * len(found) // count] for place in range(min(count, len(found)))]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", LENGTHS)
def test_every_finished_reply_is_valid(request: pytest.FixtureRequest, model: str, way: str, part: int) -> None:
    ends, wrong, reasons = Counter[str](), list[str](), Counter[str]()
    with opened(request.getfixturevalue(f"{model}_folder")) as session:
        for schema in schemas()[part::PARTS]:
            run(session, "/clear", "/reset", f"/max {LENGTHS[model]}", *WAYS[way])
            try:
                run(session, f"/format {json.dumps(schema)}")
                done = ask(session, PROMPT)
            except (UsageError, Failed) as error:
                ends["refused"] += 1
                reasons[error.message] += 1
                continue
            if done.finish != "stop":
                ends["unfinished"] += 1
                continue
            ends["finished"] += 1
            try:
                jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema).validate(
                    json.loads(done.text)
                )
            except Exception as error:
                wrong.append(f"{json.dumps(schema)}\n  {done.text}\n  {type(error).__name__}: {str(error)[:200]}")
    show(f"\n{model}, {way}, part {part}: {dict(ends)}\n")
    show("".join(f"  {count:>4} {said}\n" for said, count in reasons.most_common(30)))
    assert wrong == []
