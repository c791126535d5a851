"""Every setting of a study on the command line and in a configuration file.

One list serves the flags, the file's keys, their help and their types. Importing it costs nothing:
``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from wpo_optuna.errors import InvalidArgument


def _setting(
    default: Any,
    help: str,
    group: str,
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    return dataclasses.field(
        default=default,
        metadata={"help": help, "group": group, "metavar": metavar, "choices": choices},
    )


_PROBLEM, _SEARCH, _DE, _LAYERS, _RECORD = (
    "the problem",
    "the search",
    "differential evolution (--sampler de)",
    "strategies by layer (--per layer)",
    "storage and records",
)


# Settings that may hold a password.
_WITH_PASSWORDS = ("storage", "tracking_uri")


@dataclass(frozen=True)
class Settings:
    """The settings of one study, as the user wrote them."""

    weights: str | None = _setting(
        None, "checkpoint with the weights: .safetensors, .pt, .npy, .npz, a Hugging Face "
        "directory, or package.module:function; without it the built-in digits network",
        _PROBLEM, "FILE",
    )  # fmt: skip
    include: tuple[str, ...] = _setting(
        (), "only parameters whose name matches one of these patterns", _PROBLEM, "PATTERN"
    )
    exclude: tuple[str, ...] = _setting(
        (), "no parameters whose name matches one of these patterns", _PROBLEM, "PATTERN"
    )
    tile_scaling: bool = _setting(
        True,
        "whether weights are scaled as on the tiles of the hardware, where each column or tile "
        "has a scale of its own; otherwise they count as stored",
        _PROBLEM,
    )
    rpu_config: str = _setting(
        "pcm", "hardware: a name (see --list-rpu-configs), package.module:function or "
        "path/file.py:function", _PROBLEM, "NAME",
    )  # fmt: skip
    f_lst: str = _setting(
        "1,none", "significance factor of each pair of conductances; none where it is to be "
        "found", _PROBLEM, "LIST",
    )  # fmt: skip
    baseline: str = _setting(
        "dual:1,1", "programming to beat: single, dual:F,F, npair:F,F,..., or a strategy file",
        _PROBLEM, "SPEC",
    )  # fmt: skip
    t_steps: str | None = _setting(
        None, "times after programming, e.g. 1s,1min,1h,1d,30d,1y; by default those that fit "
        "the hardware", _PROBLEM, "LIST",
    )  # fmt: skip
    g_min: float | None = _setting(
        None, "lowest conductance in µS; by default that of the hardware", _PROBLEM, "US"
    )
    g_max: float | None = _setting(
        None, "highest conductance in µS; by default that of the hardware", _PROBLEM, "US"
    )
    symmetric: bool = _setting(
        True, "whether negative and positive weights mirror each other", _PROBLEM
    )
    nbins: int = _setting(6, "knots of a curve from zero to the largest weight", _PROBLEM, "N")
    test_out_features: int = _setting(20, "columns of the test matrix", _PROBLEM, "N")
    g_err: float = _setting(
        0.0, "over- and underprogramming, as a fraction of the range", _PROBLEM, "X"
    )
    f_min: float = _setting(0.1, "lowest significance factor to try", _PROBLEM, "X")
    f_max: float = _setting(5.0, "highest significance factor to try", _PROBLEM, "X")
    use_max_kw: bool = _setting(
        False, "whether the largest weight always takes the whole range", _PROBLEM
    )
    loss_margin: float = _setting(0.125, "by how much the baseline is to be beaten", _PROBLEM, "X")
    baseline_iterations: int = _setting(100, "draws of the baseline", _PROBLEM, "N")

    sampler: str = _setting(
        "de", "de, cmaes, tpe, random, qmc, or gradient", _SEARCH, "NAME",
        ("de", "cmaes", "tpe", "random", "qmc", "gradient"),
    )  # fmt: skip
    n_trials: int | None = _setting(
        None, "completed trials of the study in total (1000)", _SEARCH, "N"
    )
    engine: str | None = _setting(
        None, "expected, montecarlo or aihwkit; by default the fastest that can be trusted with "
        "the problem", _SEARCH, "NAME", ("expected", "montecarlo", "aihwkit"),
    )  # fmt: skip
    device: str = _setting("cpu", "torch device of the Monte Carlo engine", _SEARCH, "NAME")
    batch_size: int | None = _setting(
        None, "most trials evaluated at once; by default chosen by engine and sampler",
        _SEARCH, "N",
    )  # fmt: skip
    workers: int = _setting(
        1, "processes that evaluate a batch together; -1 for one per core", _SEARCH, "N"
    )
    polish: bool = _setting(
        True, "whether the best trials are refined by gradient descent", _SEARCH
    )
    stop_at_margin: bool = _setting(
        False, "whether to stop once the baseline is beaten by the margin", _SEARCH
    )
    finalists: int = _setting(
        5, "number of best distinct trials scored on fresh noise", _SEARCH, "N"
    )
    self_check: bool = _setting(
        True, "whether the expected engine is first compared with aihwkit's tile", _SEARCH
    )
    seed: int = _setting(100, "seed of the study", _SEARCH, "N")

    strategy: str | None = _setting(None, "mutation strategy, as scipy's (best1bin)", _DE, "NAME")
    popsize: int | None = _setting(
        None, "population divided by the number of dimensions (5)", _DE, "N"
    )
    maxiter: int | None = _setting(
        None, "generations after the first; instead of --n-trials", _DE, "N"
    )
    mutation: str | None = _setting(
        None, "mutation constant, or the two ends of its dithering (0.3,0.8)", _DE, "X[,X]"
    )
    recombination: float | None = _setting(None, "crossover probability (0.9)", _DE, "X")
    tol: float | None = _setting(
        None, "relative spread of the population at which to stop (0: never)", _DE, "X"
    )
    atol: float | None = _setting(
        None, "absolute spread of the population at which to stop (0: never)", _DE, "X"
    )
    x_init: str | None = _setting(
        None, "first population: latinhypercube, sobol, halton or random", _DE, "NAME"
    )

    per: str | None = _setting(
        None, "layer: after the network's study, one for each layer, and a table of what that is "
        "worth", _LAYERS, "WHAT", ("layer",),
    )  # fmt: skip
    model: str | None = _setting(
        None, "to compare the accuracy, too: package.module:function or path/file.py:function "
        "that returns the network", _LAYERS, "FUNCTION",
    )  # fmt: skip
    data: str | None = _setting(
        None, "function that returns batches of (inputs, targets)", _LAYERS, "FUNCTION"
    )
    metric: str | None = _setting(
        None, "function that takes network and data and returns a number; by default the share of "
        "right classifications", _LAYERS, "FUNCTION",
    )  # fmt: skip
    repeats: int = _setting(10, "how often the network is programmed anew", _LAYERS, "N")

    study_name: str | None = _setting(
        None, "name of the study; by default made of the network's and the sampler's",
        _RECORD, "NAME",
    )  # fmt: skip
    storage: str = _setting(
        "sqlite:///wpo.db", "Optuna storage: sqlite:///FILE, journal:///FILE, postgresql://..., "
        "mysql://..., grpc://HOST:PORT or memory", _RECORD, "URL",
    )  # fmt: skip
    tracking_uri: str | None = _setting(
        None, "MLflow tracking URI; by default MLflow's own; none for no tracking",
        _RECORD, "URI",
    )  # fmt: skip
    experiment: str = _setting("wpo", "MLflow experiment", _RECORD, "NAME")
    trial_runs: str = _setting(
        "auto", "trials with an MLflow run of their own: auto, all, best or none", _RECORD,
        "WHICH", ("auto", "all", "best", "none"),
    )  # fmt: skip
    report: bool = _setting(True, "whether the study ends with a report of figures", _RECORD)
    output: str = _setting("wpo_results", "directory for results", _RECORD, "DIR")

    def to_yaml(self) -> str:
        """The settings as a configuration file that repeats the study; without passwords."""
        import yaml

        from wpo_optuna.storage import masked_url

        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
        for name in _WITH_PASSWORDS:
            if values[name] is not None:
                values[name] = masked_url(str(values[name]))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every setting; flags that are not given leave no trace."""
    types = get_type_hints(Settings)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in dataclasses.fields(Settings):
        title = field.metadata["group"]
        group = groups.setdefault(title, parser.add_argument_group(title))
        flag = "--" + field.name.replace("_", "-")
        options: dict[str, Any] = {
            "help": _help(field), "default": argparse.SUPPRESS, "dest": field.name,
        }  # fmt: skip
        kind = _plain_type(types[field.name])
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif kind is tuple:
            group.add_argument(flag, nargs="+", metavar=field.metadata["metavar"], **options)
        else:
            options |= {name: field.metadata[name] for name in ("metavar", "choices")}
            group.add_argument(flag, type=kind, **options)


def read_settings(flags: Mapping[str, Any], config: str | Path | None) -> Settings:
    """The effective settings: defaults, then the configuration file, then flags.

    Args:
        flags: settings given on the command line, by name.
        config: path of a YAML file with settings, or None.

    Raises:
        InvalidArgument: the file cannot be read, or has an unknown key or a value of a wrong type.
    """
    values = {} if config is None else _read_yaml(Path(config))
    # Either determines the budget: a flag for one replaces the file's other.
    for given, other in (("n_trials", "maxiter"), ("maxiter", "n_trials")):
        if given in flags and other not in flags:
            values.pop(other, None)
    values |= {name: tuple(v) if isinstance(v, list) else v for name, v in flags.items()}
    for name in _WITH_PASSWORDS:
        if ":***@" in (values.get(name) or ""):
            flag = "--" + name.replace("_", "-")
            raise InvalidArgument(
                f"{name} = {values[name]!r}: settings are saved without the password; give "
                f"{flag} with it."
            )
    return Settings(**values)


def _help(field: dataclasses.Field[Any]) -> str:
    text = str(field.metadata["help"]).replace("%", "%%")
    if field.default in (None, ()) or isinstance(field.default, bool):
        return text
    return f"{text} ({field.default})"


def _plain_type(hint: Any) -> type:
    """The type of a setting's value, without ``| None``."""
    if getattr(hint, "__origin__", None) is tuple:
        return tuple
    candidates = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    return candidates[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument(f"--config {path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidArgument(f"--config {path}: is not YAML ({reason}).") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InvalidArgument(f"--config {path}: a mapping of settings to values is needed.")
    types = get_type_hints(Settings)
    values = {}
    for key, value in document.items():
        field = _known(path, key)
        values[field.name] = _checked(path, field, value, types[field.name])
    return values


def _known(path: Path, key: object) -> dataclasses.Field[Any]:
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    name = str(key).replace("-", "_")
    if name not in fields:
        close = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(fields)}."
        raise InvalidArgument(f"--config {path}: there is no setting {str(key)!r}; {hint}")
    return fields[name]


def _checked(path: Path, field: dataclasses.Field[Any], value: Any, hint: Any) -> Any:
    kind, choices = _plain_type(hint), field.metadata["choices"]
    if value is None and type(None) in get_args(hint):
        return None
    if kind is tuple:
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list) and all(isinstance(item, str) for item in values):
            return tuple(values)
    elif kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
    elif kind is float and isinstance(value, int | float | str):
        # YAML reads 1e-3, without a point, as text.
        with contextlib.suppress(ValueError):
            return float(value)
    elif kind is int and isinstance(value, int):
        return value
    elif choices is not None:
        if value in choices:
            return value
        raise InvalidArgument(
            f"--config {path}: {field.name} = {value!r}: one of {', '.join(choices)} is needed."
        )
    elif kind is str and isinstance(value, str | int | float):
        # A list such as f_lst may be a single number, which YAML does not read as text.
        return str(value)
    elif kind is str and isinstance(value, list):
        return ",".join("none" if item is None else str(item) for item in value)
    raise InvalidArgument(
        f"--config {path}: {field.name} = {value!r} is not a {kind.__name__}, which is needed."
    )
