"""Tables and figures as notebooks show them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Sharp on screens with two dots to a pixel.
_DOTS_PER_INCH, _PIXELS_PER_INCH = 192, 96


def table(caption: str, rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    """A small table.

    Args:
        caption: what it shows.
        rows: cells; without a header the first one names the row.
        header: names of the columns.
    """
    lines = ["".join(f"<th>{escape(name)}</th>" for name in header)] if header else []
    for first, *others in rows:
        kind = "td" if header else "th"
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        lines.append(f"<{kind}>{escape(first)}</{kind}>{cells}")
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"


def image(figure: Figure, name: str) -> str:
    """A figure as a picture inside the page.

    Args:
        figure: the figure.
        name: what it shows, for those who cannot see it.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    width = round(figure.get_figwidth() * _PIXELS_PER_INCH)
    source = f"data:image/png;base64,{encoded}"
    return f'<img src="{source}" alt="{escape(name)}" width="{width}">'
