"""Clean foreign text: nothing from a model, a file or a library may control the terminal."""

import codecs
import locale
import re
import sys
import unicodedata
from functools import cache

MAX_MARKS = 16
"""Maximum combining marks on one base character; further ones are dropped."""

ASCII_SIGNS = str.maketrans("·…–—•▸❯↵█│├└─✗�", "-~--*>>|#||`-x?")
"""Replacements of the program's own signs on ASCII terminals; each is one column wide, too."""

_INVISIBLE = r"\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
_LOW = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029" + _INVISIBLE
# one coarse range above the first planes: each further range would slow all text down
_SUSPECT = re.compile(rf"[{_LOW}\U0001fffe-\U0010ffff]")
_PLANES = "".join(f"\\U{plane:04x}fffe-\\U{plane:04x}ffff" for plane in range(1, 17))
_FOREIGN = re.compile(rf"\r\n?|[{_LOW}\U000e0000-\U000e007f{_PLANES}]")
_LINE = re.compile(r"[\n\t\u200e\u200f\u061c]")
_NEWLINES = frozenset("\r\v\f\x85\u2028\u2029")
_DROPPED = frozenset(map(chr, range(0xE0000, 0xE0080))) | {"\ufeff"}
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
_JOINERS = frozenset("\u200c\u200d")
_SELECTORS = frozenset(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x180B, 0x180C, 0x180D, 0x180F]))


def clean(text: str) -> str:
    """Return `text` safe to draw: lines and tabs stay, control and invisible characters are shown or dropped.

    Works character by character without parsing escapes; `clean(clean(text)) == clean(text)`.
    """
    return _thin(_visible(text))


def clean_line(text: str) -> str:
    """Clean a one-line field (title, id, path): line ends and tabs become spaces, bidirectional marks are shown."""
    return _LINE.sub(lambda match: f"<{ord(match[0]):x}>" if match[0] in _BIDI else " ", clean(text))


def ascii_only() -> bool:
    """Tell whether the terminal's encoding lacks blocks, arrows and the like."""
    try:
        "█↵…–❯".encode(sys.stdout.encoding or locale.getpreferredencoding(False))
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def ascii_signs(text: str) -> str:
    """Return a text of the program, with its signs replaced on an ASCII terminal."""
    return text.translate(ASCII_SIGNS) if ascii_only() else text


def spinner(seconds: float) -> str:
    """Return the frame of a spinner after so many seconds."""
    frames = "-\\|/" if ascii_only() else "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    return frames[int(8 * seconds) % len(frames)]


def spell_out(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that an encoding lacks (an `errors` handler): a sign for a sign, else an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end].translate(ASCII_SIGNS)
    return found.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error("hub-repl", spell_out)


def repair(text: str) -> str:
    """Return typed text without lone surrogates: escaped bytes are decoded as UTF-8 where possible."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Cleaner:
    """`clean` for streamed text: the joined results equal `clean` of the whole text. Use one for each text."""

    def __init__(self) -> None:
        self._tail = ""  # marks and selector that the last base character already carries
        self._returned = False

    def feed(self, piece: str) -> str:
        """Return the clean text of the next piece."""
        if not piece:
            return ""
        text = piece[1:] if self._returned and piece[0] == "\n" else piece
        self._returned = piece[-1] == "\r"
        shown = _thin(self._tail + _visible(text))
        new = shown[len(self._tail) :]
        self._tail = "" if new and new.isascii() else _tail(shown)
        return new


def _visible(text: str) -> str:
    return _FOREIGN.sub(_stand_in, text) if _SUSPECT.search(text) else text


def _stand_in(match: re.Match[str]) -> str:
    found = match[0]
    code = ord(found[0])
    if found[0] in _NEWLINES:
        return "\n"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if code < 0xA0 or found in _BIDI:
        return f"<{code:x}>"
    if found in _DROPPED:
        return ""
    return "\ufffd"


@cache
def _piles() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Return patterns for too many marks, for two selectors on one base, and for runs that may contain them."""
    blocks = (*range(0x300, 0x3100), *range(0xA640, 0xABF0), *range(0xFB1E, 0xFE30))
    marks = "".join(chr(code) for code in blocks if unicodedata.category(chr(code))[0] == "M")
    # beyond the first plane whole blocks: ranges there are searched one by one; `_capped` looks closely
    run = f"[{marks}\u200c\u200d\U000101fd-\U0001e94a\U000e0100-\U000e01ef]"
    selector = "[\ufe00-\ufe0f\u180b-\u180d\u180f\U000e0100-\U000e01ef]"
    # each begins with a plain set, which is searched fast
    many, twice = f"{run}{run}{{{MAX_MARKS}}}", f"{selector}{run}*?{selector}"
    return re.compile(many), re.compile(twice), re.compile(f"{run}{{2,}}")


def _thin(text: str) -> str:
    if text.isascii():
        return text
    many, twice, runs = _piles()
    return runs.sub(_capped, text) if many.search(text) or twice.search(text) else text


def _capped(match: re.Match[str]) -> str:
    kept: list[str] = []
    marks = selectors = 0
    for character in match[0]:
        if character in _SELECTORS:
            selectors += 1
        elif unicodedata.category(character)[0] == "M":
            marks += 1
        elif character not in _JOINERS:
            marks = selectors = 0
        if character in _JOINERS or (selectors <= 1 if character in _SELECTORS else marks <= MAX_MARKS):
            kept.append(character)
    return "".join(kept)


def _tail(text: str) -> str:
    carried: list[str] = []
    for character in reversed(text):
        if unicodedata.category(character)[0] == "M":
            carried.append(character)
        elif character not in _JOINERS:
            break
    return "".join(reversed(carried))
