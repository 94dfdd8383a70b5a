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
    """A list of texts. `folded`: closed until it is clicked on, in HTML."""

    texts: tuple[str, ...]
    folded: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header.

    `folded`: closed until it is clicked on, in HTML. `colours`: of a mark in each cell of the header, `#rrggbb`, or
    empty for none.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: str | None = None
    colours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG by its file name beside the report. `folded`: closed until it is clicked on, in HTML."""

    name: str
    caption: str
    folded: str | None = None


Block = Heading | Paragraph | Items | Table | Picture

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #fff; --line: #d8dee4; --soft: #f2f4f6; --quiet: #57606a;
        --link: #0550ae; --good: #046b3f; --bad: #a8201a; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e2e6ea; --page: #16191d; --line: #3a4149; --soft: #23282e; --quiet: #a3adb8; --link: #79b8ff;
          --good: #56d364; --bad: #ff8f86; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 2rem auto;
       max-width: 84rem; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
code { background: var(--soft); overflow-wrap: anywhere; padding: .1em .3em; border-radius: 3px; font-size: .92em; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { background: var(--soft); white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page); }
th:first-child { background: var(--soft); }
.mark { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .4em; }
td.number { text-align: right; } td.good { color: var(--good); } td.bad { color: var(--bad); }
td.text { white-space: normal; min-width: min(24rem, 60vw); }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; border: 1px solid var(--line); background: #fff; }
figcaption { color: var(--quiet); font-size: .9rem; } summary { cursor: pointer; color: var(--link); }
li { overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 .8rem; } th, td { padding: .3rem .45rem; }
  figure { overflow-x: auto; } figure img { max-width: none; width: max(100%, 44rem); } }
"""
_LONG_CELL_CHARS = 60
_NO_DIGITS = str.maketrans("", "", ".-+e,*() to")


def to_markdown(blocks: Sequence[Block]) -> str:
    """The report as markdown, with a line feed at its end. What is folded in HTML stands under its summary."""
    texts = []
    for block in blocks:
        if isinstance(block, Items | Table | Picture) and block.folded is not None:
            texts.append(f"**{block.folded}**")
        texts.append(_markdown(block))
    return "\n\n".join(texts) + "\n"


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
        case Items(texts, _):
            return "\n".join(f"- {text}" for text in texts)
        case Table(header=header, rows=rows):
            lines = [header, ("---",) * len(header), *rows]
            return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        case Picture(name=name, caption=caption):
            return f"![{caption}]({name})"


def _html(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Items(texts, folded):
            return _folded("<ul>" + "".join(f"<li>{_inline(text)}</li>" for text in texts) + "</ul>", folded)
        case Table():
            return _html_table(block)
        case Picture(name, caption, folded):
            data = base64.b64encode(pictures[name]).decode("ascii")
            text = html.escape(caption)
            image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
            return _folded(f"<figure>{image}<figcaption>{text}</figcaption></figure>", folded)


def _html_table(table: Table) -> str:
    colours = table.colours or ("",) * len(table.header)
    head = "".join(_head(*pair) for pair in zip(table.header, colours, strict=True))
    rows = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in table.rows)
    text = f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    return _folded(text, table.folded)


def _folded(text: str, summary: str | None) -> str:
    return text if summary is None else f"<details><summary>{html.escape(summary)}</summary>{text}</details>"


def _head(text: str, colour: str) -> str:
    mark = f'<span class="mark" style="background: {colour}"></span>' if colour else ""
    return f"<th>{mark}{_inline(text).replace('.', '.<wbr>')}</th>"


def _cell(text: str) -> str:
    """A cell; numbers to the right, and what is met or missed in its colour."""
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
