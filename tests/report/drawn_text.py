"""Where the texts and axes of a figure lie, once its layout is settled."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from wpo_optuna.report.figures import drawing

# Letters of neighbouring words may come nearer than this many pixels only by touching.
_TOUCHING_PX = 0.5


def draw(figure_of: Callable[..., Figure | str], *arguments: object) -> Figure:
    """A figure as it is saved: in the report's style, its layout settled."""
    with drawing.style():
        figure = figure_of(*arguments)
        assert isinstance(figure, Figure), figure
        drawing.settle_layout(figure)
        figure.draw_without_rendering()  # where axes place their titles and labels
        return figure


def assert_readable(figure: Figure) -> None:
    """Fails if texts overlap, are too small or leave the figure, or if axes are empty."""
    for axes in figure.axes:
        assert axes.has_data() or axes.get_label() == "<colorbar>", "empty axes"
    frame = figure.bbox.padded(1)
    boxes = [(text, text.get_window_extent()) for text in _shown_texts(figure)]
    assert boxes
    # 390 pixels of a phone less the page's margins show 4.5 inches of 72 points.
    assert min(text.get_fontsize() for text, _ in boxes) * 366 / (figure.get_figwidth() * 72) > 10
    for text, box in boxes:
        inside = frame.x0 <= box.x0 and frame.y0 <= box.y0
        inside &= box.x1 <= frame.x1 and box.y1 <= frame.y1
        assert inside, f"{text.get_text()!r} leaves the figure"
    for (one, one_box), (other, other_box) in itertools.combinations(boxes, 2):
        overlap = Bbox.intersection(one_box, other_box)
        touching = overlap is None or min(overlap.width, overlap.height) <= _TOUCHING_PX
        assert touching, f"{one.get_text()!r} overlaps {other.get_text()!r}"


def _shown_texts(figure: Figure) -> list[Text]:
    """All texts with letters that are drawn."""
    labels_out_of_sight = set()
    for axes in figure.axes:
        labels_out_of_sight |= _tick_labels(axes) - _shown_tick_labels(axes)
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in labels_out_of_sight
    ]


def _tick_labels(axes: Axes) -> set[Text]:
    return {
        label
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.majorTicks, *axis.minorTicks)
        for label in (tick.label1, tick.label2)
    }


def _shown_tick_labels(axes: Axes) -> set[Text]:
    shown = set()
    for axis in (axes.xaxis, axes.yaxis):
        for tick in axis._update_ticks():
            shown |= {label for label in (tick.label1, tick.label2) if label.get_visible()}
    return shown
