"""The device model: programming error, drift and read noise over the conductance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wpo_optuna.report.figures import colours, time_axis
from wpo_optuna.report.figures.drawing import Illustration, Omission, Width, legend_above, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wpo_optuna.report.reporting.device_model import DeviceModel
    from wpo_optuna.report.reporting.study_record import StudyRecord

TITLE = "Device model"

# Relative to the largest conductance: a mean below this has no meaningful quotient.
_SMALLEST_MEAN = 1e-3


def illustrate(record: StudyRecord) -> Illustration | Omission:
    """The figure of the devices that a study is about."""
    if record.measurements is None:
        return Omission(TITLE, "The devices are sampled when a study has been scored.")
    devices = record.measurements.problem.devices
    if devices is None:
        return Omission(TITLE, "The noise model cannot be sampled apart from a tile.")
    model = record.problem.get("noise_model", "the noise model")
    caption = (
        f"Devices of {model}, sampled over their range of conductance. Programming error: mean "
        "(line) and one standard deviation (area) of the deviation from the target. Drift: mean "
        "conductance at each time, relative to that after programming. Read noise: standard "
        "deviation of repeated reads of a device at each time."
    )
    return Illustration("devices", TITLE, caption, lambda width: _draw(devices, width))


def _draw(devices: DeviceModel, width: Width) -> Figure:
    figure, (programming, drift, noise) = panels(
        3, width, 3.0 if width is Width.WIDE else 2.4, share_x=True
    )
    g = devices.g_target_us
    _draw_programming(programming, devices)
    programmed = devices.programmed_mean_us
    kept = np.where(programmed > _SMALLEST_MEAN * g.max(), programmed, np.nan)
    times = list(zip(devices.t_s, colours.of_times(len(devices.t_s)), strict=True))
    for (t, colour), mean, deviation in zip(
        times, devices.mean_us, devices.read_std_us, strict=True
    ):
        drift.plot(g, 100 * mean / kept, color=colour, label=time_axis.name(float(t)))
        noise.plot(g, deviation, color=colour)
    drift.set_title("drift")
    drift.set_ylabel("conductance kept (%)")
    noise.set_title("read noise")
    noise.set_ylabel("standard deviation (µS)")
    noise.set_ylim(bottom=0)
    figure.supxlabel("target conductance (µS)", fontsize=10)
    legend_above(figure, drift)
    return figure


def _draw_programming(axes: Axes, devices: DeviceModel) -> None:
    g, error = devices.g_target_us, devices.programmed_mean_us - devices.g_target_us
    spread = devices.programmed_std_us
    axes.fill_between(
        g, error - spread, error + spread, color=colours.OPTIMISED, alpha=0.2, linewidth=0
    )
    axes.plot(g, error, color=colours.OPTIMISED)
    axes.axhline(0, color=colours.FAINT, linewidth=0.8)
    axes.set_title("programming error")
    axes.set_ylabel("deviation from the target (µS)")
