"""Every setting of a study, declared once.

The command line, ``--config``, ``settings.yaml``, :func:`wpo_optuna.run_study` and the replacement
for aihwkit's optimiser take their options, defaults and bounds from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from wpo_optuna.study.command_line import Settings, Text, Texts, Whole, setting

GRADIENT = "gradient"
# Samplers of studies with two objectives; a network's metric has no gradient.
_FOR_METRIC = ("nsga2", "nsga3", "tpe", "random", "qmc")
_FOR_TWO = {"tnmse,conductance": (*_FOR_METRIC, GRADIENT), "tnmse,metric": _FOR_METRIC}

# Differential evolution with the settings that did best within a few thousand trials.
DE_OPTIONS: Mapping[str, Any] = {"popsize": 5, "mutation": (0.3, 0.8), "recombination": 0.9}

_PROBLEM, _SEARCH, _DE, _NETWORK, _RECORD = (
    "the problem",
    "the search",
    "differential evolution (--sampler de)",
    "strategies by layer (--per layer)",
    "storage and records",
)
# Settings that may hold a password.
_WITH_PASSWORDS = ("storage", "tracking_uri")


def _as_tracking(value: object) -> object:
    if value is True:
        raise ValueError("it should be a URI, None for MLflow's default, or False for no tracking")
    return False if value == "none" else value


def _as_mutation(value: object) -> object:
    """The text of a flag, one number or two, as the sampler takes it."""
    if not isinstance(value, str):
        return value
    try:
        values = tuple(float(entry) for entry in value.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 2):
        raise ValueError("a number is needed, or two for dithering, e.g. 0.5,1")
    return values if len(values) == 2 else values[0]


def _as_patterns(value: object) -> object:
    if value in ("none", ["none"], ("none",)):
        return ()
    return (value,) if isinstance(value, str) else value


Patterns = Annotated[tuple[str, ...] | None, BeforeValidator(_as_patterns)]
Mutation = Annotated[float | tuple[float, float] | None, BeforeValidator(_as_mutation)]


class ProblemOptions(Settings):
    """Options of a problem, with names and defaults of aihwkit's ``WeightProgrammingOptimizer``.

    :class:`~wpo_optuna.WeightProgrammingProblem` says what each accepts.
    """

    nbins: Whole = setting(6, "knots of a curve from zero to the largest weight", _PROBLEM, "N")
    test_out_features: Whole = setting(20, "columns of the test matrix", _PROBLEM, "N")
    g_err: float = setting(
        0.0, "over- and underprogramming, as a fraction of the range", _PROBLEM, "X"
    )
    f_min: float = setting(0.1, "lowest significance factor to try", _PROBLEM, "X")
    f_max: float = setting(5.0, "highest significance factor to try", _PROBLEM, "X")
    use_max_kw: bool = setting(
        False, "whether the largest weight always takes the whole range", _PROBLEM
    )
    loss_margin: float = setting(0.125, "by how much the baseline is to be beaten", _PROBLEM, "X")
    baseline_iterations: Whole = setting(100, "draws of the baseline", _PROBLEM, "N")


class ProblemSettings(Settings):
    """What is optimised, as a user writes it."""

    weights: str | None = setting(
        None, "checkpoint with the weights: .safetensors, .pt, .npy, .npz, a Hugging Face "
        "directory, or package.module:function; without it the built-in digits network",
        _PROBLEM, "FILE",
    )  # fmt: skip
    include: Texts = setting(
        (), "only parameters whose name matches one of these patterns", _PROBLEM, "PATTERN"
    )
    exclude: Texts = setting(
        (), "no parameters whose name matches one of these patterns", _PROBLEM, "PATTERN"
    )
    transposed: Patterns = setting(
        None, "matrices that are stored as inputs × outputs, as those of GPT-2's Conv1D layers "
        "are: patterns, or none; by default that is found out", _PROBLEM, "PATTERN",
    )  # fmt: skip
    tile_scaling: bool = setting(
        True, "whether weights are scaled as on the tiles of the hardware, where each column or "
        "tile has a scale of its own; otherwise they count as stored", _PROBLEM,
    )  # fmt: skip
    rpu_config: str = setting(
        "pcm", "hardware: a name (see --list-rpu-configs), package.module:function or "
        "path/file.py:function; several by commas, or a function that returns several, for a "
        "strategy that serves them all", _PROBLEM, "NAME",
    )  # fmt: skip
    device_spread: float | None = setting(
        None, "for a strategy that also serves eight devices around the given one: by what "
        "fraction they differ in programming error, drift and read noise, e.g. 0.2", _PROBLEM,
        "X", gt=0, le=1,
    )  # fmt: skip
    over: Literal["mean", "worst"] = setting(
        "mean", "what counts of the errors on several devices, each relative to the baseline's",
        _PROBLEM,
    )  # fmt: skip
    f_lst: Text = setting(
        "1,none", "significance factor of each pair of conductances; none where it is to be "
        "found", _PROBLEM, "LIST",
    )  # fmt: skip
    baseline: Text = setting(
        "dual:1,1", "programming to beat: single, dual:F,F, npair:F,F,..., or a strategy file",
        _PROBLEM, "SPEC",
    )  # fmt: skip
    t_steps: Text | None = setting(
        None, "times after programming, e.g. 1s,1min,1h,1d,30d,1y; by default those that fit "
        "the hardware", _PROBLEM, "LIST",
    )  # fmt: skip
    g_min: float | None = setting(
        None, "lowest conductance in µS; by default that of the hardware", _PROBLEM, "US"
    )
    g_max: float | None = setting(
        None, "highest conductance in µS; by default that of the hardware", _PROBLEM, "US"
    )
    symmetric: bool = setting(
        True, "whether negative and positive weights mirror each other", _PROBLEM
    )


class SearchSettings(Settings):
    """How the search is carried out."""

    sampler: Literal["de", "cmaes", "tpe", "random", "qmc", "nsga2", "nsga3", "gradient"] = setting(
        "de", "how points are proposed; by default nsga2 with two objectives", _SEARCH
    )
    objective: Literal["tnmse", "tnmse,conductance", "tnmse,metric"] = setting(
        "tnmse", "what is optimised: the error; beside it the mean conductance, to which read "
        "power is proportional, or the network's metric, for which model and data are needed",
        _SEARCH,
    )  # fmt: skip
    max_conductance: float | None = setting(
        None, "limit of the winner's mean conductance in µS per weight; needs the expected engine",
        _SEARCH, "US", gt=0,
    )  # fmt: skip
    n_trials: Whole = setting(1000, "completed trials of the study in total", _SEARCH, "N", ge=1)
    engine: Literal["expected", "montecarlo", "aihwkit"] | None = setting(
        None, "what evaluates a point; by default the fastest that can be trusted with the problem",
        _SEARCH,
    )  # fmt: skip
    device: str = setting("cpu", "where the fast engines compute: cpu or cuda", _SEARCH, "NAME")
    batch_size: Whole | None = setting(
        None, "most trials evaluated at once; by default chosen by engine and sampler", _SEARCH,
        "N", ge=1,
    )  # fmt: skip
    workers: Whole = setting(
        1, "processes that evaluate a batch together; -1 for one per core", _SEARCH, "N", ge=-1,
    )  # fmt: skip
    polish: bool = setting(True, "whether the best trials are refined by gradient descent", _SEARCH)
    stop_at_margin: bool = setting(
        False, "whether to stop once the baseline is beaten by the margin", _SEARCH
    )
    finalists: Whole = setting(
        5, "number of best distinct trials scored on fresh noise", _SEARCH, "N", ge=1
    )
    self_check: bool = setting(
        True, "whether the expected engine is first compared with drawn noise", _SEARCH
    )
    seed: Whole = setting(100, "seed of the study", _SEARCH, "N", ge=0, lt=2**32)

    @model_validator(mode="before")
    @classmethod
    def _with_sampler(cls, values: dict[str, Any]) -> dict[str, Any]:
        has_two = "," in str(values.get("objective", ""))
        return {"sampler": "nsga2", **values} if has_two else values

    @property
    def has_two_objectives(self) -> bool:
        """Whether the study has two directions."""
        return "," in self.objective

    @model_validator(mode="after")
    def _check_search(self) -> Self:
        possible = _FOR_TWO.get(self.objective, (self.sampler,))
        if self.sampler not in possible:
            raise ValueError(
                f"sampler = {self.sampler!r}: not with objective {self.objective}, for which give "
                f"one of {', '.join(possible)}"
            )
        if self.has_two_objectives and self.stop_at_margin:
            raise ValueError("stop_at_margin = True: belongs to studies of one objective")
        if self.max_conductance is not None:
            for name, refused in (
                ("objective", self.has_two_objectives),
                ("sampler", self.sampler == GRADIENT),
                ("engine", self.engine not in (None, "expected")),
                ("polish", not self.polish),
            ):
                if refused:
                    raise ValueError(
                        f"{name} = {getattr(self, name)!r}: not with max_conductance, which is met "
                        "by polishing one objective along the expected engine's gradients"
                    )
        if self.sampler == GRADIENT and self.engine not in (None, "expected"):
            raise ValueError(
                f"engine = {self.engine!r}: the gradient search needs the expected engine, which "
                "alone has gradients"
            )
        return self


class EvolutionSettings(Settings):
    """Differential evolution's own settings; None takes this project's."""

    strategy: str | None = setting(None, "mutation strategy, as scipy's (best1bin)", _DE, "NAME")
    popsize: Whole | None = setting(
        None, "population divided by the number of dimensions (5)", _DE, "N", ge=1
    )
    maxiter: Whole | None = setting(
        None, "generations after the first; instead of --n-trials", _DE, "N", ge=0
    )
    mutation: Mutation = setting(
        None, "mutation constant, or the two ends of its dithering (0.3,0.8)", _DE, "X[,X]"
    )
    recombination: float | None = setting(None, "crossover probability (0.9)", _DE, "X")
    tol: float | None = setting(
        None, "relative spread of the population at which to stop (0: never)", _DE, "X"
    )
    atol: float | None = setting(
        None, "absolute spread of the population at which to stop (0: never)", _DE, "X"
    )
    x_init: Any = setting(
        None, "first population: latinhypercube, sobol, halton or random", _DE, "NAME"
    )

    @property
    def given(self) -> dict[str, Any]:
        """Arguments of the sampler that were given, by the sampler's names."""
        names = [name for name in EvolutionSettings.model_fields if name != "maxiter"]
        values = {"init" if name == "x_init" else name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def generation_size(self, dimension: int) -> int:
        """Members of a generation in d dimensions, as in scipy."""
        popsize = DE_OPTIONS["popsize"] if self.popsize is None else self.popsize
        return max(5, popsize * dimension)


class RecordSettings(Settings):
    """Where a study is kept and shown."""

    study_name: str | None = setting(
        None, "name of the study; by default made of the network's, the hardware's and the "
        "sampler's", _RECORD, "NAME",
    )  # fmt: skip
    storage: Any = setting(
        "sqlite:///wpo.db", "Optuna storage: sqlite:///FILE, journal:///FILE, postgresql://..., "
        "mysql://..., grpc://HOST:PORT or memory", _RECORD, "URL",
    )  # fmt: skip
    tracking_uri: Annotated[str | bool | None, BeforeValidator(_as_tracking)] = setting(
        None, "MLflow tracking URI; by default MLflow's own; none for no tracking",
        _RECORD, "URI",
    )  # fmt: skip
    experiment: str = setting("wpo", "MLflow experiment", _RECORD, "NAME", min_length=1)
    trial_runs: Literal["auto", "all", "best", "none"] = setting(
        "auto", "trials with an MLflow run of their own", _RECORD
    )
    report: bool = setting(True, "whether the study ends with a report of figures", _RECORD)
    output: Any = setting("wpo_results", "directory for results", _RECORD, "DIR")


class RunSettings(SearchSettings, RecordSettings):
    """What :func:`wpo_optuna.run_study` takes."""


class NetworkSettings(Settings):
    """What is done with the network itself, beside the search."""

    per: Literal["layer"] | None = setting(
        None, "layer: after the network's study, one for each layer, and a table of what that is "
        "worth", _NETWORK,
    )  # fmt: skip
    select_by: Literal["tnmse", "metric"] = setting(
        "tnmse", "metric: after the study, its finalists compared by the network's accuracy at the "
        "last time, for which model and data are needed", _NETWORK,
    )  # fmt: skip
    model: str | None = setting(
        None, "to compare the accuracy, too: package.module:function or path/file.py:function "
        "that returns the network", _NETWORK, "FUNCTION",
    )  # fmt: skip
    data: str | None = setting(
        None, "function that returns batches of (inputs, targets)", _NETWORK, "FUNCTION"
    )
    metric: str | None = setting(
        None, "function that takes network and data and returns a number; by default the share of "
        "right classifications", _NETWORK, "FUNCTION",
    )  # fmt: skip
    repeats: Whole = setting(
        10, "how often the network is programmed anew; to select, at most eight times as often",
        _NETWORK, "N", ge=1,
    )  # fmt: skip


class StudySettings(
    RecordSettings,
    NetworkSettings,
    EvolutionSettings,
    SearchSettings,
    ProblemOptions,
    ProblemSettings,
):
    """What ``python -m wpo_optuna.study`` takes."""

    alternatives: ClassVar[tuple[str, ...]] = ("n_trials", "maxiter")

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        given = [n for n in ("model", "data", "metric") if getattr(self, n) is not None]
        in_search = self.objective == "tnmse,metric"
        is_measured = self.per is not None or self.select_by == "metric" or in_search
        has_all = self.model is not None and self.data is not None
        if given and not (is_measured and has_all):
            raise ValueError(
                f"{given[0]} = {getattr(self, given[0])!r}: the accuracy is compared along with "
                "strategies by layer (per layer), of finalists (select_by metric), or in the "
                "search (objective tnmse,metric), and needs both model and data; python -m "
                "wpo_optuna.evaluate measures it with one strategy"
            )
        if in_search and (self.per is not None or not has_all):
            raise ValueError(
                "objective = 'tnmse,metric': needs both model and data, and cannot be had together "
                "with per layer"
            )
        if self.select_by == "metric" and (self.per is not None or not has_all):
            raise ValueError(
                "select_by = 'metric': needs both model and data, and cannot be had together with "
                "per layer"
            )
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.maxiter is not None and "n_trials" in self.model_fields_set:
            raise ValueError(
                f"n_trials = {self.n_trials} and maxiter = {self.maxiter}: give one of them, "
                "either determines the budget"
            )
        for name in EvolutionSettings.model_fields if self.sampler != "de" else ():
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r}: this belongs to differential evolution "
                    f"(sampler de, not {self.sampler})"
                )
        for name in _WITH_PASSWORDS:
            if ":***@" in str(getattr(self, name)):
                flag = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{name} = {getattr(self, name)!r}: settings are saved without the password; "
                    f"give {flag} with it"
                )
        return self

    def total_trials(self, dimension: int) -> int:
        """Trials of the study in d dimensions."""
        if self.maxiter is None:
            return self.n_trials
        return (self.maxiter + 1) * self.generation_size(dimension)

    def to_yaml(self) -> str:
        """The settings as a configuration file that repeats the study; without passwords."""
        import yaml

        from wpo_optuna.storage import masked_url

        values = self.model_dump(mode="json")
        if self.maxiter is not None:
            del values["n_trials"]
        for name in _WITH_PASSWORDS:
            if isinstance(values[name], str):
                values[name] = masked_url(values[name])
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
