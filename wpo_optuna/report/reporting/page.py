"""A page of HTML that needs nothing else: text, tables and figures, for any width of screen."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from wpo_optuna.report.figures.drawing import DrawnFigure

# Below this width in pixels, narrow figures take the place of wide ones.
_NARROW_PX = 680

_STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 980px; padding: 1.5rem 1.25rem 4rem; color: #1a1a1a;
  background: #fff; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; margin: 0 0 .75rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.35rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid #d0d0d0; overflow-wrap: anywhere; }}
h3 {{ font-size: 1.1rem; margin: 1.75rem 0 .4rem; }}
p {{ margin: .5rem 0; max-width: 72ch; overflow-wrap: anywhere; }}
p.lead {{ font-size: 1.15rem; }}
nav {{ margin: 1rem 0; font-size: .95rem; }}
nav a {{ display: inline-block; margin: 0 1rem .25rem 0; padding: .2rem 0; color: #00588a; }}
figure {{ margin: .75rem 0 1.5rem; }}
figure img {{ display: block; width: 100%; height: auto; }}
figcaption, .omitted {{ color: #555; font-size: .9rem; max-width: 80ch; margin-top: .4rem; }}
.scroll {{ overflow-x: auto; margin: .75rem 0; }}
table {{ border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e2e2e2; }}
thead th {{ border-bottom: 2px solid #888; white-space: nowrap; }}
table.facts td:last-child {{ overflow-wrap: anywhere; min-width: 9em; }}
td.number, th.number {{ text-align: right; white-space: nowrap; }}
@media (max-width: {_NARROW_PX}px) {{
  body {{ padding: 1rem .75rem 3rem; }}
  h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.2rem; }}
}}
@media print {{ nav {{ display: none; }} figure {{ break-inside: avoid; }} }}
"""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str
    is_lead: bool = False


@dataclass(frozen=True)
class Table:
    """A table; on a narrow screen it scrolls by itself.

    Attributes:
        head: names of the columns; empty for none.
        rows: the cells of each row.
        text_columns: indices of the columns that are no numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class OmittedFigure:
    """Why there is no figure."""

    reason: str


Block = Paragraph | Table | DrawnFigure | OmittedFigure


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        title: the heading.
        blocks: what is below it.
        level: 2 for the page's own sections, 3 for their parts.
    """

    title: str
    blocks: Sequence[Block]
    level: int = 2


def html_page(title: str, opening: Sequence[Block], sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: the page's heading.
        opening: what comes before the first section.
        sections: the sections, in order; those of level 2 are listed at the beginning.
    """
    anchors = _anchors(sections)
    links = "\n".join(
        f'<a href="#{anchor}">{escape(section.title)}</a>'
        for section, anchor in zip(sections, anchors, strict=True)
        if section.level == 2
    )
    body = "\n".join(_section(*pair) for pair in zip(sections, anchors, strict=True))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{_blocks(opening)}
<nav aria-label="sections">
{links}
</nav>
{body}
</body>
</html>
"""


def _anchors(sections: Sequence[Section]) -> list[str]:
    """A name for each section, all different."""
    anchors: list[str] = []
    for number, section in enumerate(sections, start=1):
        words = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
        anchors.append(f"{number}-{words}".rstrip("-"))
    return anchors


def _section(section: Section, anchor: str) -> str:
    heading = f'<h{section.level} id="{anchor}">{escape(section.title)}</h{section.level}>'
    return f"{heading}\n{_blocks(section.blocks)}"


def _blocks(blocks: Sequence[Block]) -> str:
    return "\n".join(map(_block, blocks))


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        kind = ' class="lead"' if block.is_lead else ""
        return f"<p{kind}>{escape(block.text)}</p>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, OmittedFigure):
        return f'<p class="omitted">{escape(block.reason)}</p>'
    return _figure(block)


def _table(table: Table) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}>{escape(cell)}</{tag}>" if column in table.text_columns
            else f'<{tag} class="number">{escape(cell)}</{tag}>'
            for column, cell in enumerate(row)
        )  # fmt: skip

    head = f"<thead><tr>{cells(table.head, 'th')}</tr></thead>\n" if table.head else ""
    rows = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    kind = "" if table.head else ' class="facts"'
    return f'<div class="scroll"><table{kind}>\n{head}<tbody>\n{rows}\n</tbody></table></div>'


def _figure(drawn: DrawnFigure) -> str:
    shown = drawn.illustration
    return (
        f'<figure><picture><source media="(max-width: {_NARROW_PX}px)" '
        f'srcset="{_data_url(drawn.narrow_svg)}"><img src="{_data_url(drawn.svg)}" '
        f'alt="{escape(shown.title)}: {escape(shown.caption)}"></picture>'
        f"<figcaption>{escape(shown.caption)}</figcaption></figure>"
    )


def _data_url(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
