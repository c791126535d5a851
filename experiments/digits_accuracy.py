"""How much accuracy the example network keeps over a year, with and without optimised programming.

``python -m experiments.digits_accuracy`` optimises the programming of the built-in digits network
on two kinds of phase-change memory (other hardware with ``--rpu-config``), or takes a strategy with
``--strategy``. It follows the accuracy on the 450 held-out images from a second to a year, against
two equal pairs of devices and against the ideal digital network. The functions ``network`` and
``batches`` serve the command as well:

    python -m wpo_optuna.evaluate --model experiments.digits_accuracy:network \\
        --data experiments.digits_accuracy:batches --strategy strategy.json
"""

from __future__ import annotations

import argparse
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.train_digits import WEIGHTS_FILE, digits_data, digits_network
from wpo_optuna import ProgrammingStrategy, WeightProgrammingProblem, run_study
from wpo_optuna.evaluate.accuracy import OPTIMISED, NetworkSetup, accuracy, compare_over_time
from wpo_optuna.evaluate.metric_over_time import MetricOverTime
from wpo_optuna.hardware import NAMED_RPU_CONFIGS, NamedRPUConfig, format_duration, parse_durations
from wpo_optuna.network.conversion import NetworkForms
from wpo_optuna.network.weights import read_weights

T_STEPS = parse_durations("1s,1min,1h,1d,30d,1y", "t_steps")


def network() -> nn.Sequential:
    """The built-in network, trained."""
    trained = digits_network()
    trained.load_state_dict(load_file(WEIGHTS_FILE))
    return trained.eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    """The held-out images (450, 64) and the digits they show."""
    data = digits_data()
    return [(data.test_images, data.test_labels)]


def times_for(hardware: NamedRPUConfig) -> tuple[float, ...]:
    """A second to a year, or the only times that the hardware's noise model knows."""
    return hardware.t_steps if hardware.only_these_times else T_STEPS


def optimised_strategy(hardware: NamedRPUConfig, n_trials: int, seed: int) -> ProgrammingStrategy:
    """A strategy for the weights as they lie on the tiles, found without storage and records."""
    rpu_config = hardware.build()
    problem = WeightProgrammingProblem(
        weights=read_weights(network(), mapping=rpu_config.mapping).weights,
        f_lst=[1.0, None],
        rpu_config=rpu_config,
        t_steps=times_for(hardware),
        g_converter_baseline=hardware.baseline(),
        seed=seed,
    )
    result = run_study(
        problem, n_trials=n_trials, storage="memory", tracking_uri=False, show_progress_bar=True
    )
    assert result.strategy is not None, "interrupted"
    print(f"TNMSE of the baseline {result.baseline}, optimised {result.tnmse}\n")
    return result.strategy


def follow(
    hardware: NamedRPUConfig, strategy: ProgrammingStrategy, repeats: int, seed: int
) -> MetricOverTime:
    """The accuracy over time with a strategy, and with the hardware's baseline."""
    forms = NetworkForms.of(network(), hardware.build())
    setup = NetworkSetup(forms, hardware.name, batches(), accuracy, "accuracy")
    return compare_over_time(
        setup, {OPTIMISED: strategy}, hardware.baseline(), times_for(hardware),
        repeats=repeats, seed=seed, show_progress_bar=True,
    )  # fmt: skip


def conclusion(result: MetricOverTime) -> str:
    """What is kept at the last time, with standard errors."""
    assert result.ideal is not None
    losses = []
    for name, values in result.curves.items():
        final = values[:, -1]
        error = np.std(final, ddof=1) / math.sqrt(len(final)) if len(final) > 1 else math.nan
        losses.append(
            f"{name} {100 * final.mean():.2f} % (± {100 * error:.2f}), "
            f"{100 * (result.ideal - final.mean()):.2f} points below the digital network"
        )
    return f"after {format_duration(result.t_steps[-1])}: " + "; ".join(losses)


def report(
    hardware: NamedRPUConfig, strategy: ProgrammingStrategy, repeats: int, seed: int, output: Path
) -> None:
    """Measures, writes tables and figure, and prints the result."""
    result = follow(hardware, strategy, repeats, seed)
    result.save(output)
    strategy.save(output / "strategy.json")
    print(f"{result.table()}\n\n{conclusion(result)}\nresults  {output}\n")


def main() -> None:
    """Optimise or read a strategy, and report its accuracy on each hardware asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--strategy", type=Path, help="take this one instead of optimising")
    parser.add_argument(
        "--rpu-config", nargs="+", choices=NAMED_RPU_CONFIGS, help="hardware (pcm and hermes)"
    )
    parser.add_argument("--n-trials", type=int, default=2000, help="trials of each optimisation")
    parser.add_argument("--repeats", type=int, default=100, help="programmings of the network")
    parser.add_argument("--seed", type=int, default=0, help="of the optimisation and the noise")
    parser.add_argument("--output", type=Path, default=Path("wpo_results", "digits_accuracy"))
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # layers of 64 neurons are too small to share
    warnings.filterwarnings("ignore", "Using a non-tuple sequence")  # aihwkit, of each Hermes draw
    given = None if arguments.strategy is None else ProgrammingStrategy.load(arguments.strategy)
    names = arguments.rpu_config or (["pcm", "hermes"] if given is None else ["pcm"])
    for name in names:
        hardware = NAMED_RPU_CONFIGS[name]
        print(f"{name}: {hardware.description}")
        strategy = given or optimised_strategy(hardware, arguments.n_trials, arguments.seed)
        output = arguments.output / name
        report(hardware, strategy, arguments.repeats, arguments.seed, output)


if __name__ == "__main__":
    main()
