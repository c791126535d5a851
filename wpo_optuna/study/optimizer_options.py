"""The options of the replacement for aihwkit's ``WeightProgrammingOptimizer``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from scipy.optimize import OptimizeResult

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.study.study_plan import DE_OPTIONS

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

# Generations where the user gives a population alone; the reference's default.
_DEFAULT_MAXITER = 200


@dataclass(eq=False)
class OptimizerOptions:
    """Options of aihwkit's class, under its names, and of :func:`wpo_optuna.run_study`.

    Attributes:
        nbins: knots of a curve for weights from zero to the largest.
        test_in_features: rows of the test matrix; None takes the inputs of a tile.
        test_out_features: columns of the test matrix.
        g_err: over- and underprogramming, as a fraction of g_max - g_min.
        f_min: lowest free factor.
        f_max: highest free factor.
        use_max_kw: whether the largest weight always takes the whole range of conductance.
        loss_margin: by how much (relative) the baseline is to be beaten.
        baseline_iterations: draws of the baseline that are averaged.
        seed: seed of the search and of the shuffled test matrix.
        callback: called after each generation with scipy's ``OptimizeResult`` (``x``, ``fun``,
            ``nit``, ``nfev``); may raise ``StopIteration``. None reports progress like the
            reference.
        disp: whether to print progress.
        polish: whether the best trials are refined by gradient descent.
        workers: processes that evaluate trials together; -1 takes one per core.
        device: torch device of the Monte Carlo engine.
        strategy: mutation strategy of differential evolution, like scipy's; None for those below
            takes this project's settings.
        popsize: population divided by the number of dimensions.
        maxiter: generations after the first.
        tol: relative spread of the population at which to stop.
        atol: absolute spread at which to stop.
        mutation: mutation constant, or the two ends of its dithering.
        recombination: crossover probability.
        x_init: first population, such as ``"latinhypercube"``.
        storage: URL of an Optuna storage, ``"memory"``, or a storage.
        study_name: name of the study.
        tracking_uri: MLflow's tracking URI; None takes MLflow's default, False tracks nothing.
        sampler: ``"de"``, ``"cmaes"``, ``"tpe"``, ``"random"``, ``"qmc"`` or ``"gradient"``.
        engine: ``"expected"``, ``"montecarlo"`` or ``"aihwkit"``; None chooses.
        n_trials: trials in total; None takes 2000, or what ``maxiter`` and ``popsize`` say.
    """

    nbins: int = 6
    test_in_features: int | None = None
    test_out_features: int = 20
    g_err: float = 0.0
    f_min: float = 0.1
    f_max: float = 5.0
    use_max_kw: bool = False
    loss_margin: float = 0.125
    baseline_iterations: int = 100
    seed: int = 100
    callback: Callable[[OptimizeResult], object] | None = None
    disp: bool = True
    polish: bool = True
    workers: int = 1
    device: str = "cpu"
    strategy: str | None = None
    popsize: int | None = None
    maxiter: int | None = None
    tol: float | None = None
    atol: float | None = None
    mutation: float | tuple[float, float] | None = None
    recombination: float | None = None
    x_init: Any = None
    storage: str | BaseStorage = "memory"
    study_name: str | None = None
    tracking_uri: str | bool | None = False
    sampler: str = "de"
    engine: str | None = None
    n_trials: int | None = None

    @property
    def has_budget_of_reference(self) -> bool:
        """Whether the user gave the budget in the reference's terms."""
        return not (self.maxiter is None and self.popsize is None)

    def generation_size(self, dimension: int) -> int:
        """Members of a generation of differential evolution in d dimensions, as in scipy."""
        popsize = DE_OPTIONS["popsize"] if self.popsize is None else self.popsize
        return max(5, popsize * dimension)

    def total_trials(self, dimension: int, default: int) -> int:
        """Trials of the study in d dimensions."""
        if self.n_trials is not None:
            return self.n_trials
        if not self.has_budget_of_reference:
            return default
        maxiter = _DEFAULT_MAXITER if self.maxiter is None else self.maxiter
        return (maxiter + 1) * self.generation_size(dimension)

    def sampler_options(self) -> dict[str, Any] | None:
        """Arguments of the sampler; None where this project's settings are left as they are."""
        given = {
            "strategy": self.strategy,
            "popsize": self.popsize,
            "tol": self.tol,
            "atol": self.atol,
            "mutation": self.mutation,
            "recombination": self.recombination,
            "init": self.x_init,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return {**DE_OPTIONS, **given} if given and self.sampler == "de" else None


def check_options(names: Iterable[str]) -> None:
    """Refuses names that are no options, and suggests the nearest.

    Raises:
        InvalidArgument: a name is none of them.
    """
    known = [field.name for field in fields(OptimizerOptions)]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise InvalidArgument(
                f"{name!r} is not an argument of WeightProgrammingOptimizer; {hint}"
            )


def check_values(options: OptimizerOptions) -> None:
    """Refuses values of the search's options that nothing else checks.

    Raises:
        InvalidArgument: a value cannot be used.
    """
    for name in ("maxiter", "popsize"):
        value = getattr(options, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InvalidArgument(f"{name} = {value!r}: a whole number of at least 1 is needed.")
    if not isinstance(options.workers, int):
        raise InvalidArgument(
            f"workers = {options.workers!r}: a number of processes is needed, or -1 for one per "
            "core."
        )
    if options.callback is not None and not callable(options.callback):
        raise InvalidArgument(
            f"callback = {options.callback!r}: a function of scipy's intermediate_result is "
            "needed, or None."
        )
