"""A report as a list of blocks, rendered by Jinja2 templates: as markdown, or as one HTML page with its pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    kind: ClassVar[str] = "heading"
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Text; what stands between backticks is shown as code."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Items:
    """A list of texts. `folded`: collapsed in HTML, under this summary."""

    kind: ClassVar[str] = "items"
    texts: tuple[str, ...]
    folded: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header.

    `folded`: collapsed in HTML, under this summary. `colours`: of a mark in each cell of the header, `#rrggbb`, or
    empty for none.
    """

    kind: ClassVar[str] = "table"
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: str | None = None
    colours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG by its file name beside the report. `folded`: collapsed in HTML, under this summary."""

    kind: ClassVar[str] = "picture"
    name: str
    caption: str
    folded: str | None = None


Block = Heading | Paragraph | Items | Table | Picture
_LONG_CELL_CHARS = 60
_NO_DIGITS = str.maketrans("", "", ".-+e,*() to")


def to_markdown(blocks: Sequence[Block]) -> str:
    """The report as markdown, ending in a line feed. What is collapsed in HTML stands under its summary."""
    return _environment(autoescape=False).get_template("report.md.j2").render(blocks=blocks)


def to_html(blocks: Sequence[Block], title: str, pictures: Mapping[str, bytes]) -> str:
    """The report as one page that needs no other file. `pictures`: file name -> PNG."""
    encoded = {name: base64.b64encode(png).decode("ascii") for name, png in pictures.items()}
    template = _environment(autoescape=True).get_template("report.html.j2")
    return template.render(blocks=blocks, title=title, pictures=encoded) + "\n"


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("vsr_dist.core"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": _inline, "wrappable": _wrappable, "cell_class": _cell_class}
    return environment


def _inline(text: str) -> Markup:
    """Escaped text, with `code` between backticks and **bold** between double stars."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)  # A backtick without its partner: no code.
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if place % 2 else _bold(part) for place, part in enumerate(parts))


def _bold(text: str) -> Markup:
    parts = text.split("**")
    if len(parts) % 2 == 0:
        return escape(text)
    bold = Markup("<strong>{}</strong>")
    return Markup("").join(bold.format(part) if place % 2 else escape(part) for place, part in enumerate(parts))


def _wrappable(text: Markup) -> Markup:
    """Long names such as adversarial.weight may wrap after a dot."""
    return Markup(str(text).replace(".", ".<wbr>"))


def _cell_class(text: str) -> str:
    """CSS classes of a cell: numbers to the right, and what is met or missed in its colour."""
    kinds = []
    # Also in bold, with separators, and with another number or an interval in brackets.
    if text.translate(_NO_DIGITS).isdigit():
        kinds.append("number")
    if text == "yes" or text.endswith(" met"):
        kinds.append("good")
    if text == "no" or text.endswith(" missed"):
        kinds.append("bad")
    if len(text) > _LONG_CELL_CHARS:
        kinds.append("text")
    return " ".join(kinds)
