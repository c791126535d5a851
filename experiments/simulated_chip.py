"""Readings as one might measure them on a chip, of simulated devices, to try fitting a model to.

python -m experiments.simulated_chip chip.csv
"""

from __future__ import annotations

import argparse
import csv

import numpy as np
from aihwkit.inference import PCMLikeNoiseModel

from wpo_optuna.hardware.device_statistics import simulate

TARGETS_US = np.array([0.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0])
TIMES_S = np.array([1.0, 60.0, 3600.0, 86400.0, 30 * 86400.0])


def main(arguments: list[str] | None = None) -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="CSV to write")
    parser.add_argument("--devices", type=int, default=200, help="at each target")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    target = np.repeat(TARGETS_US, options.devices)
    read = simulate(PCMLikeNoiseModel(g_max=25.0), target, TIMES_S, options.seed)
    with open(options.file, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["target_us", "t_s", "g_us", "device"])
        for device, (wanted, of_device) in enumerate(zip(target, read, strict=True)):
            writer.writerows(
                [wanted, t, f"{g:.5g}", device] for t, g in zip(TIMES_S, of_device, strict=True)
            )


if __name__ == "__main__":
    main()
