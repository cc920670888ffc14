"""Words that a reply may not hold, and words made likelier: what was given, and the tokens that each became."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from repl.commands.registry import command
from repl.core.jobs import JobContext
from repl.core.values import RestText
from repl.generation.measure.token_text import quote
from repl.generation.word_forms import Word, read_words
from repl.session.change_settings import change
from repl.session.session import Session
from repl.terminal.screen import render
from repl.terminal.tables import grid


@dataclass(frozen=True, slots=True)
class BannedWords:
    """What no reply may hold, each with its forms and their token ids in the model that is loaded."""

    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class BoostedWords:
    """Words with what is added to their logits, their forms and token ids."""

    words: tuple[Word, ...]
    biases: tuple[float, ...]


@command("settings", '/ban "delve", "As an AI"', "/ban off", see="boost stop why", needs_model=True)
def ban(session: Session, words: RestText = "") -> object:
    """Keep words and phrases out of replies: /ban "delve", "As an AI".

    A word stands for its forms with and without a capital and a leading space, one that begins with a space for itself.
    A word whose forms are single tokens is kept out as a whole word, any other text wherever it would stand: when it is
    about to be completed, the reply goes back to its first token and another is chosen there. The list replaces the one
    before, /ban alone shows it with its tokens, /ban off ends it.
    """
    chosen = session.settings.decode.ban
    if words or not chosen:
        return change(session, "ban", words)
    return _list(session, chosen, lambda found: BannedWords(found))


@command("settings", '/boost " Paris" +2', "/boost off", see="ban temperature why", needs_model=True)
def boost(session: Session, words: RestText = "") -> object:
    """Make words likelier or less likely: /boost " Paris" +2, London -1.5.

    The number is added to the logits of the word's tokens; of several tokens the last one is raised, behind the others.
    Forms and lists are those of /ban.
    """
    chosen = session.settings.decode.boost
    if words or not chosen:
        return change(session, "boost", words)
    texts, numbers = zip(*chosen, strict=True)
    return _list(session, texts, lambda found: BoostedWords(found, numbers))


def _list(session: Session, texts: tuple[str, ...], show: Callable[[tuple[Word, ...]], object]) -> object:
    if session.remote is not None:
        return show(tuple(Word(text, (), (), False) for text in texts))

    def work(emit: JobContext) -> object:
        return show(read_words(session.store.current().tokenizer, texts))

    return session.run_on_model(work)


@render.register
def _(result: BannedWords) -> RenderableType:
    rows = [(_name(word), Text(_forms(word), "quiet"), Text(_kept_out(word), "quiet")) for word in result.words]
    return Group(grid("lll", rows), Text("/ban off ends it", "quiet"))


@render.register
def _(result: BoostedWords) -> RenderableType:
    pairs = zip(result.words, result.biases, strict=True)
    rows = [(_name(word), Text(f"{bias:+g}"), Text(_forms(word), "quiet")) for word, bias in pairs]
    return Group(grid("lrl", rows), Text("/boost off ends it", "quiet"))


def _name(word: Word) -> Text:
    return Text(quote(word.text), "accent")


def _forms(word: Word) -> str:
    return " · ".join(f"{quote(form.text)} {' '.join(map(str, form.ids)) or '?'}" for form in word.forms)


def _kept_out(word: Word) -> str:
    return "" if not word.forms else "as a whole word" if word.whole else "anywhere in the text"
