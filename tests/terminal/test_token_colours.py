"""Shades and bars: monotone, seen without colour, safe for colour-blind people."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from repl.terminal import screen, token_colours


def drawn(text: Text, theme: str = "dark", **options: object) -> str:
    console = Console(file=io.StringIO(), theme=screen.palette(theme), width=80, **options)
    console.print(text, end="")
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("probability", "name"),
    [
        (1.0, ""),
        (0.5, ""),
        (0.499, "shade1"),
        (0.1, "shade1"),
        (0.0999, "shade2"),
        (0.01, "shade2"),
        (0.0099, "shade3"),
    ],
)
def test_each_probability_has_its_class(probability, name):
    assert token_colours.style(probability) == name


@pytest.mark.parametrize("probability", [0.0, -1e-9, 1e-300, 1.0000001, float("nan")])
def test_rounding_never_leaves_a_probability_without_a_style(probability):
    assert token_colours.style(probability) in ("", "shade3")


@pytest.mark.parametrize("theme", ["dark", "light", "mono"])
def test_the_classes_differ_without_colour(theme):
    """A terminal without colours still tells all four apart."""
    seen = {
        drawn(Text("x", name), theme, force_terminal=True, no_color=True, color_system="truecolor")
        for _, name, _ in token_colours.CLASSES
    }
    assert len(seen) == 4


def luminance(colour: tuple[int, int, int]) -> float:
    parts = [value / 255 for value in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("theme", "paper"), [("dark", 0.0), ("light", 1.0)])
def test_the_colours_are_readable_and_lie_on_the_blue_yellow_axis(theme, paper):
    """Contrast of at least 4.5 to 1; blue against orange is what red-green blindness leaves."""
    from rich.color import Color

    less, least, _ = (Color.parse(name.removeprefix("on ")).get_truecolor() for name in screen.THEME_SHADES[theme])
    for colour in (less, least):
        pair = sorted((luminance(colour), paper))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5
    assert less.blue - less.red > 100
    assert least.red - least.blue > 100


def test_the_legend_names_every_class_in_its_own_style():
    legend = token_colours.caption()
    assert legend.plain == "probability  50 % or more  10 to 50  1 to 10  less"
    assert {"shade1", "shade2", "shade3"} <= {span.style for span in legend.spans}


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, ""), (1, "████"), (0.5, "██"), (1e-9, "▏"), (0.25 + 1 / 32, "█▏"), (2, "████"), (-1, "")],
)
def test_a_bar_grows_with_its_share(share, text):
    assert token_colours.bar(share, 4) == text


def test_a_bar_in_an_ascii_locale(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert [token_colours.bar(share, 4) for share in (0, 1e-9, 0.3, 0.5, 1)] == ["", "#", "#", "##", "####"]
