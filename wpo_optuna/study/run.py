"""A study from beginning to end: search, polish, score on fresh noise, record."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.monte_carlo import checked_device
from wpo_optuna.loss.parallel import ParallelEngine
from wpo_optuna.samplers import DESampler, make_sampler
from wpo_optuna.storage import open_storage
from wpo_optuna.study import attributes
from wpo_optuna.study.description import keep
from wpo_optuna.study.devices import write_devices
from wpo_optuna.study.environment import check_directory, directory_of_study, versions
from wpo_optuna.study.front import front_of, write_front
from wpo_optuna.study.gradients import (
    compile_gradient,
    number_polished,
    polish_best,
    polish_front,
    polish_under_limit,
    search_by_gradient,
)
from wpo_optuna.study.mirror import Mirror, default_batch_size, sample
from wpo_optuna.study.objective import HypercubeObjective
from wpo_optuna.study.opening import open_study
from wpo_optuna.study.progress import progress_bar
from wpo_optuna.study.scoring import StudyResult, comparable, score_finalists, strategy_of
from wpo_optuna.study.settings import GRADIENT, RunSettings
from wpo_optuna.track.destination import Destination, destination_of, refuse_file_of
from wpo_optuna.track.follower import Follower

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.network.account import Account
    from wpo_optuna.problem import WeightProgrammingProblem
    from wpo_optuna.study.objective import SecondObjective

STRATEGY_FILE, SETTINGS_FILE, REPORT_FILE = "strategy.json", "settings.yaml", "report.html"
WEIGHTS_FILE = "weights.csv"

# tqdm's own without the rate, so that both numbers behind it fit into 80 columns.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

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
    settings_text: Callable[[str], str] | None = None,
    account: Account | None = None,
    second: SecondObjective | None = None,
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
        settings_text: makes the text of ``settings.yaml``, which is kept beside the results, from
            the name of the engine that was chosen.
        account: what becomes of the network's tensors, which is kept beside the results.
        second: the second objective of ``objective="tnmse,metric"``, see
            :class:`~wpo_optuna.study.users_network.NetworkMetric`.
        callbacks: called with the study and each finished trial, like Optuna's. One that raises
            ``StopIteration``, as scipy's may, ends the sampling; the best trials are then polished.
        show_progress_bar: whether to show progress on a terminal or in a notebook.
        **options: further settings by name, see
            :class:`~wpo_optuna.study.settings.SearchSettings` and
            :class:`~wpo_optuna.study.settings.RecordSettings`: ``batch_size``, ``polish``,
            ``stop_at_margin``, ``finalists``, ``workers``, ``device``, ``self_check``,
            ``experiment``, ``trial_runs``, ``report``.

    Raises:
        InvalidArgument: an argument cannot be used, or the stored study is about another problem.
        WeightProgrammingError: the storage fails, or the noise model gives values that are no
            numbers.
        KeyboardInterrupt: the user stopped the study (Ctrl-C); all that was stored is kept.
    """
    settings = RunSettings.checked(
        {
            "sampler": sampler, "n_trials": n_trials, "study_name": study_name, "engine": engine,
            "seed": problem.seed if seed is None else seed, "storage": storage, "output": output,
            "tracking_uri": tracking_uri, **options,
        }
    )  # fmt: skip
    study_name = study_name or f"wpo-{problem.fingerprint[:8]}-{settings.sampler}"
    destination = _checked(settings, study_name, sampler_options)
    if (settings.objective == "tnmse,metric") != (second is not None):
        raise InvalidArgument(
            f"objective = {settings.objective!r}: 'tnmse,metric' and second belong together."
        )
    # All arguments have been checked: from here on something may be written.
    opened = open_storage(storage) if isinstance(storage, str) else storage
    if destination is not None:
        refuse_file_of(opened, destination.tracking_uri)
    if show_progress_bar and sys.stderr.isatty():
        print("preparing the loss (the first time on a machine it is compiled)", file=sys.stderr)
    mirror = open_study(
        problem, opened, study_name, settings, sampler_options, parent_study, second
    )
    study = mirror.study
    with ExitStack() as stack:
        folder = _results_folder(settings, study_name, stack)
        text = None if settings_text is None else settings_text(mirror.objective.engine.name)
        keep(
            study,
            {
                attributes.STATUS: attributes.RUNNING,
                attributes.N_TRIALS: settings.n_trials,
                attributes.SETTINGS: text,
                attributes.RESULTS: None if folder is None else str(folder),
            },
        )
        if folder is not None and text is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")
        if folder is not None and account is not None:
            account.save(folder / WEIGHTS_FILE)
        follower = None
        if destination is not None:
            follower = Follower(study, destination, show_progress_bar=show_progress_bar)
            stack.enter_context(follower)
        with _keeping_status(study):
            search = _Search(mirror, settings, sampler_options, callbacks, show_progress_bar)
            search.carry_out()
            result = _finish(search, folder, account)
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
        # Refuses options that the sampler does not take.
        make_sampler(settings.sampler, seed=settings.seed, **(sampler_options or {}))
    checked_device(settings.device)
    if settings.output is not None:
        check_directory(Path(settings.output), "output")
        directory_of_study(Path(settings.output), study_name)
    return destination_of(settings)


def _results_folder(settings: RunSettings, study_name: str, stack: ExitStack) -> Path | None:
    """Where results are written; None if nobody wants to see them."""
    if settings.output is not None:
        return directory_of_study(Path(settings.output), study_name).absolute()
    if settings.tracking_uri is False:
        return None
    # Files for MLflow alone are there until everything is delivered.
    return Path(stack.enter_context(TemporaryDirectory(prefix="wpo_results_")))


@contextmanager
def _keeping_status(study: Study) -> Iterator[None]:
    """Keeps with a study how its run ended."""
    try:
        yield
    except BaseException as error:
        is_stopped = isinstance(error, KeyboardInterrupt)
        keep(study, {attributes.STATUS: attributes.KILLED if is_stopped else attributes.FAILED})
        raise
    keep(study, {attributes.STATUS: attributes.FINISHED})


class _Search:
    """The search of one run.

    Attributes:
        mirror: the study.
        settings: how it is searched.
        n_new: trials that this run completed.
        seconds: how long the search took.
    """

    def __init__(
        self,
        mirror: Mirror,
        settings: RunSettings,
        sampler_options: Mapping[str, Any] | None,
        callbacks: Sequence[Callback],
        show_progress: bool,
    ) -> None:
        self.mirror, self.settings = mirror, settings
        self.n_new, self.seconds = 0, 0.0
        self.show_progress = show_progress
        self._callbacks = callbacks
        self._is_stopped_by_callback = False
        options = sampler_options
        if options is None:
            options = mirror.study.user_attrs[attributes.SAMPLER_OPTIONS]
        self._ends_when_converged = bool(options.get("tol") or options.get("atol"))

    def carry_out(self) -> None:
        """Samples and polishes, or descends from many starts."""
        mirror, total, started = self.mirror, self.settings.n_trials, time.perf_counter()
        objective = mirror.objective
        with ExitStack() as stack:
            if self.settings.workers != 1 and objective.engine.name != "expected":
                shared = ParallelEngine(objective.engine, self.settings.workers)
                stack.callback(shared.close)
                mirror.objective = HypercubeObjective(
                    objective.problem, shared, objective.baseline, objective.second
                )
            self._bar = stack.enter_context(
                progress_bar(
                    self.show_progress, desc="searching", total=total,
                    initial=min(mirror.n_complete, total), dynamic_ncols=True, mininterval=0.2,
                    bar_format=_BAR,
                )
            )  # fmt: skip
            mirror.on_stored = self._take
            if self.settings.sampler == GRADIENT:
                n_front = 0 if objective.second is None else number_polished(mirror, total)
                search_by_gradient(
                    mirror, total=total - n_front, seed=self.settings.seed,
                    should_stop=self._is_over,
                )  # fmt: skip
                if n_front:
                    polish_front(mirror, total=total, how_many=n_front)
            else:
                self._sample_and_polish()
        mirror.objective = objective
        self.seconds = time.perf_counter() - started

    def _sample_and_polish(self) -> None:
        mirror, total = self.mirror, self.settings.n_trials
        batch_size = self.settings.batch_size or default_batch_size(mirror)
        how_many = number_polished(mirror, total) if self.settings.polish else 0
        limit = self.settings.max_conductance
        compiling = Thread(target=compile_gradient, args=(mirror,), daemon=True)
        if how_many:
            compiling.start()
        set_aside = how_many + (limit is not None)
        sample(mirror, total=total - set_aside, batch_size=batch_size, should_stop=self._is_over)
        if how_many:
            compiling.join()
            if not self._has_reached_margin():
                refine = polish_best if mirror.objective.second is None else polish_front
                refine(mirror, total=total, how_many=how_many)
        if limit is not None and mirror.n_complete < total:
            polish_under_limit(mirror, limit, total=total)
        # Fewer results than were set aside may be distinct.
        sample(mirror, total=total, batch_size=batch_size, should_stop=self._is_over)

    def _has_reached_margin(self) -> bool:
        return self.settings.stop_at_margin and self._best() < 0

    def _is_over(self) -> bool:
        """Whether sampling is to end."""
        sampler = self.mirror.memory.sampler
        return (
            self._is_stopped_by_callback
            or self._has_reached_margin()
            or (
                self._ends_when_converged
                and isinstance(sampler, DESampler)
                and sampler.converged(self.mirror.memory)
            )
        )

    def _best(self) -> float:
        """The lowest loss so far."""
        return self.mirror.lowest

    def _best_tnmse(self) -> float:
        """The TNMSE that has the lowest loss so far."""
        objective = self.mirror.objective
        return objective.baseline * (1 + self._best() - objective.problem.loss_margin)

    def _take(self, trials: Sequence[FrozenTrial]) -> None:
        """Counts and shows finished trials, and hands them to the user's callbacks."""
        self.n_new += len(trials)
        best, baseline = self._best_tnmse(), self.mirror.objective.baseline
        self._bar.set_postfix_str(f"best TNMSE {best:.4f}, baseline {baseline:.4f}", refresh=False)
        self._bar.update(min(self.mirror.n_complete, self._bar.total) - self._bar.n)
        for trial in trials:
            for callback in self._callbacks:
                try:
                    callback(self.mirror.study, trial)
                except StopIteration:
                    self._is_stopped_by_callback = True


def _finish(search: _Search, folder: Path | None, account: Account | None) -> StudyResult:
    """Scores the finalists and writes down the winner."""
    mirror, settings = search.mirror, search.settings
    study, objective = mirror.study, mirror.objective
    scores = score_finalists(
        mirror, settings.finalists, search.show_progress, settings.max_conductance
    )
    told: dict[str, Any] = {} if scores.warning is None else {"warning": scores.warning}
    if account is not None:
        told["analogue"] = [tensor.name for tensor in account.analogue if tensor.is_named]
    strategy = replace(
        comparable(strategy_of(objective, mirror.trial(scores.winning_trial)), objective.problem),
        provenance=told
        | {
            "study_name": study.study_name,
            "trial_number": scores.winning_trial,
            "problem_fingerprint": objective.problem.fingerprint,
            "tnmse": vars(scores.winner),
            "baseline": vars(scores.baseline),
            "conductance_us": scores.conductance and scores.conductance[0],
            "engine": objective.engine.name,
            "engine_bias": scores.engine_bias,
            "noise_model": type(objective.problem.noise_model).__name__,
            "versions": versions(),
        },
    )
    metrics = study.user_attrs.get(attributes.METRICS, {})
    seconds = metrics.get("search_time_s", 0.0) + search.seconds
    keep(
        study,
        {
            attributes.SCORES: scores.to_json(),
            attributes.STRATEGY: json.loads(strategy.to_json()),
            attributes.METRICS: {**metrics, **scores.metrics(), "search_time_s": seconds},
        },
    )
    front = front_of(mirror)
    result = StudyResult(
        study, objective, scores, strategy, search.seconds, search.n_new, front=front
    )
    if folder is None:
        return result
    strategy.save(folder / STRATEGY_FILE)
    if objective.second is not None:
        write_front(front, objective.second.name, folder)
    if scores.devices:
        write_devices(scores.devices, folder)
    page = _report(result, folder) if settings.report else None
    # What was written for MLflow alone will be gone.
    return result if settings.output is None else replace(result, results=folder, page=page)


def _report(result: StudyResult, folder: Path) -> Path | None:
    from wpo_optuna.report.measurements import measure
    from wpo_optuna.report.page import write_report

    try:
        measure(
            result.objective.problem, result.strategy, folder,
            winning_trial=result.scores.winning_trial,
        )  # fmt: skip
        return write_report([result.study], folder / REPORT_FILE).page
    except Exception as error:  # figures are not worth the loss of a result
        warnings.warn(f"The report could not be made: {error}", ReportWarning, stacklevel=2)
        return None
