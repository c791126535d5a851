"""Every setting of ``python -m wpo_optuna.evaluate``, declared once."""

from __future__ import annotations

from wpo_optuna.study.command_line import Settings, Text, Texts, Whole, setting

_WHAT, _HOW, _RECORD = "what is measured", "how it is measured", "records"


class EvaluationSettings(Settings):
    """The settings of one evaluation, as the user wrote them."""

    model: str = setting(
        ..., "returns the network: a torch module, or one that aihwkit converted to analog; "
        "package.module:function or path/file.py:function", _WHAT, "FUNCTION",
    )  # fmt: skip
    strategy: Texts = setting(
        ..., "strategy file; for strategies by layer LAYER=FILE ..., where LAYER may be a pattern "
        "such as 'encoder.*'; layers without one are programmed like the baseline", _WHAT, "FILE",
    )  # fmt: skip
    data: str = setting(
        ..., "returns batches of (inputs, targets), such as a DataLoader", _WHAT, "FUNCTION"
    )
    metric: str | None = setting(
        None, "takes the network and the data and returns a number; by default the share of right "
        "classifications", _WHAT, "FUNCTION",
    )  # fmt: skip
    rpu_config: str | None = setting(
        None, "hardware of a digital network: pcm, standard-hwa, reram-wan, reram-cmo, hermes or a "
        "function that returns an InferenceRPUConfig (pcm)", _WHAT, "NAME",
    )  # fmt: skip
    baseline: Text = setting(
        "dual:1,1", "programming to compare with: single, dual:F,F, npair:F,F,..., or a strategy "
        "file", _HOW, "SPEC",
    )  # fmt: skip
    t_steps: Text = setting("1s,1min,1h,1d,30d,1y", "times after programming", _HOW, "LIST")
    repeats: Whole = setting(10, "how often the network is programmed anew", _HOW, "N", ge=1)
    seed: Whole = setting(
        0, "seed of programming, drift and accumulated read noise", _HOW, "N", ge=0
    )
    output: str = setting("wpo_results/accuracy", "directory for tables and figure", _RECORD, "DIR")
    tracking_uri: str | None = setting(
        None, "MLflow tracking URI; by default MLflow's own; none for no tracking", _RECORD, "URI"
    )
    experiment: str = setting("wpo", "MLflow experiment", _RECORD, "NAME")
