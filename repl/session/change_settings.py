"""Change settings: decoding and view settings at once, load settings by loading the model again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from repl.core import decoding, fields, settings
from repl.core.decoding import NOTHING, ModelDefaults
from repl.core.errors import Failed, UsageError, sentence
from repl.core.format import join_facts
from repl.core.sanitize import clean_line
from repl.core.values import show_value
from repl.generation import decode, measure
from repl.generation.interface import Model
from repl.models.store import ModelInfo
from repl.session.results import Message
from repl.session.session import CONSENT, Session, Task

STATIC_CACHE = "/set cache_implementation static"
NOT_SET = "not set"
UNSET = decoding.Value(None, "default")
ORIGINS = {"default": "default", "model": "model's default"}
"""The names of origins of values that nobody has set."""
SettingWords = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its value, where that comes from, what it does and takes, and the value that a reset would give."""

    name: str
    value: object
    origin: str
    help: str
    takes: str
    default: decoding.Value = UNSET

    @property
    def text(self) -> str:
        """Return the value as it is typed."""
        return self._show_value(self.value, self.origin)

    @property
    def source(self) -> str:
        """Say where the value comes from: set by you; model's default 1."""
        if self.origin in ORIGINS:
            return ORIGINS[self.origin]
        said = {"you": "set by you", "config": "from the config file"}.get(self.origin, f"from {self.origin}")
        usual = self._show_value(self.default.value, self.default.origin)
        if usual == NOT_SET:
            return f"{said}; {usual} by default"
        return f"{said}; {ORIGINS[self.default.origin]} {'too' if usual == self.text else usual}"

    def _show_value(self, value: object, origin: str) -> str:
        if self.name in settings.places():
            return clean_line(settings.show_setting(self.name, value)) or NOT_SET
        return NOT_SET if value is None and origin == "default" else clean_line(show_value(value))


def change(session: Session, name: str, text: str = "") -> Setting | Message | Task[ModelInfo]:
    """Show a setting, or change it: what `/name [value]` runs."""
    if not text:
        return describe_setting(session, name)
    if settings.places()[name] == "load":
        return load(session, [(name, text)])
    return apply(session, [(name, text)])


def load(session: Session, words: SettingWords) -> Message | Task[ModelInfo]:
    """Change how the model is loaded, which begins the load; a value in effect already is only reported."""
    before = session.pending()
    wanted = changed(before, words, parts=("load",))
    if "model" in dict(words) and session.store.consents.allows(wanted.load.model):
        wanted = wanted.put("trust_remote_code", True, CONSENT)
    if wanted.load == before.load and (session.loading or session.store.facts()):
        typed = [name for name, text in words if text != "default"] or [name for name, _ in words]
        said = (f"{name} is {settings.show_setting(name, wanted.get(name)) or 'not set'} already" for name in typed)
        return Message(join_facts(*said))
    return session.load(wanted)


def apply(session: Session, words: SettingWords) -> Message:
    """Change decoding or view settings, all of them or none; says which have no effect at present."""
    full = [(settings.find_setting(name), text) for name, text in words]
    if set(decoding.LENGTH_LIMITS) <= {name for name, text in full if text != "default"}:
        raise UsageError("max_new_tokens and max_length cannot be combined: give one")
    before = session.settings
    session.change(changed(before, full, parts=("decode", "view")))
    aside = [name for name in decoding.LENGTH_LIMITS if before.get(name) and session.settings.get(name) is None]
    lost = [f"{name} unset: cannot be combined with {full[0][0]}" for name in aside if name not in dict(full)]
    found = [
        decoding.find_idle(name, session.settings, session.base())
        for name, text in full
        if text not in ("default", "none")
    ]
    idle = [one for one in found if one]
    decodes = any(settings.places()[name] == "decode" for name, _ in full)
    done = [_describe_change(session, full), *lost, "from the next reply on" if decodes else ""]
    reasons = [one.said for one in idle]
    said = reasons if len(idle) == len(full) == 1 else [*done, *reasons]
    if "keep_models" in dict(full):
        session.run_on_model(lambda emit: session.store.trim())
        session.run_on_model(lambda emit: session.store.tidy())
    return Message(join_facts(*said), tuple({one.line: one.effect for one in idle if one.line}.items()))


def adopt(session: Session, chosen: settings.Settings, said: Message) -> Message | Task[ModelInfo]:
    """Take over settings for loading and decoding; a load ends at once if the model is in memory."""
    taken = {*settings_of("decode"), "mode"}
    own = {name: word for name, word in session.settings.origins.items() if name not in taken}
    theirs = {name: word for name, word in chosen.origins.items() if name in taken}
    shown = replace(session.settings.view, mode=chosen.view.mode)
    origins = {**own, **theirs}
    session.change(replace(session.settings, decode=chosen.decode, extra=chosen.extra, view=shown, origins=origins))
    if chosen.load == session.settings.load:
        return said
    task = session.load(replace(session.settings, load=chosen.load, origins=chosen.origins))

    def settle() -> Message:
        task.settle()
        return said

    return Task(task.job, settle, task.background)


def changed(
    before: settings.Settings,
    words: SettingWords,
    parts: Sequence[str] = tuple(settings.SPECS),
    base: ModelDefaults = NOTHING,
) -> settings.Settings:
    """Return settings with some of these parts read from words; the word `default` puts one back.

    `base` is what a model brings, where its fields of the library's generation config may be named too.
    """
    for word, text in words:
        name = full_name(word, base)
        if name not in settings.places():
            value = None if text == "default" else fields.read_field(name, text, base.model)
            before = put_field(before, name, value, text != "default")
            continue
        if settings.places()[name] not in parts:
            belongs = "belongs to" if settings.places()[name] == "load" else "has nothing to do with"
            raise UsageError(f"{name} {belongs} loading: change it by itself", f"/{name}")
        before = before.reset(name) if text == "default" else before.put(name, settings.read_setting(name, text), "you")
    return before


def full_name(word: str, base: ModelDefaults = NOTHING) -> str:
    """Return the setting that a word names, or the field of the generation config of the library; raises `UsageError`.

    `base` is what a model brings, with the fields that there are.
    """
    name = unshortened(word)
    return name if name in base.known and not decoding.is_setting(name) else settings.find_setting(name)


def unshortened(word: str) -> str:
    """Return the name of a setting that may be typed as a short one, the library's, or with hyphens."""
    short = {**settings.SHORT_NAMES, **{theirs: ours for ours, theirs in decoding.OURS.items()}}
    return short.get(word, word).replace("-", "_")


def put_field(before: settings.Settings, name: str, value: object, keep: bool = True) -> settings.Settings:
    """Return settings with a field of the library's generation config; without it if `keep` is off."""
    others = tuple(pair for pair in before.extra if pair[0] != name)
    return replace(before, extra=(*others, (name, value)) if keep else others)


def _describe_change(session: Session, words: SettingWords) -> str:
    if len(words) > 1:
        return decoding.phrase(session.decoding())
    shown = describe_setting(session, words[0][0])
    return f"{shown.name} {shown.text}" + (f" ({shown.source})" if words[0][1] == "default" else "")


def describe_setting(session: Session, name: str) -> Setting:
    """Return a setting with the value in effect and its origin."""
    now, origins = session.settings.get(name), session.settings.origins
    table = session.decoding() if settings.places()[name] == "decode" else {}
    found = table.get(name, decoding.Value(now, origins.get(name, "default")))
    usual = decoding.effective_values(session.settings.reset(name), session.base()) if table else {}
    default = usual.get(name, decoding.Value(settings.declared_field(name).default, "default"))
    return Setting(name, found.value, found.origin, settings.help_of(name), settings.setting_kind(name).phrase, default)


def settings_of(part: str) -> list[str]:
    """Return the settings of a part in their order."""
    return [name for name, home in settings.places().items() if home == part]


def read_model_field(session: Session, name: str, word: str) -> tuple[str, object]:
    """Read a field of the library's generation config and let the library try it; for the model thread.

    Raises `UsageError` where the library would refuse it in the middle of a reply.
    """
    if word == "default":
        return name, None
    value = fields.read_field(name, word, session.base().model)
    if session.remote is None and value is not None:
        resident, before = session.store.current(), session.settings
        if "offloaded" in str(value) and resident.model.device.type == "cpu":
            raise UsageError(
                f"{name} {value} moves the cache between GPU and CPU, but this model is on the CPU", STATIC_CACHE
            )
        said = _find_refusal(resident, put_field(before, name, value))
        if said and not _find_refusal(resident, before):
            hints = f"/set {name} {fields.find_field(name).example}", f"/set {name} none"
            raise UsageError(f"{name} cannot be {word}: {said}", *hints)
    return name, value


def _find_refusal(resident: Model, chosen: settings.Settings) -> str:
    """Return why the library refuses these settings, without running the model; empty if it accepts them."""
    try:
        measure.processors.processors(resident.model, decode.loop.Arguments.of_settings(resident, chosen), [0])
    except Failed as error:
        return sentence(error.__cause__ or error)
    return ""
