"""The example notebook runs from beginning to end, and is kept with what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "first_study.ipynb"


def shown_by(cells: list[Any]) -> list[list[str]]:
    """The kinds of outputs of each cell of code."""
    return [
        [kind for output in cell.outputs for kind in sorted(output.get("data", {"text": ""}))]
        for cell in cells
        if cell.cell_type == "code"
    ]


def test_the_notebook_is_kept_with_its_outputs_and_without_paths_of_a_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(shown_by(notebook.cells))
    texts = [o.text for cell in notebook.cells for o in cell.get("outputs", []) if "text" in o]
    assert not any("site-packages" in text or "Error" in text for text in texts)


@pytest.mark.slow
def test_the_notebook_shows_in_a_new_kernel_what_it_is_kept_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without ipywidgets tqdm recommends them.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = shown_by(notebook.cells)
    where = {"metadata": {"path": str(tmp_path)}}
    with_bar = "run_study(problem, n_trials=20, storage='memory', tracking_uri=False, "
    with_bar += "self_check=False, finalists=1, show_progress_bar=True)"
    notebook.cells.append(nbformat.v4.new_code_cell(with_bar))
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    *shown, last = shown_by(notebook.cells)
    assert shown == kept
    assert (tmp_path / "strategy.json").exists()
    assert "text/html" in last
    told = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    assert "searching: 100%" in told
    assert "best TNMSE" in told
