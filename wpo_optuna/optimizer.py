"""A replacement for aihwkit's ``WeightProgrammingOptimizer`` by changing one import line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.converter.conductance import CustomPairConductanceConverter
from aihwkit.simulator.configs import InferenceRPUConfig
from optuna.trial import FrozenTrial
from pydantic import model_validator
from scipy.optimize import OptimizeResult
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.problem import WeightProgrammingProblem
from wpo_optuna.study.command_line import Whole, setting
from wpo_optuna.study.settings import (
    DE_OPTIONS,
    EvolutionSettings,
    ProblemOptions,
    SearchSettings,
)

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.scoring import StudyResult

# Trials of a search whose budget the user leaves open.
DEFAULT_N_TRIALS = 2000
# Generations where the user gives a population alone; the reference's default.
_DEFAULT_MAXITER = 200


class OptimizerSettings(EvolutionSettings, SearchSettings, ProblemOptions):
    """Options of aihwkit's class, under its names, and of :func:`wpo_optuna.run_study`.

    Those that are declared here have other defaults, or belong to the drop-in alone.
    """

    test_in_features: Any = setting(None, "rows of the test matrix; None takes a tile's inputs")
    callback: Any = setting(
        None, "called after each generation with scipy's OptimizeResult (x, fun, nit, nfev); may "
        "raise StopIteration; None reports progress like the reference",
    )  # fmt: skip
    disp: bool = setting(True, "whether to print progress")
    device: Any = setting("cpu", "where the fast engines compute: cpu or cuda")
    n_trials: Whole | None = setting(  # type: ignore[assignment]
        None, "trials in total; None takes 2000, or what maxiter and popsize say", ge=1
    )
    storage: Any = setting("memory", "URL of an Optuna storage, memory, or a storage")
    study_name: str | None = setting(None, "name of the study")
    tracking_uri: str | bool | None = setting(
        False, "MLflow's tracking URI; None takes MLflow's default, False tracks nothing"
    )

    @model_validator(mode="after")
    def _check_callback(self) -> Self:
        if self.callback is not None and not callable(self.callback):
            raise ValueError(
                f"callback = {self.callback!r}: a function of scipy's intermediate_result is "
                "needed, or None"
            )
        return self

    @property
    def has_budget_of_reference(self) -> bool:
        """Whether the user gave the budget in the reference's terms."""
        return not (self.maxiter is None and self.popsize is None)

    def total_trials(self, dimension: int) -> int:
        """Trials of the study in d dimensions."""
        if self.n_trials is not None:
            return self.n_trials
        if not self.has_budget_of_reference:
            return DEFAULT_N_TRIALS
        maxiter = _DEFAULT_MAXITER if self.maxiter is None else self.maxiter
        return (maxiter + 1) * self.generation_size(dimension)


class WeightProgrammingOptimizer:
    """Finds a conductance converter that programs weights better than a baseline.

    Constructor, result and attributes are those of aihwkit's class of the same name
    (``aihwkit.inference.converter.wpo``), so that existing code changes its import alone. Behind
    it is :func:`wpo_optuna.run_study`, and what differs follows from that:

    * *Budget.* Without ``maxiter`` and ``popsize`` the search has ``n_trials`` trials (2000 if not
      given), with this project's settings of differential evolution, and spends all of them. With
      either, it has ``(maxiter + 1) * popsize * d`` as in scipy (where one is missing: 200
      generations, or 5 members for each of the d dimensions), and ends once the baseline is beaten
      by ``loss_margin``, as the reference does. The best trials are polished in both cases, unless
      ``polish=False``.
    * *Scores.* ``best_loss`` and ``loss_baseline`` are means over fresh draws through aihwkit's
      tile, not the luckiest draw of the search.
    * *Baseline.* It is ``g_converter_baseline`` that is to be beaten. (The reference measures the
      converter that the noise model happens to have.)
    * *Success* is True or False: whether the scores differ by the margin. (The reference returns
      the loss where the search was not successful, and in conditions a number counts as true.)
    * *Processes.* ``workers=1`` by default: the default engine needs no more.

    Args:
        weights: the network's weights (unitless), any shape and device.
        f_lst: significance factor of each pair of conductances, None where it is to be found.
        rpu_config: the hardware; not changed.
        t_steps: times after programming in s over which errors are averaged.
        g_converter_baseline: the programming to beat; its g_min and g_max (µS) are the devices'.
        symmetric: whether negative and positive weights mirror each other.
        **kwargs: the attributes of :class:`OptimizerSettings`: all options of the reference, and
            ``storage``, ``study_name``, ``tracking_uri``, ``sampler``, ``engine`` and
            ``n_trials``. They are attributes of the optimiser, too.

    Attributes:
        best_loss: TNMSE of the strategy found, on fresh noise; inf before :meth:`run_optimizer`.
        loss_baseline: TNMSE of the baseline, likewise.
        g_converter: the converter found; None before.
        f_lst: its significance factors; before, those given.
        rpu_config: copy of the RPU configuration; afterwards it programs with the converter found.
        strategy_found: the strategy, which can be saved; None before.
        result: the study and its scores; None before, and in a pickled copy.
        problem: the problem, fixed on construction.

    Raises:
        InvalidArgument: an argument cannot be used or is not known.
    """

    # Of the options, which are all attributes, those that are used here.
    baseline_iterations: int
    device: Any
    disp: bool

    def __init__(
        self,
        weights: Tensor,
        f_lst: Sequence[float | None],
        rpu_config: InferenceRPUConfig,
        t_steps: Sequence[float],
        g_converter_baseline: BaseConductanceConverter,
        symmetric: bool = True,
        **kwargs: Any,
    ) -> None:
        options = OptimizerSettings.checked(kwargs)
        self.__dict__.update(options)
        self.problem = WeightProgrammingProblem(
            weights=weights.detach().cpu() if isinstance(weights, Tensor) else weights,
            f_lst=f_lst,
            rpu_config=_with_inputs(rpu_config, options.test_in_features),
            t_steps=t_steps,
            g_converter_baseline=g_converter_baseline,
            symmetric=_as_bool(symmetric),
            seed=options.seed,
            **{name: getattr(options, name) for name in ProblemOptions.model_fields},
        )
        self.f_lst = list(f_lst)
        self.t_steps = list(t_steps)
        self.mapping_saved = deepcopy(rpu_config.mapping)
        self._show_problem()
        self.loss_baseline = float("inf")
        self.best_loss = float("inf")
        self.g_converter: CustomPairConductanceConverter | None = None
        self.strategy_found: ProgrammingStrategy | None = None
        self.result: StudyResult | None = None

    def generate_hop_bounds(self) -> tuple[tuple[float, float], ...]:
        """Bounds of the hypercube's coordinates."""
        return self.problem.hypercube.bounds

    def get_loss_baseline(self) -> float:
        """The baseline's TNMSE: mean of ``baseline_iterations`` draws through aihwkit's tile."""
        engine = ReferenceEngine(self.problem)
        draws = engine.tnmse_of(self.g_converter_baseline, repeats=self.baseline_iterations)
        return float(draws.mean())

    def run_optimizer(self) -> tuple[CustomPairConductanceConverter, bool]:
        """Searches, scores the best on fresh noise, and sets the attributes.

        Returns:
            the converter found, and whether it beats the baseline by ``loss_margin``.

        Raises:
            InvalidArgument: an option of the search cannot be used, or the stored study is about
                another problem.
            WeightProgrammingError: the storage fails.
            KeyboardInterrupt: the search was interrupted; a stored study can be resumed.
        """
        from wpo_optuna.study.run import run_study

        options = self._options()
        dimension = self.problem.hypercube.dimension
        if self.disp:
            print(f"\n\t\thypercube dimensions = {dimension}")
        given = options.given if options.sampler == "de" else {}
        settings: dict[str, Any] = options.model_dump(include=set(SearchSettings.model_fields))
        result = run_study(
            self.problem,
            **settings | {"n_trials": options.total_trials(dimension), "device": str(self.device)},
            study_name=options.study_name,
            storage=options.storage,
            tracking_uri=options.tracking_uri,
            sampler_options=dict(DE_OPTIONS) | given if given else None,
            callbacks=[self._generation_callback(options)],
        )
        self._take_over(result)
        if self.disp:
            print(f"\n\tbest loss = {self.best_loss:f}, loss baseline = {self.loss_baseline:f}\n")
        assert self.g_converter is not None
        return self.g_converter, result.success

    def __getstate__(self) -> dict[str, Any]:
        # A study holds connections to its storage; everything else is kept.
        return self.__dict__ | {"result": None}

    def _options(self) -> OptimizerSettings:
        """The options of the search as they stand: users may have set attributes since."""
        names = OptimizerSettings.model_fields.keys() - ProblemOptions.model_fields
        return OptimizerSettings.checked({name: getattr(self, name) for name in names})

    def _generation_callback(
        self, options: OptimizerSettings
    ) -> Callable[[Study, FrozenTrial], None]:
        """Counts trials, and after each generation calls the user's callback or reports."""
        hypercube = self.problem.hypercube
        size = options.generation_size(hypercube.dimension)
        callback = options.callback or partial(self._report, options)
        nowhere = np.full(hypercube.dimension, np.nan)
        best = OptimizeResult(x=nowhere, fun=float("inf"), nit=0, nfev=0)

        def on_trial(study: Study, trial: FrozenTrial) -> None:
            if best.nfev == 0 and self.disp:
                kind = type(self.g_converter_baseline).__name__
                print(f"\tloss baseline = {trial.user_attrs['baseline']:f} ({kind})\n")
            best.nfev += 1
            if trial.value is not None and trial.value < best.fun:
                best.fun = trial.value
                best.x = np.array(hypercube.point(trial.params))
            if best.nfev % size == 0:
                best.nit += 1
                callback(OptimizeResult(best))

        return on_trial

    def _report(self, options: OptimizerSettings, intermediate_result: OptimizeResult) -> None:
        """Prints progress as the reference does, and ends the search where it does."""
        if self.disp:
            print(
                "\t(current loss - baseline loss) / baseline loss + loss margin = "
                f"{intermediate_result.fun:0.10f} ({datetime.now()})"
            )
        if options.has_budget_of_reference and intermediate_result.fun < 0:
            raise StopIteration

    def _show_problem(self) -> None:
        """Sets what the reference's objects have as attributes, too."""
        problem = self.problem
        self.symmetric = problem.symmetric
        self.rpu_config = problem.evaluation_rpu_config()
        self.noise_model = self.rpu_config.noise_model
        self.test_in_features = problem.test_in_features
        self.g_converter_baseline = deepcopy(problem.g_converter_baseline)
        self.g_min, self.g_max = problem.g_min, problem.g_max
        self.g_err = problem.g_err * (problem.g_max - problem.g_min)
        self.weights_downsampled_unitless = problem.test_weights
        self.max_abs_weight_unitless = torch.tensor(problem.max_abs_weight)
        self.weights_discretized_unitless = problem.hypercube.knot_weights

    def _take_over(self, result: StudyResult) -> None:
        self.result = result
        self.strategy_found = result.strategy
        self.g_converter = result.converter
        self.best_loss = result.tnmse.mean
        self.loss_baseline = result.baseline.mean
        self.f_lst = self.g_converter.f_lst
        self.rpu_config.mapping = deepcopy(self.mapping_saved)
        self.rpu_config.noise_model.g_converter = self.g_converter


def _with_inputs(
    rpu_config: InferenceRPUConfig, test_in_features: int | None
) -> InferenceRPUConfig:
    """The hardware with as many inputs as the test matrix is to have."""
    if test_in_features is None or not isinstance(rpu_config, InferenceRPUConfig):
        return rpu_config
    largest = rpu_config.mapping.max_input_size
    if not isinstance(test_in_features, int) or not 1 <= test_in_features <= (largest or np.inf):
        limit = f" to {largest}, the inputs of a tile," if largest else ""
        raise InvalidArgument(
            f"test_in_features = {test_in_features!r}: a whole number from 1{limit} is needed."
        )
    hardware = deepcopy(rpu_config)
    hardware.mapping.max_input_size = test_in_features
    return hardware


def _as_bool(value: Any) -> Any:
    """0 and 1, which aihwkit's own examples pass, as False and True."""
    return bool(value) if isinstance(value, int) and value in (0, 1) else value
