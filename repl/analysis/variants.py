"""Ways to answer the same message: the words of /compare and /replay, and the settings that each means."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from repl.core import decoding, settings
from repl.core.decoding import NOTHING, ModelDefaults
from repl.core.errors import UsageError
from repl.core.settings import Settings
from repl.hub import catalog
from repl.remote.address import Address
from repl.remote.dialects import Listing
from repl.session import servers
from repl.session.change_settings import changed, full_name
from repl.session.session import Session

NOW, LOCAL = "now", "local"
"""Words for the current settings, and for the local model while a server is connected."""
URL = re.compile(r"https?://")
ADDRESS = ("model", "revision", "gguf_file", "trust_remote_code")  # settings that the word for a model means
NAMED_SETTING = re.compile(r"[A-Za-z_][A-Za-z_-]*=.*", re.DOTALL)
ONE_SEQUENCE = [("num_beams", "1"), ("num_return_sequences", "default")]
GREEDY_WORDS = [("do_sample", "off"), *ONE_SEQUENCE]
GREEDY_VALUES = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
SAMPLE_WORDS = [("do_sample", "on"), *ONE_SEQUENCE]
WORDS: dict[str, list[tuple[str, str]]] = {
    **{NOW: [], LOCAL: [], "greedy": GREEDY_WORDS, "sample": SAMPLE_WORDS},
    "prompt_lookup": [("assistant", "none"), ("prompt_lookup", str(decoding.LOOKUP_TOKENS))],
}
NEXT = "|".join(WORDS)
JOINT = re.compile(rf"[,+\s]+(?=(?!cpu=|mps=|disk=)[A-Za-z_][A-Za-z_-]*=|(?:{NEXT})\b)")  # memory is cpu=4GiB


@dataclass(frozen=True, slots=True)
class Server:
    """A server, the model to use there, and its list of models; None if it was not asked yet."""

    where: Address
    model: str = ""
    listing: Listing | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to answer: the word as typed, the settings that it means, and the server if one answers."""

    title: str
    settings: Settings
    server: Server | None = None


def read_way(session: Session, word: str) -> Variant:
    """Read one word: a model, a server, or changes to the settings of the session; raises `UsageError`.

    While a server is connected, its models and words without load settings are meant for it.
    """
    parts, remote = _parts(word), session.remote
    first = parts[0] if parts else ""
    if first in session.engines or URL.match(first):
        chosen = session.engines.get(first, {}).get("model", "")
        server = Server(servers.server_address(session, first), chosen)
        return _served(session, parts, server, _given(parts[1:], session.base()))
    given = _given(parts, session.base())
    offers = {one.id for one in remote.listing.offers} if remote else set()
    if remote is None or LOCAL in parts or (_load_names(given) and dict(given).get("model") not in offers):
        return read_variant(word, session.settings, session.base())
    return _served(session, parts, Server(remote.where, remote.model, remote.listing), given)


def read_variant(word: str, now: Settings, base: ModelDefaults = NOTHING) -> Variant:
    """Read one word that names no server, as changes to the settings `now`; raises `UsageError`.

    `base` holds the model's defaults: fields of its generation config may be named too.
    """
    parts = _parts(word)
    given = _given(parts, base)
    return Variant(_title(parts), changed(now, implied_words(given) + given, base=base))


def _served(session: Session, parts: list[str], server: Server, given: list[tuple[str, str]]) -> Variant:
    model = next((value for name, value in given if name == "model"), server.model)
    given = [pair for pair in given if pair[0] not in ADDRESS]
    if loads := _load_names(given):
        raise UsageError(f"{loads[0]} is a load setting; the server decides it")
    chosen = changed(session.settings, implied_words(given) + given, base=session.base())
    return Variant(_title(parts), chosen, replace(server, model=model))


def _parts(word: str) -> list[str]:
    """Cut a word into the settings that commas or plus signs join; inside quotes spaces do as well."""
    return [part for part in JOINT.split(_bare(word)) if part]


def _title(parts: list[str]) -> str:
    return ",".join(settings.short_id(part) for part in parts) or NOW


def _given(parts: list[str], base: ModelDefaults) -> list[tuple[str, str]]:
    return [pair for part in parts for pair in _pairs(part, base)]


def _load_names(given: list[tuple[str, str]]) -> list[str]:
    places = settings.places()
    return [name for name, _ in given if places.get(name) == "load"]


def _bare(word: str) -> str:
    inner = word[1:-1]
    return inner if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'" and word[0] not in inner else word


def _pairs(part: str, base: ModelDefaults) -> list[tuple[str, str]]:
    """Return the settings that a part of a word names; a part that is no setting is a model."""
    if part in WORDS:
        return WORDS[part]
    if not NAMED_SETTING.fullmatch(part) or Path(part).expanduser().exists():
        return settings.address(part)
    typed, _, value = part.partition("=")
    name = full_name(typed, base)
    if settings.places().get(name) == "view" and name != "mode":
        raise UsageError(f"{name} is a display setting", f"/{name}")
    if name == "model":
        return settings.address(value)
    return setting_words(name, _bare(value))


def setting_words(name: str, value: str) -> list[tuple[str, str]]:
    """Return a setting with its value as words: a temperature of 0 is greedy."""
    return GREEDY_WORDS if name == "temperature" and value in ("0", "0.0") else [(name, value)]


def greedy_settings(chosen: Settings) -> Settings:
    """Return settings for one greedy reply."""
    for name, value in GREEDY_VALUES.items():
        chosen = chosen.put(name, value, "greedy")
    return chosen


def implied_words(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return settings without which others have no effect: a temperature needs sampling, beams need greedy decoding."""
    given = dict(pairs)
    if "do_sample" in given:
        return []
    if "num_beams" in given:
        return [("do_sample", "off"), ("num_return_sequences", "default")]
    return SAMPLE_WORDS if given.keys() & {*decoding.WARPERS, "seed"} else []


def complete_words(session: Session | None = None) -> Mapping[str, str]:
    """Return the words to complete with their help: models, and the names of settings."""
    models = dict.fromkeys(catalog.names() if session is None else session.model_names(), "")
    own = [name for name, part in settings.places().items() if part != "view" and name != "model"]
    short = {"beams=": "beam search", "greedy": "the most likely token at every step", NOW: "the current settings"}
    return {**short, **{f"{name}=": settings.help_of(name) for name in own}, **models}
