"""How long an evaluation of a real network takes, in torch and on aihwkit's compiled tiles.

    python -m experiments.benchmark_accuracy

The accuracy of a sentence encoder of 22 million parameters (see ``experiments.sentence_encoder``)
is measured with both in turns: chips of two ways to program them, a day after programming. That the
two find the same accuracy is for tests; here the seconds count, stage by stage. Other programs that
run at the same time count as well, and more where torch has several threads, which wait for each
other: OMP_NUM_THREADS=1 compares on one core.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from experiments.sentence_encoder import docstring_pairs, encoder, retrieval_accuracy
from wpo_optuna.evaluate.accuracy import OPTIMISED, NetworkSetup, compare_over_time
from wpo_optuna.evaluate.chip import Chip, Engine
from wpo_optuna.hardware import DAY, NAMED_RPU_CONFIGS
from wpo_optuna.network.conversion import NetworkForms
from wpo_optuna.strategy import ProgrammingStrategy

# Two pairs whose devices all keep some conductance; how good it is does not matter here.
_RISING = (2.0, 8.0, 12.5, 17.0, 25.0)
STRATEGY = ProgrammingStrategy((1.0, 2.0), (_RISING, _RISING[::-1]) * 2, g_min=0.0, g_max=25.0)

IN_TORCH: Engine = "torch"
COMPILED: Engine = "aihwkit"
STAGES = ("programming", "reading in time", "forward passes", "the rest", "whole evaluation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures both and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=24, help="pairs of sentences")
    parser.add_argument("--repeats", type=int, default=1, help="turns")
    options = parser.parse_args(arguments)
    hardware, pairs = NAMED_RPU_CONFIGS["pcm"], docstring_pairs(options.pairs)
    forms = NetworkForms.of(encoder(), hardware.build())
    setup = NetworkSetup(forms, "pcm", pairs, retrieval_accuracy, "accuracy")
    n_tokens = sum(batch.tokens.numel() for batch in pairs)
    print(f"{options.pairs} pairs of sentences, {n_tokens} tokens")
    started = time.perf_counter()
    setup.measure(forms.restated)
    print(f"digital network  {time.perf_counter() - started:.1f} s for one forward pass of all")
    seconds: dict[Engine, dict[str, float]] = {IN_TORCH: {}, COMPILED: {}}
    for repeat in range(options.repeats):
        for engine, of_engine in seconds.items():
            with timing_stages(setup) as (timed_setup, stages):
                compare_over_time(
                    timed_setup, {OPTIMISED: STRATEGY}, hardware.baseline(), [DAY], repeats=1,
                    seed=repeat, engine=engine, show_progress_bar=True,
                )  # fmt: skip
            for stage in STAGES:
                of_engine[stage] = of_engine.get(stage, 0.0) + stages[stage]
    print(table(seconds))
    return 0


@contextmanager
def timing_stages(setup: NetworkSetup) -> Iterator[tuple[NetworkSetup, dict[str, float]]]:
    """The setup, and the seconds that each stage of the block takes, once it has ended."""
    seconds: dict[str, float] = defaultdict(float)
    started = time.perf_counter()
    timed = functools.partial(_timed, seconds=seconds)
    with (
        patch.object(Chip, "program", timed(Chip.program, "programming")),
        patch.object(Chip, "drift", timed(Chip.drift, "reading in time")),
    ):
        # The digital network is no part of the comparison.
        forms = replace(setup.network, digital=None)
        yield replace(setup, network=forms, metric=timed(setup.metric, "forward passes")), seconds
    whole = time.perf_counter() - started
    seconds |= {"the rest": whole - sum(seconds.values()), "whole evaluation": whole}


def _timed(
    function: Callable[..., Any], stage: str, seconds: dict[str, float]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[stage] += time.perf_counter() - started

    return timed


def table(seconds: Mapping[Engine, Mapping[str, float]]) -> str:
    """Seconds of each stage with both, and how many times faster torch is."""
    lines = [f"{'':18} {'torch':>9} {'compiled':>11} {'ratio':>7}"]
    for stage in STAGES:
        ours, theirs = seconds[IN_TORCH][stage], seconds[COMPILED][stage]
        ratio = f"{theirs / ours:6.1f}" if stage != "the rest" else ""
        lines.append(f"{stage:18} {ours:7.1f} s {theirs:9.1f} s {ratio:>7}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
