"""A study from beginning to end: search, polish, score on fresh noise, record."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from tqdm import tqdm

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.monte_carlo import checked_device
from wpo_optuna.loss.parallel import ParallelEngine
from wpo_optuna.samplers import DESampler, make_sampler
from wpo_optuna.storage import open_storage
from wpo_optuna.study import attributes
from wpo_optuna.study.gradients import (
    compiled_meanwhile,
    number_polished,
    polish_best,
    search_by_gradient,
)
from wpo_optuna.study.mirror import Mirror, OnFinished
from wpo_optuna.study.objective import HypercubeObjective
from wpo_optuna.study.opening import Session, open_session
from wpo_optuna.study.result import StudyResult, with_provenance
from wpo_optuna.study.results_folder import check_directory, directory_of_study
from wpo_optuna.study.sampling import Interruption, default_batch_size, interruptible, sample
from wpo_optuna.study.scoring import score_finalists, strategy_of
from wpo_optuna.study.settings import DE_OPTIONS, GRADIENT, RecordSettings, RunSettings
from wpo_optuna.track.destination import Destination, refuse_file_of
from wpo_optuna.track.follower import Follower

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.problem import WeightProgrammingProblem
    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.scoring import Scores

STRATEGY_FILE, SETTINGS_FILE, REPORT_FILE = "strategy.json", "settings.yaml", "report.html"

Callback = Callable[["Study", FrozenTrial], object]


class ReportWarning(UserWarning):
    """The report could not be made; the study is finished nevertheless."""


def run_study(
    problem: WeightProgrammingProblem,
    sampler: str = "de",
    n_trials: int = 1000,
    study_name: str | None = None,
    storage: str | BaseStorage = "sqlite:///wpo.db",
    tracking_uri: str | bool | None = None,
    engine: str | None = None,
    seed: int | None = None,
    *,
    sampler_options: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    parent_study: str | None = None,
    settings_text: Callable[[HypercubeObjective], str] | None = None,
    callbacks: Sequence[Callback] = (),
    show_progress_bar: bool = False,
    **options: Any,
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
        output: directory for files with the results; None writes none.
        parent_study: name of a study in the same storage, under whose MLflow run this study's run
            is put.
        settings_text: makes the text of ``settings.yaml``, which is kept beside the results.
        callbacks: called with the study and each finished trial, like Optuna's. One that raises
            ``StopIteration``, as scipy's may, ends the sampling; the best trials are then polished.
        show_progress_bar: whether to show progress on a terminal.
        **options: further settings by name, see
            :class:`~wpo_optuna.study.settings.SearchSettings` and
            :class:`~wpo_optuna.study.settings.RecordSettings`: ``batch_size``, ``polish``,
            ``stop_at_margin``, ``finalists``, ``workers``, ``device``, ``self_check``,
            ``experiment``, ``trial_runs``, ``report``.

    Raises:
        InvalidArgument: an argument cannot be used, or the stored study is about another problem.
        WeightProgrammingError: the storage fails, or the noise model gives values that are no
            numbers.
    """
    settings = RunSettings.checked(
        {
            "sampler": sampler, "n_trials": n_trials, "study_name": study_name, "engine": engine,
            "seed": problem.seed if seed is None else seed, "storage": storage, "output": output,
            "tracking_uri": tracking_uri, **options,
        }
    )  # fmt: skip
    study_name = study_name or f"wpo-{problem.fingerprint[:8]}-{sampler}"
    destination = _checked(settings, study_name, sampler_options)
    # All arguments have been checked: from here on something may be written.
    opened = open_storage(storage) if isinstance(storage, str) else storage
    if destination is not None:
        refuse_file_of(opened, destination.tracking_uri)
    if show_progress_bar and sys.stderr.isatty():
        print("preparing the loss (the first time on a machine it is compiled)", file=sys.stderr)
    session = open_session(problem, opened, study_name, settings, sampler_options, parent_study)
    with ExitStack() as stack:
        run = _Run(
            settings, session, _results_folder(settings, study_name, stack), callbacks,
            show_progress_bar,
        )  # fmt: skip
        run.begin(destination, settings_text)
        follower = None
        if destination is not None:
            follower = Follower(session.study, destination, show_progress_bar=show_progress_bar)
            stack.enter_context(follower)
        result = run.carry_out()
        if follower is not None and (delivered := follower.finish()) is not None:
            result = replace(result, run_id=delivered.run_id, experiment_id=delivered.experiment_id)
    return result


def _checked(
    settings: RunSettings, study_name: str, sampler_options: Mapping[str, Any] | None
) -> Destination | None:
    """Where the study is tracked; everything that can be told beforehand is refused here."""
    if not isinstance(settings.storage, str | BaseStorage):
        raise InvalidArgument(
            f"storage = {settings.storage!r}: a URL such as 'sqlite:///wpo.db', or an Optuna "
            "storage, is needed."
        )
    if settings.sampler != GRADIENT:
        options = DE_OPTIONS if settings.sampler == "de" else {}
        # Refuses options that the sampler does not take.
        make_sampler(settings.sampler, seed=settings.seed, **(sampler_options or options))
    checked_device(settings.device)
    if settings.output is not None:
        check_directory(Path(settings.output), "output")
        directory_of_study(Path(settings.output), study_name)
    return destination_of(settings)


def destination_of(settings: RecordSettings) -> Destination | None:
    """Where a study with these settings is tracked; None if nowhere.

    Raises:
        InvalidArgument: MLflow does not take the address or a name.
    """
    if settings.tracking_uri is False:
        return None
    uri = settings.tracking_uri if isinstance(settings.tracking_uri, str) else None
    return Destination(uri, settings.experiment, settings.trial_runs)


def _results_folder(settings: RunSettings, study_name: str, stack: ExitStack) -> Path | None:
    """Where results are written; None if nobody wants to see them."""
    if settings.output is not None:
        return directory_of_study(Path(settings.output), study_name).absolute()
    if settings.tracking_uri is False:
        return None
    # Files for MLflow alone are there until everything is delivered.
    return Path(stack.enter_context(TemporaryDirectory(prefix="wpo_results_")))


class _Run:
    """One run of a study: what it holds while it searches."""

    def __init__(
        self,
        settings: RunSettings,
        session: Session,
        results: Path | None,
        callbacks: Sequence[Callback],
        show_progress: bool,
    ) -> None:
        self.settings = settings
        self.session = session
        self.study = session.study
        self.results = results
        self.callbacks = callbacks
        self.show_progress = show_progress
        self.stopped_by_callback = False
        self.n_new = 0
        self.search_time = 0.0

    def begin(
        self,
        destination: Destination | None,
        settings_text: Callable[[HypercubeObjective], str] | None,
    ) -> None:
        """Keeps with the study what is known before the search, also of one that is cut off."""
        text = None if settings_text is None else settings_text(self.session.objective)
        self._keep(
            {
                attributes.STATUS: attributes.RUNNING,
                attributes.N_TRIALS: self.settings.n_trials,
                attributes.SETTINGS: text,
                attributes.RESULTS: None if self.results is None else str(self.results),
                attributes.DESTINATION: None if destination is None else destination.to_json(),
            }
        )
        if self.results is not None and text is not None:
            self.results.mkdir(parents=True, exist_ok=True)
            (self.results / SETTINGS_FILE).write_text(text, encoding="utf-8")

    def carry_out(self) -> StudyResult:
        """Searches, and unless the user stops that, scores what was found and writes it down."""
        status = attributes.FAILED
        try:
            with ExitStack() as stack, interruptible() as interruption:
                mirror = self._mirror(stack)
                self._search(mirror, interruption)
                if interruption.requested:
                    status = attributes.KILLED
                    return self._result(None, None)
            result = self._finish(mirror)
            status = attributes.FINISHED
            return result
        except KeyboardInterrupt:
            status = attributes.KILLED
            raise
        finally:
            self._keep({attributes.STATUS: status})

    def _mirror(self, stack: ExitStack) -> Mirror:
        session, objective = self.session, self.session.objective
        if self.settings.workers != 1 and objective.engine.name != "expected":
            shared = ParallelEngine(objective.engine, self.settings.workers)
            stack.callback(shared.close)
            objective = HypercubeObjective(objective.problem, shared, objective.baseline)
        return Mirror(session.study, session.storage, objective, session.sampler)

    def _search(self, mirror: Mirror, interruption: Interruption) -> None:
        """Samples, then polishes, unless stopped before."""
        total = self.settings.n_trials
        started = time.perf_counter()
        values = [trial.value for trial in mirror.completed() if trial.value is not None]
        best = min(values, default=float("inf"))
        bar = tqdm(
            desc="searching", total=total, initial=min(mirror.n_complete, total), unit="trial",
            disable=None if self.show_progress else True, dynamic_ncols=True, mininterval=0.2,
        )  # fmt: skip

        def on_finished(trials: Sequence[FrozenTrial]) -> None:
            nonlocal best
            best = min([best, *(trial.value for trial in trials if trial.value is not None)])
            bar.set_postfix_str(f"best loss {best:.4f}", refresh=False)
            bar.update(min(mirror.n_complete, total) - bar.n)
            self._take(trials)

        def should_stop() -> bool:
            return interruption.requested or (self.settings.stop_at_margin and best < 0)

        with bar:
            if self.settings.sampler == GRADIENT:
                search_by_gradient(
                    mirror, total=total, seed=self.settings.seed, on_finished=on_finished,
                    should_stop=lambda: self.stopped_by_callback or should_stop(),
                )  # fmt: skip
            else:
                self._sample_and_polish(mirror, on_finished, should_stop)
        self.search_time = time.perf_counter() - started

    def _sample_and_polish(
        self, mirror: Mirror, on_finished: OnFinished, should_stop: Callable[[], bool]
    ) -> None:
        total = self.settings.n_trials
        batch_size = self.settings.batch_size or default_batch_size(mirror)

        def should_stop_sampling() -> bool:
            return self.stopped_by_callback or self._converged(mirror) or should_stop()

        def bring_to(n_trials: int) -> None:
            sample(
                mirror, total=n_trials, batch_size=batch_size, on_finished=on_finished,
                should_stop=should_stop_sampling,
            )  # fmt: skip

        has_gradient = hasattr(mirror.objective.engine, "value_and_grad")
        how_many = number_polished(mirror, total) if self.settings.polish and has_gradient else 0
        with compiled_meanwhile(mirror, needed=how_many > 0):
            bring_to(total - how_many)
        if how_many and not should_stop():
            polish_best(mirror, total=total, how_many=how_many, on_finished=on_finished)
        # Fewer results than were set aside may be distinct.
        bring_to(total)

    def _converged(self, mirror: Mirror) -> bool:
        """Whether differential evolution has converged, where the user said what that means."""
        options, sampler = self.session.sampler_options, self.session.sampler
        is_asked_for = options.get("tol") or options.get("atol")
        return (
            bool(is_asked_for)
            and isinstance(sampler, DESampler)
            and sampler.converged(mirror.memory)
        )

    def _take(self, trials: Sequence[FrozenTrial]) -> None:
        """Counts finished trials and hands them to the user's callbacks."""
        self.n_new += len(trials)
        for trial in trials:
            for callback in self.callbacks:
                try:
                    callback(self.study, trial)
                except StopIteration:
                    self.stopped_by_callback = True

    def _finish(self, mirror: Mirror) -> StudyResult:
        """Scores the finalists and writes down the winner."""
        scores = score_finalists(mirror, self.settings.finalists, self.show_progress)
        objective = self.session.objective
        winner = strategy_of(objective, mirror.trial(scores.winning_trial))
        strategy = with_provenance(winner, self.study, objective, scores)
        metrics = self.study.user_attrs.get(attributes.METRICS, {})
        self._keep(
            {
                attributes.SCORES: scores.to_json(),
                attributes.STRATEGY: json.loads(strategy.to_json()),
                attributes.METRICS: {
                    **metrics,
                    **scores.metrics(),
                    "search_time_s": metrics.get("search_time_s", 0.0) + self.search_time,
                },
            }
        )
        page = None
        if self.results is not None:
            strategy.save(self.results / STRATEGY_FILE)
            if self.settings.report:
                page = self._report(self.results, scores, strategy)
        return self._result(scores, strategy, page)

    def _report(self, results: Path, scores: Scores, strategy: ProgrammingStrategy) -> Path | None:
        from wpo_optuna.report.measurements import measure
        from wpo_optuna.report.page import write_report

        try:
            measure(
                self.session.objective.problem, strategy, results,
                winning_trial=scores.winning_trial,
            )  # fmt: skip
            return write_report([self.study], results / REPORT_FILE).page
        except Exception as error:  # figures are not worth the loss of a result
            warnings.warn(f"The report could not be made: {error}", ReportWarning, stacklevel=2)
            return None

    def _result(
        self, scores: Scores | None, strategy: ProgrammingStrategy | None, page: Path | None = None
    ) -> StudyResult:
        is_kept = self.settings.output is not None
        return StudyResult(
            self.study, self.session.objective, scores, strategy, self.search_time, self.n_new,
            results=self.results if is_kept else None, page=page if is_kept else None,
        )  # fmt: skip

    def _keep(self, values: Mapping[str, Any]) -> None:
        """Writes what differs into the study's attributes."""
        stored = self.study.user_attrs
        for name, value in values.items():
            if value is not None and stored.get(name) != value:
                self.study.set_user_attr(name, value)
