"""Words that a user bans or boosts, in one model's terms: token ids for the library's processors, and texts.

In come words and phrases; a word stands for its forms with and without a leading space and a capital, a text that
begins with a space for itself. A form of one token becomes that id. What takes several tokens can be spelled by other
pieces too, so it is a text that a reply may not hold: see `decode.phrase_ban`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from repl.core.library_types import PreTrainedTokenizerBase

CONTEXTS = ("", "\n", ".", "(")
"""What stands before a text when it is cut into tokens: some tokenizers have others for the beginning of a text."""


@dataclass(frozen=True, slots=True)
class WordForm:
    """One form of a word, with the fewest token ids that spell it in the middle of a text; none where none do."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its forms; `texts` are what a reply may not hold where it is banned, as `whole` words or anywhere."""

    text: str
    forms: tuple[WordForm, ...]
    texts: tuple[str, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Phrases:
    """Texts that a reply may not hold: some anywhere, some where no letter or digit stands beside them."""

    anywhere: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.anywhere or self.whole)

    @property
    def longest(self) -> int:
        """Return the characters of the longest one."""
        return max(map(len, (*self.anywhere, *self.whole)), default=0)

    def find_last(self, text: str, after: int) -> int | None:
        """Return where the phrase begins that begins last in a text, of those that end behind a place."""
        whole = (_rfind_whole(text, one) for one in self.whole)
        found = zip((*self.anywhere, *self.whole), (*map(text.rfind, self.anywhere), *whole), strict=True)
        return max((place for one, place in found if place >= 0 and place + len(one) > after), default=None)

    def find_endings(self, text: str) -> set[str]:
        """Return what would complete a phrase behind a text, without blanks around it."""
        phrases = (*self.anywhere, *self.whole)
        return {one[size:].strip() for one in phrases for size in range(len(one)) if text.endswith(one[:size])}

    def find_begun(self, text: str) -> int:
        """Return where that begins at the end of a text which may still become a phrase; its length for nothing."""
        found = (_begun(text, one) for one in (*self.anywhere, *self.whole))
        return len(text) - max(found, default=0)


def _begun(text: str, phrase: str) -> int:
    return next((size for size in range(min(len(phrase), len(text)), 0, -1) if text.endswith(phrase[:size])), 0)


def _rfind_whole(text: str, word: str) -> int:
    place = text.rfind(word)
    while place >= 0:
        before, behind = text[:place][-1:], text[place + len(word) :][:1]
        if not (_joins(before) and _joins(word[0])) and not (_joins(word[-1]) and _joins(behind)):
            return place
        place = text.rfind(word, 0, place + len(word) - 1)
    return -1


def _joins(character: str) -> bool:
    """Tell whether a character makes one word with its like beside it: scripts without cases need not have spaces."""
    return character.islower() or character.isupper() or character.isdigit()


def read_words(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> tuple[Word, ...]:
    """Return words in their forms; for the model thread."""
    return tuple(_read(tokenizer, word) for word in words)


def _read(tokenizer: PreTrainedTokenizerBase, word: str) -> Word:
    forms = tuple(WordForm(one, token_ids(tokenizer, one)) for one in word_forms(word))
    return Word(word, forms, _capitals(word), all(len(form.ids) == 1 for form in forms))


def word_forms(word: str) -> tuple[str, ...]:
    """Return the forms that a word stands for."""
    plain = _capitals(word)
    return plain if word[0].isspace() else (*plain, *(f" {one}" for one in plain))


def _capitals(word: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((word, word[0].upper() + word[1:], word[0].lower() + word[1:])))


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Return the fewest token ids that spell a text behind other text; none where none were found."""
    anchor = _encode(tokenizer, "a")
    before = _decode(tokenizer, anchor)
    found: list[list[int]] = []
    for context in CONTEXTS:
        ids = _encode(tokenizer, context + text)
        ends = (ids[place:] for place in range(len(ids) - 1, -1, -1))
        found += [end for end in ends if _decode(tokenizer, [*anchor, *end]) == before + text][:1]
    shortest = sorted(found, key=len)[:1]
    return tuple(shortest[0]) if shortest else ()


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def banned_phrases(words: Iterable[Word]) -> Phrases:
    """Return the texts that a reply may not hold."""
    listed = [*words]
    anywhere = {text: None for word in listed if not word.whole for text in word.texts}
    kept = [text for text in anywhere if not any(other in text for other in anywhere if other != text)]
    return Phrases(tuple(kept), tuple(dict.fromkeys(text for word in listed if word.whole for text in word.texts)))


def banned_ids(words: Iterable[Word], sequences: bool = False) -> list[list[int]]:
    """Return the value of `bad_words_ids`: the forms of one token; with `sequences` those of several as well."""
    found = (form.ids for word in words for form in word.forms)
    return [list(ids) for ids in dict.fromkeys(found) if len(ids) == 1 or (sequences and ids)]


def biases(tokenizer: PreTrainedTokenizerBase, boosts: Iterable[tuple[str, float]]) -> list[list[object]]:
    """Return the value of `sequence_bias`; of several tokens it raises the last one behind the others."""
    found = {form.ids: bias for text, bias in boosts for form in _read(tokenizer, text).forms if form.ids}
    return [[list(ids), bias] for ids, bias in found.items()]
