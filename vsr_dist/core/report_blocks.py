"""A report as a list of blocks, and the two texts made of it: markdown, and one HTML page with its pictures in it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Text; what stands between backticks is shown as code."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of texts, or `otherwise` if it is empty."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header. `folded`: closed until it is clicked on, in HTML."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: str | None = None


@dataclass(frozen=True)
class Picture:
    """A PNG by its file name beside the report."""

    name: str
    caption: str


Block = Heading | Paragraph | Items | Table | Picture

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 2rem auto; max-width: 84rem;
       padding: 0 1.5rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #d8dee4; }
code { background: #f2f4f6; padding: .1em .3em; border-radius: 3px; font-size: .92em; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e8ec; text-align: left; white-space: nowrap; }
th { background: #f2f4f6; white-space: normal; vertical-align: bottom; }
td.number { text-align: right; } td.good { color: #046b3f; } td.bad { color: #a8201a; }
td.text { white-space: normal; min-width: 24rem; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; border: 1px solid #e4e8ec; }
figcaption { color: #57606a; font-size: .9rem; } summary { cursor: pointer; color: #0550ae; }
"""
_LONG_CELL_CHARS = 60


def to_markdown(blocks: Sequence[Block]) -> str:
    """The report as markdown, with a line feed at its end."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block], title: str, pictures: Mapping[str, bytes]) -> str:
    """The report as one page that needs no other file. `pictures`: file name -> PNG."""
    body = "\n".join(_html(block, pictures) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Items(texts):
            return "\n".join(f"- {text}" for text in texts)
        case Table(header, rows):
            lines = [header, ("---",) * len(header), *rows]
            return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        case Picture(name, caption):
            return f"![{caption}]({name})"


def _html(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Items(texts):
            return "<ul>" + "".join(f"<li>{_inline(text)}</li>" for text in texts) + "</ul>"
        case Table():
            return _html_table(block)
        case Picture(name, caption):
            data = base64.b64encode(pictures[name]).decode("ascii")
            text = html.escape(caption)
            image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
            return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{_inline(cell).replace('.', '.<wbr>')}</th>" for cell in table.header)
    rows = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in table.rows)
    text = f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    if table.folded is None:
        return text
    return f"<details><summary>{html.escape(table.folded)}</summary>{text}</details>"


def _cell(text: str) -> str:
    """A cell; numbers to the right, and what is met or missed in its colour."""
    kinds = []
    if text.replace(".", "").replace("-", "").replace("+", "").replace("e", "").isdigit():
        kinds.append("number")
    if text == "yes" or text.endswith(" met"):
        kinds.append("good")
    if text == "no" or text.endswith(" missed"):
        kinds.append("bad")
    if len(text) > _LONG_CELL_CHARS:
        kinds.append("text")
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<td{kind}>{_inline(text)}</td>"


def _inline(text: str) -> str:
    """Escaped text, with `code` between backticks and **bold** between double stars."""
    parts = html.escape(text, quote=False).split("`")
    if len(parts) % 2 == 0:
        return "`".join(parts)  # A backtick without its partner: no code.
    shown = [f"<code>{part}</code>" if place % 2 else _bold(part) for place, part in enumerate(parts)]
    return "".join(shown)


def _bold(text: str) -> str:
    parts = text.split("**")
    if len(parts) % 2 == 0:
        return text
    return "".join(f"<strong>{part}</strong>" if place % 2 else part for place, part in enumerate(parts))
