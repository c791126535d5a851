"""The sentence encoder on analogue memory: what is written of it, and that it is the encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import benchmark_accuracy, encoder_accuracy, sentence_encoder
from wpo_optuna.evaluate.metric_over_time import MetricOverTime
from wpo_optuna.report import drawing

BETTER_BY = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.1]])


def test_the_table_and_the_figure_have_means_with_standard_errors_in_per_cent(
    tmp_path: Path,
) -> None:
    times = encoder_accuracy.T_STEPS
    baseline = np.array([[0.50, 0.40, 0.20], [0.52, 0.44, 0.30]])
    curves = {"baseline": baseline, "optimised": baseline + BETTER_BY}
    results = {"hermes": MetricOverTime("found", times, 0.75, curves, True)}
    heading, _, first, _, last = encoder_accuracy.table(results).splitlines()
    assert heading.split(" | ")[2:4] == ["digital", "baseline"]
    assert first == "| `hermes` | 1s | 75.0 | 51.0 ± 1.0 | 61.0 ± 1.0 | +10.0 ± 0.0 |"
    assert last == "| `hermes` | 1y | 75.0 | 25.0 ± 5.0 | 45.0 ± 5.0 | +20.0 ± 10.0 |"
    path = drawing.save(encoder_accuracy.figure, results, tmp_path / "figure")
    text = Path(path).read_text(encoding="utf-8")
    assert all(f">{word}<" in text for word in ("baseline", "optimised", "digital", "1y"))


def test_the_stages_are_compared_each_and_as_a_whole() -> None:
    ours = dict.fromkeys(benchmark_accuracy.STAGES, 2.0)
    theirs = dict.fromkeys(benchmark_accuracy.STAGES, 13.0)
    lines = benchmark_accuracy.table({"torch": ours, "aihwkit": theirs}).splitlines()
    assert lines[-1].split() == ["whole", "evaluation", "2.0", "s", "13.0", "s", "6.5"]
    assert len(lines) == 1 + len(benchmark_accuracy.STAGES)


@pytest.mark.slow
def test_the_encoder_has_the_published_similarities() -> None:
    # Needs the package index. The scores are those in the documentation of Sentence-BERT.
    texts = ("A man is eating pasta.", "A man is eating food.", "A man is eating a piece of bread.")
    network = sentence_encoder.encoder()
    with torch.no_grad():
        first, *others = (network(torch.tensor([sentence_encoder.tokens_of(t)]))[0] for t in texts)
    assert [float(first @ other) for other in others] == pytest.approx([0.7035, 0.5272], abs=1e-4)


@pytest.mark.slow
def test_the_benchmark_measures_both_on_the_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_accuracy.main(["--pairs", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 pairs of sentences, ")
    assert all(stage in out for stage in benchmark_accuracy.STAGES)
