"""A study from beginning to end: search, polish, score on fresh noise, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.monte_carlo import checked_device
from wpo_optuna.loss.parallel import ParallelEngine
from wpo_optuna.samplers.de import DESampler
from wpo_optuna.storage import open_storage
from wpo_optuna.study.objective import HypercubeObjective
from wpo_optuna.study.optimize import Interruption, interruptible, optimize
from wpo_optuna.study.progress import Progress
from wpo_optuna.study.results_folder import check_directory, directory_of_study
from wpo_optuna.study.scoring import score_finalists, strategy_of
from wpo_optuna.study.search import (
    Budget,
    budget_of,
    default_batch_size,
    polish_best,
    search_by_gradient,
)
from wpo_optuna.study.study_identity import SAMPLER_OPTIONS
from wpo_optuna.study.study_output import (
    STRATEGY_FILE,
    StudyFiles,
    hand_to_mlflow,
    keep_report_data,
    make_report,
    with_provenance,
    write_attachments,
)
from wpo_optuna.study.study_plan import (
    DEFAULT_N_TRIALS,
    GRADIENT,
    TRIAL_RUNS,
    StudyPlan,
    check_choice,
)
from wpo_optuna.study.study_preparation import prepare
from wpo_optuna.study.study_result import StudyResult
from wpo_optuna.track.delivery.tracking_uri import refuse_file_of
from wpo_optuna.track.tracker import MlflowTracker

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
    from wpo_optuna.report.__main__ import ReportFiles
    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.scoring import Scores

Callback = Callable[["Study", FrozenTrial], object]


def run_study(
    problem: WeightProgrammingProblem,
    sampler: str = "de",
    n_trials: int = DEFAULT_N_TRIALS,
    study_name: str | None = None,
    storage: str | BaseStorage = "sqlite:///wpo.db",
    tracking_uri: str | bool | None = None,
    engine: str | None = None,
    seed: int | None = None,
    *,
    sampler_options: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    polish: bool = True,
    stop_at_margin: bool = False,
    n_finalists: int = 5,
    workers: int = 1,
    device: str = "cpu",
    self_check: bool = True,
    parent_study: str | None = None,
    experiment_name: str = "wpo",
    trial_runs: str = "auto",
    report: bool = True,
    output: str | Path | None = None,
    attachments: Callable[[HypercubeObjective], Mapping[str, str]] = lambda objective: {},
    callbacks: Sequence[Callback] = (),
    show_progress_bar: bool = False,
) -> StudyResult:
    """Finds a weight programming strategy, or goes on with finding it.

    A study that is stored already is resumed; its trials count towards ``n_trials``.

    Args:
        problem: the problem.
        sampler: ``"de"``, ``"cmaes"``, ``"tpe"``, ``"random"``, ``"qmc"``, or ``"gradient"`` for
            a gradient search from many starts.
        n_trials: completed trials of the study in total.
        study_name: name of the study; None makes one of the problem's fingerprint and sampler.
        storage: URL of an Optuna storage, ``"memory"``, or a storage.
        tracking_uri: MLflow's tracking URI; None takes MLflow's default, False tracks nothing.
        engine: ``"expected"``, ``"montecarlo"`` or ``"aihwkit"``; None takes the fastest that can
            be trusted with the problem, or that of the study that is resumed.
        seed: seed of the search; None takes the problem's.
        sampler_options: further arguments of the sampler; None takes those of the study that is
            resumed, or for differential evolution ``DE_OPTIONS``.
        batch_size: most trials evaluated at once; None chooses by engine and sampler.
        polish: whether the best trials are refined by gradient descent (expected engine only).
        stop_at_margin: whether to stop once the baseline is beaten by the problem's margin, as
            the reference does; otherwise the study uses its budget.
        n_finalists: number of distinct best trials scored on fresh noise.
        workers: processes that evaluate a batch together; -1 takes one per core. The expected
            engine is faster than the way to another process and always works in this one.
        device: torch device of the Monte Carlo engine.
        self_check: whether the expected engine is compared with aihwkit's tile first.
        parent_study: name of a study in the same storage, under whose MLflow run this study's run
            is put.
        experiment_name: MLflow's experiment.
        trial_runs: which trials get an MLflow run of their own: ``"auto"``, ``"all"``,
            ``"best"`` or ``"none"``.
        report: whether a report is made at the end, for the output directory and for MLflow.
        output: directory for files with the results; None writes none.
        attachments: makes further text files, by name, that are kept beside the results and in
            MLflow.
        callbacks: called with the study and each finished trial, like Optuna's. One that raises
            ``StopIteration``, as scipy's may, ends the sampling; the best trials are then polished.
        show_progress_bar: whether to show progress on a terminal.

    Raises:
        InvalidArgument: an argument cannot be used, or the stored study is about another problem.
        WeightProgrammingError: the storage fails.
    """
    plan = StudyPlan(
        sampler=sampler,
        n_trials=n_trials,
        seed=problem.seed if seed is None else seed,
        engine=engine,
        sampler_options=sampler_options,
        batch_size=batch_size,
        polish=polish,
        stop_at_margin=stop_at_margin,
        n_finalists=n_finalists,
        workers=workers,
        device=device,
        self_check=self_check,
        parent_study=parent_study,
        report=report,
        output=None if output is None else Path(output),
        attachments=attachments,
    )
    check_choice("trial_runs", trial_runs, TRIAL_RUNS)
    _check_types(storage, tracking_uri)
    checked_device(device)
    study_name = study_name or f"wpo-{problem.fingerprint[:8]}-{sampler}"
    if plan.output is not None:
        check_directory(plan.output, "output")
        directory_of_study(plan.output, study_name)
    tracker = None
    if tracking_uri is not False:
        tracker = MlflowTracker(
            tracking_uri if isinstance(tracking_uri, str) else None,
            experiment_name=experiment_name,
            trial_runs=trial_runs,
            planned_trials=n_trials,
            show_progress_bar=show_progress_bar,
        )
    progress = Progress(show_progress_bar)
    progress.say("preparing the loss (the first time on a machine it is compiled: a minute)")
    # All arguments have been checked: from here on something may be written.
    opened = open_storage(storage) if isinstance(storage, str) else storage
    if tracker is not None:
        refuse_file_of(opened, tracker.tracking_uri)
    study, objective = prepare(problem, opened, study_name, plan)

    with ExitStack() as stack:
        if workers != 1 and objective.engine.name != "expected":
            shared = ParallelEngine(objective.engine, workers)
            stack.callback(shared.close)
            objective = HypercubeObjective(problem, shared, objective.baseline)
        # Files that go to MLflow alone are there until everything is delivered.
        results = _results_directory(plan, study, tracker, stack)
        if tracker is not None:
            stack.enter_context(tracker).attach(study)
        run = _Run(plan, study, objective, tracker, results, callbacks, progress)
        run.attach()
        with interruptible() as interruption:
            run.search(interruption)
        return run.interrupted() if interruption.requested else run.finish()


def _check_types(storage: object, tracking_uri: object) -> None:
    if not isinstance(storage, str | BaseStorage):
        raise InvalidArgument(
            f"storage = {storage!r}: a URL such as 'sqlite:///wpo.db', or an Optuna storage, is "
            "needed."
        )
    if not (tracking_uri is None or isinstance(tracking_uri, str | bool)):
        raise InvalidArgument(
            f"tracking_uri = {tracking_uri!r}: a URI, None for MLflow's default, or False for no "
            "tracking is needed."
        )


def _results_directory(
    plan: StudyPlan, study: Study, tracker: MlflowTracker | None, stack: ExitStack
) -> Path | None:
    """Where results are written; None if nobody wants to see them."""
    if plan.output is not None:
        return directory_of_study(plan.output, study.study_name)
    if tracker is not None:
        return Path(stack.enter_context(TemporaryDirectory(prefix="wpo_results_")))
    return None


class _Run:
    """One run of a study: what it holds while it searches."""

    def __init__(
        self,
        plan: StudyPlan,
        study: Study,
        objective: HypercubeObjective,
        tracker: MlflowTracker | None,
        results: Path | None,
        callbacks: Sequence[Callback],
        progress: Progress,
    ) -> None:
        self.plan = plan
        self.study = study
        self.objective = objective
        self.tracker = tracker
        self.results = results
        self.callbacks = callbacks
        self.progress = progress
        self.stopped_by_callback = False
        self.best = self._best_value()
        self.n_new = 0
        self.search_time = 0.0

    def attach(self) -> None:
        """Keeps the attachments, which also tell of a study that is cut off."""
        texts = self.plan.attachments(self.objective)
        if self.results is not None:
            write_attachments(self.results, texts)
        for name, text in texts.items():
            if self.tracker is not None:
                self.tracker.log_text(text, name)

    def search(self, interruption: Interruption) -> None:
        """Samples, then polishes, unless stopped before."""
        n_before = self.study._storage.get_n_trials(self.study._study_id, TrialState.COMPLETE)
        started = time.perf_counter()
        with self.progress.bar(
            "searching", self.plan.n_trials, "trial", min(n_before, self.plan.n_trials)
        ) as bar:

            def on_finished(trials: Sequence[FrozenTrial]) -> None:
                self._take(trials)
                bar.set_postfix_str(f"best loss {self.best:.4f}", refresh=False)
                bar.update(len(trials))

            def should_stop() -> bool:
                return interruption.requested or (self.plan.stop_at_margin and self.best < 0)

            if self.plan.sampler == GRADIENT:
                search_by_gradient(
                    self.study, self.objective, n_trials=self.plan.n_trials, seed=self.plan.seed,
                    on_finished=on_finished,
                    should_stop=lambda: self.stopped_by_callback or should_stop(),
                )  # fmt: skip
            else:
                self._sample_and_polish(on_finished, should_stop)
        self.search_time = time.perf_counter() - started

    def _sample_and_polish(
        self, on_finished: Callable[[Sequence[FrozenTrial]], None], should_stop: Callable[[], bool]
    ) -> None:
        n_trials = self.plan.n_trials
        budget = Budget(n_trials, 0)
        if self.plan.polish and isinstance(self.objective.engine, ExpectedEngine):
            budget = budget_of(self.study, n_trials)
        optimize(
            self.study, self.objective, n_trials=budget.sampled,
            batch_size=self.plan.batch_size or default_batch_size(self.study, self.objective),
            on_finished=on_finished,
            should_stop=lambda: self.stopped_by_callback or self._converged() or should_stop(),
        )  # fmt: skip
        if budget.polished and not should_stop():
            polish_best(
                self.study, self.objective, n_trials=n_trials, n_polished=budget.polished,
                on_finished=on_finished,
            )  # fmt: skip

    def _converged(self) -> bool:
        """Whether differential evolution has converged, where the user said what that means."""
        options = self.plan.sampler_options or self.study.user_attrs[SAMPLER_OPTIONS]
        sampler = self.study.sampler
        is_asked_for = options.get("tol") or options.get("atol")
        return (
            bool(is_asked_for) and isinstance(sampler, DESampler) and sampler.converged(self.study)
        )

    def _take(self, trials: Sequence[FrozenTrial]) -> None:
        """Counts finished trials and hands them to MLflow and to the user's callbacks."""
        self.n_new += len(trials)
        for trial in trials:
            if trial.value is not None:
                self.best = min(self.best, trial.value)
            if self.tracker is not None:
                self.tracker(self.study, trial)
            for callback in self.callbacks:
                try:
                    callback(self.study, trial)
                except StopIteration:
                    self.stopped_by_callback = True

    def interrupted(self) -> StudyResult:
        """What there is when the user stops the search."""
        if self.tracker is not None:
            self.tracker.set_status("KILLED")
        return StudyResult(self.study, self.objective, None, None, self.search_time, self.n_new)

    def finish(self) -> StudyResult:
        """Scores the finalists and writes down the winner."""
        scores = score_finalists(self.study, self.objective, self.plan.n_finalists, self.progress)
        winner = self.study.get_trials(deepcopy=False)[scores.winning_trial]
        strategy = with_provenance(
            strategy_of(self.objective, winner), self.study, self.objective, scores
        )
        report = self._report(scores, strategy)
        files = None
        if self.results is not None:
            files = StudyFiles(strategy.save(self.results / STRATEGY_FILE), report)
        if self.tracker is not None:
            texts = {STRATEGY_FILE: strategy.to_json()}
            hand_to_mlflow(self.tracker, scores, self.search_time, texts, report)
        return StudyResult(
            self.study,
            self.objective,
            scores,
            strategy,
            self.search_time,
            self.n_new,
            run_id=None if self.tracker is None else self.tracker.run_id,
            experiment_id=None if self.tracker is None else self.tracker.experiment_id,
            files=None if self.plan.output is None else files,
        )

    def _report(self, scores: Scores, strategy: ProgrammingStrategy) -> ReportFiles | None:
        if not self.plan.report:
            return None
        # Kept with the study, for a report that is made later.
        keep_report_data(self.study, self.objective, scores, strategy, self.progress)
        if self.results is None:
            return None
        self.progress.say("drawing the report")
        return make_report(self.results, self.study)

    def _best_value(self) -> float:
        try:
            return float(self.study.best_value)
        except ValueError:  # no trial yet
            return float("inf")
