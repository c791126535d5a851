"""How well a sentence encoder on analogue memory still finds sentences after a year.

    python -m experiments.encoder_accuracy

All linear layers of the encoder (10.6 of 22 million parameters, see
``experiments.sentence_encoder``) lie on tiles. The programming of its weights is optimised on two
kinds of phase-change memory. Then the first line of a docstring is to find the paragraph below it
among those of all others: the share of those found is compared with the baseline's, two equal pairs
of devices, and with the digital network's, from a second to a year after programming. Chips of both
are paired by seed.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.sentence_encoder import Pairs, docstring_pairs, encoder, retrieval_accuracy
from wpo_optuna import ProgrammingStrategy, WeightProgrammingProblem, run_study
from wpo_optuna.evaluate.accuracy import BASELINE, OPTIMISED, NetworkSetup, compare_over_time
from wpo_optuna.evaluate.metric_over_time import MetricOverTime
from wpo_optuna.hardware import (
    NAMED_RPU_CONFIGS,
    NamedRPUConfig,
    format_duration,
    parse_durations,
)
from wpo_optuna.network.conversion import NetworkForms
from wpo_optuna.network.weights import read_weights
from wpo_optuna.report import drawing

T_STEPS = parse_durations("1s,1d,1y", "t_steps")
HARDWARE = ("hermes", "pcm")


def optimised_strategy(hardware: NamedRPUConfig, n_trials: int, seed: int) -> ProgrammingStrategy:
    """A strategy for the encoder's weights as they lie on the tiles."""
    rpu_config = hardware.build()
    problem = WeightProgrammingProblem(
        weights=read_weights(encoder(), mapping=rpu_config.mapping).weights,
        f_lst=[1.0, None],
        rpu_config=rpu_config,
        t_steps=hardware.t_steps,
        g_converter_baseline=hardware.baseline(),
        seed=seed,
    )
    result = run_study(
        problem, n_trials=n_trials, storage="memory", tracking_uri=False, show_progress_bar=True
    )
    assert result.strategy is not None, "interrupted"
    print(f"TNMSE of the baseline {result.baseline}, optimised {result.tnmse}", flush=True)
    return result.strategy


def follow(
    hardware: NamedRPUConfig,
    strategy: ProgrammingStrategy,
    pairs: Pairs,
    repeats: int,
    seed: int,
) -> MetricOverTime:
    """The share of sentences found over time with a strategy, and with the baseline."""
    forms = NetworkForms.of(encoder(), hardware.build())
    setup = NetworkSetup(forms, hardware.name, pairs, retrieval_accuracy, "sentences found")
    return compare_over_time(
        setup, {OPTIMISED: strategy}, hardware.baseline(), T_STEPS,
        repeats=repeats, seed=seed, show_progress_bar=True,
    )  # fmt: skip


def table(results: Mapping[str, MetricOverTime]) -> str:
    """Means in per cent with standard errors, as a table in Markdown."""
    lines = [
        "| hardware | after | digital | baseline | optimised | difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        difference, error_of_difference = result.difference(OPTIMISED)
        for step, t in enumerate(T_STEPS):
            cells = [
                f"{100 * result.mean(curve)[step]:.1f} ± {100 * _error(result, curve)[step]:.1f}"
                for curve in (BASELINE, OPTIMISED)
            ]
            by = f"{100 * difference[step]:+.1f} ± {100 * error_of_difference[step]:.1f}"
            ideal = f"{100 * (result.ideal or math.nan):.1f}"
            lines.append(
                f"| `{name}` | {format_duration(t)} | {ideal} | {' | '.join(cells)} | {by} |"
            )
    return "\n".join(lines)


def _error(result: MetricOverTime, curve: str) -> np.ndarray:
    return result.spread(curve) / math.sqrt(result.repeats)


def figure(results: Mapping[str, MetricOverTime]) -> Figure:
    """A panel for each hardware: means and standard errors in per cent over time."""
    looks = {BASELINE: drawing.LOOKS[5], OPTIMISED: drawing.LOOKS[0]}
    drawn, all_axes = drawing.panels(len(results), 3.2)
    for axes, (name, result) in zip(all_axes, results.items(), strict=True):
        places = drawing.time_axis(axes, T_STEPS)
        if result.ideal is not None:
            axes.axhline(100 * result.ideal, label="digital", **drawing.REFERENCE)
        for curve, look in looks.items():
            mean, error = 100 * result.mean(curve), 100 * _error(result, curve)
            axes.errorbar(places, mean, error, capsize=3, markersize=5, label=curve, **look)
        axes.set_title(name)
    all_axes[0].set_ylabel("sentences found (%)")
    drawing.legend_above(drawn, all_axes[0])
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Optimises, measures, and writes the table, the figure and all measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rpu-config", nargs="+", choices=NAMED_RPU_CONFIGS, default=HARDWARE)
    parser.add_argument("--n-trials", type=int, default=2000, help="trials of each optimisation")
    parser.add_argument("--pairs", type=int, default=96, help="pairs of sentences")
    parser.add_argument("--repeats", type=int, default=5, help="chips of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the optimisation and the noise")
    parser.add_argument("--output", type=Path, default=Path("wpo_results", "encoder_accuracy"))
    options = parser.parse_args(arguments)

    warnings.filterwarnings("ignore", "Using a non-tuple sequence")  # aihwkit, of each Hermes draw
    pairs, results = docstring_pairs(options.pairs), {}
    for name in options.rpu_config:
        hardware = NAMED_RPU_CONFIGS[name]
        print(f"{name}: {hardware.description}", flush=True)
        strategy = optimised_strategy(hardware, options.n_trials, options.seed)
        strategy.save(options.output / name / "strategy.json")
        results[name] = follow(hardware, strategy, pairs, options.repeats, options.seed)
        results[name].save(options.output / name)
        print(f"{results[name].verdict()}\n", flush=True)
    drawing.save(figure, results, options.output / "accuracy_encoder")
    path = options.output / "accuracy_encoder.md"
    path.write_text(f"{table(results)}\n", encoding="utf-8")
    print(f"{table(results)}\n\nresults  {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
