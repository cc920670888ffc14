"""What a hostile model, file or folder may say to act on a terminal, and what of its bytes is not our own."""

import re

PAYLOADS = {
    "CSI colour": b"\x1b[31;5mred",
    "CSI hidden": b"\x1b[8minvisible\x1b[28m",
    "CSI true colour by colons": b"\x1b[48:2:255:0:0:0mcolon",
    "CSI clear and home": b"\x1b[2J\x1b[1;1Hgone",
    "CSI clear the scrollback": b"\x1b[3Jforgotten",
    "CSI move up and erase": b"\x1b[9A\x1b[1Kupwards",
    "CSI absolute place": b"\x1b[5;5fplace\x1b[7dcolumn",
    "CSI insert and delete lines": b"\x1b[4L\x1b[3Mlines",
    "CSI scrolling region": b"\x1b[2;4rregion",
    "CSI scroll": b"\x1b[5Sscroll\x1b[5T",
    "CSI save and restore": b"\x1b[sstored\x1b[u",
    "CSI repeat": b"a\x1b[999999brepeat",
    "CSI resize the window": b"\x1b[8;5;5tresize",
    "CSI iconify": b"\x1b[2ticon",
    "CSI cursor shape": b"\x1b[5 qshape",
    "CSI soft reset": b"\x1b[!psoft",
    "CSI insert mode": b"\x1b[4hinsert",
    "CSI kitty keyboard": b"\x1b[>1ukitty",
    "CSI modify keys": b"\x1b[>4;2mxterm",
    "CSI endless": b"\x1b[" + b"1;" * 40 + b"mendless",
    "CSI with controls inside": b"\x1b[3\x071\x08mmixed",
    "OSC 0 title": b"\x1b]0;owned\x07title",
    "OSC 2 title": b"\x1b]2;owned\x1b\\title",
    "OSC 4 palette": b"\x1b]4;1;rgb:00/00/00\x07palette",
    "OSC 7 folder": b"\x1b]7;file://host/tmp\x07folder",
    "OSC 8 link": b"\x1b]8;;http://evil.example\x07click\x1b]8;;\x07",
    "OSC 8 link by ST": b"\x1b]8;id=1;file:///etc/passwd\x1b\\click\x1b]8;;\x1b\\",
    "OSC 9 notification": b"\x1b]9;notify\x07growl",
    "OSC 10 colour query": b"\x1b]10;?\x07query",
    "OSC 52 write": b"\x1b]52;c;b3duZWQ=\x07clip",
    "OSC 52 read": b"\x1b]52;c;?\x07board",
    "OSC 133 prompt": b"\x1b]133;A\x07marks\x1b]133;C\x07",
    "OSC 777 notification": b"\x1b]777;notify;title;body\x07urxvt",
    "OSC 1337 file": b"\x1b]1337;File=inline=1:AAAA\x07image",
    "OSC 1337 variable": b"\x1b]1337;SetUserVar=a=Yg==\x07variable",
    "OSC without end": b"\x1b]0;unfinished and then some",
    "DCS request": b'\x1bP$q"p\x1b\\request',
    "DCS sixel": b"\x1bPq#0;2;0;0;0~~\x1b\\sixel",
    "DCS keys": b"\x1bP1;1|17/6c730d\x1b\\keys",
    "DCS tmux": b"\x1bPtmux;\x1b\x1b]0;owned\x07\x1b\\passed",
    "DCS termcap": b"\x1bP+q544e\x1b\\termcap",
    "APC graphics": b"\x1b_Gf=24,s=1,v=1;AAAA\x1b\\graphics",
    "APC title": b"\x1b_owned\x1b\\tmux",
    "PM": b"\x1b^private\x1b\\message",
    "SOS": b"\x1bXstring\x1b\\started",
    "title of screen": b"\x1bkowned\x1b\\screen",
    "RIS": b"\x1bcreset",
    "DECALN": b"\x1b#8alignment",
    "double height": b"\x1b#3double",
    "character set": b"\x1b(0lqqk\x0eshifted\x0f",
    "other character set": b"\x1b%@latin\x1b%G",
    "save and index": b"\x1b7saved\x1b8\x1bMreverse\x1bD",
    "keypad": b"\x1b=keypad\x1b>",
    "single shift": b"\x1bNshift\x1bO",
    "alternate screen": b"\x1b[?1049hother\x1b[?1049l",
    "old alternate screen": b"\x1b[?47hother\x1b[?1047h",
    "mouse": b"\x1b[?1000h\x1b[?1003h\x1b[?1006hmouse",
    "focus": b"\x1b[?1004hfocus",
    "paste mode": b"\x1b[?2004lpaste",
    "paste brackets": b"\x1b[200~/quit\r\x1b[201~pasted",
    "cursor hidden": b"\x1b[?25lhidden",
    "wrap off": b"\x1b[?7lwrapped",
    "reverse screen": b"\x1b[?5hreversed",
    "origin and columns": b"\x1b[?6h\x1b[?3hwide",
    "synchronised": b"\x1b[?2026hfrozen",
    "report place": b"\x1b[6nreport",
    "report state": b"\x1b[5n\x1b[?6nstate",
    "report device": b"\x1b[c\x1b[>c\x1b[=cdevice",
    "report title": b"\x1b]0;ls\x07\x1b[21treply",
    "report mode": b"\x1b[?2004$pmode",
    "answer back": b"\x05enquiry\x1bZ",
    "print": b"\x1b[5iprinter\x1b[4i",
    "C1 code points CSI": "\x9b2J\x9b31mcode".encode(),
    "C1 code points OSC": "\x9d0;owned\x9cpoints".encode(),
    "C1 code points DCS": "\x90q\x9c\x98\x9e\x9fstrings".encode(),
    "C1 code points NEL, IND, RI, SS": "\x85next\x84\x8d\x8e\x8fshift".encode(),
    "C1 bytes CSI": b"\x9b2J\x9b31mbytes",
    "C1 bytes OSC": b"\x9d0;owned\x9cbytes",
    "C1 bytes DCS, APC": b"\x90q\x9c\x9fGa\x9cbytes",
    "nested escapes": b"\x1b\x1b[31\x1b]0;owned\x07mnested",
    "nested in a string": b"\x1b]0;a\x1b[2Jb\x1b]52;c;eA==\x07deep",
    "cancelled": b"\x1b[3\x18cancelled\x1b]\x1aagain",
    "rebuilt when ESC is dropped": b"\x1b\x1b[\x1b31mrebuilt",
    "escape at the end": b"ending\x1b",
    "CR over": b"danger\rharmless",
    "BS over": b"rmrf\x08\x08\x08\x08echo",
    "underlined as a manual": b"b\x08bo\x08ol\x08ldoverstrike",
    "NUL, DEL, BEL": b"nul\x00del\x7fbell\x07end",
    "VT and FF": b"vertical\x0bform\x0cfeed",
    "separators": b"file\x1cgroup\x1drecord\x1eunit\x1fend",
    "marks of prompt_toolkit": b"\x01\x1b[2J\x02zero",
    "bidi override": "photo\u202egnp\u202cexe".encode(),
    "bidi isolates": "first\u2066\u2067second\u2069\u2068".encode(),
    "bidi embeddings": "access\u202a\u202blevel\u202d".encode(),
    "tag characters": ("tagged" + "".join(chr(0xE0000 + ord(a)) for a in "obey") + "text").encode(),
    "selectors": ("select" + "".join(map(chr, range(0xE0100, 0xE0110))) + "variation").encode(),
    "a pile of marks": ("zalgo!" + "\u0301" * 40 + "text").encode(),
    "line and paragraph": "line\u2028paragraph\u2029end".encode(),
    "invalid UTF-8": b"broken\xff\xfe\xc3\x28bytes\xe2\x82",
    "overlong escape": b"\xc0\x9b\xe0\x80\x9b[31mlong\xf0\x80\x80\x9b",
    "surrogates as bytes": b"\xed\xa0\x80half\xed\xbf\xbf",
    "noncharacters": "none\ufffe\uffff\ufdd0\U0010ffffend".encode(),
    "byte order marks": "\ufeffmarked\ufeff\ufff9annotated\ufffb".encode(),
    "rich markup": b"[link=http://evil.example]markup[/link][/x][red]",
    "Markdown link": b"see [google.com](http://evil.example) there",
    "escape in a Markdown link": b"[a\x1b]0;owned\x07b](http://x.y/\x1b[2J)inside",
    "escape in a fence": b"```\x1b[5m\ncode\x1b[2J\n```\nafter",
    "escape in a table": b"|a\x1b[2J|b|\n|-|-|\n|c\x9b|\x1b]0;owned\x07d|\n",
}

_COLOURS = {"", *map(str, [0, 1, 2, 3, 4, 7, 9, 22, 23, 24, 39, 49, *range(30, 38), *range(90, 98)])}
_SEQUENCE = re.compile(r"\x1b\[(?P<private>\??)(?P<numbers>[0-9;]*)(?P<letter>[A-Za-z])")
_MODES = {"1l", "7h", "7l", "12l", "25h", "25l", "2004h", "2004l"}
_ERASES = {"J", "0J", "K", "0K", "2K"}
_FOREIGN = re.compile(
    "[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def text(payload: bytes) -> str:
    """Return a payload as a decoder reads it that replaces what is not UTF-8."""
    return payload.decode(errors="replace")


def words(payload: bytes) -> list[str]:
    """Return the plain words of a payload, which a reader must see."""
    return re.findall(r"[A-Za-z]{3,}", text(payload))


def foreign(raw: bytes) -> list[str]:
    """Return what on the way to a terminal neither our renderer nor the line editor writes."""
    found, at, drawn = [], 0, raw.decode()  # strict: no byte of C1 either
    while match := _FOREIGN.search(drawn, at):
        sequence = _SEQUENCE.match(drawn, match.start())
        if sequence is None or not own(sequence):
            found.append(drawn[match.start() : match.start() + 20])
        at = sequence.end() if sequence else match.end()
    return found


def own(sequence: re.Match[str]) -> bool:
    """Tell whether a control sequence is one of those that we need."""
    private, numbers, letter = sequence.groups()
    if private:
        return numbers + letter in _MODES
    if letter == "m":
        return coloured(numbers)
    return (letter in "ABCD" and (numbers.isdecimal() or not numbers)) or numbers + letter in _ERASES


def coloured(numbers: str) -> bool:
    """Tell whether a style is one of ours: plain colours, or one of 256."""
    plain = re.sub(r"\b[34]8;5;\d+", "", numbers)
    return plain.count(";") < 8 and all(number in _COLOURS for number in plain.split(";"))
