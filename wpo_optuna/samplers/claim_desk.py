"""Giving each candidate to exactly one trial, whatever other threads and processes do.

The protocol needs no lock and nothing but a storage whose reads see every write that was finished
before: a trial writes its claim, and only then reads the claims of all others. Of two trials that
claim one candidate, the one that wrote later therefore sees the earlier one and withdraws; perhaps
both do, but never do both keep it. Random pauses and random choices end the contest.

Waiting for others at the end of a generation cannot become a deadlock, because only those wait
that hold nothing anybody could wait for (:meth:`Owner.depends_on`), and because trials whose
process has died are failed, which frees their candidates.
"""

from __future__ import annotations

import datetime
import itertools
import logging
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.samplers.candidate_claims import (
    CLAIM_KEY,
    Candidate,
    Claim,
    ClaimBook,
    Evolution,
    RunningTrial,
    TrialsChangedError,
)
from wpo_optuna.samplers.claim_owner import Liveness, Owner
from wpo_optuna.samplers.evolution_replay import EvolutionReplay, IndependentDraws
from wpo_optuna.samplers.trial_reading import read_trials

if TYPE_CHECKING:
    from optuna.study import Study

_logger = logging.getLogger(__name__)

# Among how many free candidates to choose after a contest was lost.
_N_OPTIONS = 64
# Readings contradict each other when a study is deleted or a batch of writes is undone meanwhile.
_MAX_READINGS = 10
_SHORTEST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.25
_FIRST_MESSAGE_S = 60.0

Source = EvolutionReplay | IndependentDraws


@dataclass(frozen=True)
class Search:
    """What a trial wants a candidate of.

    Attributes:
        evolution: names it.
        start: makes its source, as it is before any trial.
        definition: the settings in full, kept with the first claim.
    """

    evolution: Evolution
    start: Callable[[], Source]
    definition: Mapping[str, Any]


@dataclass(frozen=True)
class _Choice:
    claim: Claim
    params: dict[str, Any]


class ClaimDesk:
    """Hands out the candidates of one study to the trials of one sampler object.

    Args:
        direction: the study's.
        max_attempts: as :class:`~wpo_optuna.samplers.de.DESampler`.
        stale_after: as :class:`~wpo_optuna.samplers.de.DESampler`, in seconds.

    Attributes:
        direction: the study's.
        book: what was read of the study's trials. Whoever uses it holds :attr:`lock`.
        lock: kept for changes in memory alone, never while the storage works: another thread may
            keep the storage busy until it gets this lock.
    """

    def __init__(self, direction: StudyDirection, max_attempts: int, stale_after: float) -> None:
        self.lock = threading.RLock()
        self.direction = direction
        self._sign = -1 if direction == StudyDirection.MAXIMIZE else 1
        self._max_attempts = max_attempts
        self._stale_after = stale_after
        self._random = random.Random()
        self._rollbacks = 0
        self._start_empty()

    def _start_empty(self) -> None:
        self.book = ClaimBook(self._sign)
        self._sources: dict[Evolution, Source] = {}
        # Unfinished trials that got their claim here. What is known of them here is newer than
        # what any reading says, so they are read again only when they may be finished.
        self._given_here: set[int] = set()
        self._told_by: dict[int, int] = {}
        self._warned_of: set[tuple[Evolution, int]] = set()

    def source(self, search: Search) -> Source:
        """Where a search's candidates come from, up to date with the book; the caller locks.

        Raises:
            WeightProgrammingError: as :meth:`EvolutionReplay.catch_up`.
        """
        if search.evolution not in self._sources:
            self._sources[search.evolution] = search.start()
        source = self._sources[search.evolution]
        source.catch_up(self.book)
        return source

    def note_told(self, trial: FrozenTrial) -> None:
        """Notes that a trial is being told, by the calling thread."""
        here = Owner.current(in_optimize=False)
        with self.lock:
            self._told_by[trial.number] = here.thread

    # Reading

    def expect(self, trial: FrozenTrial) -> None:
        """Notices, by a trial that was just created, that the study is not the one read before.

        Another study takes the place of a deleted one where the storage uses its key again.
        """
        with self.lock:
            if trial.number in self._given_here and Claim.of(trial) is None:
                # It has just been created, so its number was that of a trial that is gone.
                self._start_empty()
                return
            try:
                self.book.check_running(trial)
            except TrialsChangedError:
                self._start_empty()

    def refresh(self, study: Study, *, in_full: bool) -> None:
        """Reads what has changed, and fails the trials whose process has died.

        Args:
            study: the study.
            in_full: whether to read also those trials that were claimed here and not told here.
                It is needed where nothing else is left to do: another process may have told them.
        """
        self._read(study, in_full=in_full)
        with self.lock:
            abandoned = self._abandoned(study, in_full)
        for trial in abandoned:
            self._fail(study, trial)
        if abandoned:
            self._read(study, in_full=in_full)

    def _read(self, study: Study, *, in_full: bool) -> None:
        for n_left in reversed(range(_MAX_READINGS)):
            with self.lock:
                book = self._valid_book(study)
                positions = [book.running[number].position for number in self._to_read(in_full)]
                if in_full and book.newest is not None:
                    positions.append(book.newest.position)
                first_unread = book.first_unread
            try:
                trials = read_trials(study._storage, study._study_id, positions, first_unread)
            except KeyError:
                if n_left == 0:
                    raise
                self._forget(book)
                continue
            with self.lock:
                if book is not self.book:
                    continue
                try:
                    book.take_in([trial for trial in trials if self._is_news(trial)])
                    return
                except TrialsChangedError:
                    self._start_empty()
        raise RuntimeError(f"The trials of study {study.study_name!r} change without end.")

    def _forget(self, book: ClaimBook) -> None:
        with self.lock:
            if book is self.book:
                self._start_empty()

    def _valid_book(self, study: Study) -> ClaimBook:
        # A storage that writes batches in transactions counts those that were undone: what was
        # read inside them has never been.
        rollbacks = getattr(study._storage, "rollbacks", 0)
        if rollbacks != self._rollbacks:
            self._rollbacks = rollbacks
            self._start_empty()
        return self.book

    def _to_read(self, in_full: bool) -> Iterable[int]:
        running = self.book.running.keys()
        return running if in_full else running - (self._given_here - self._told_by.keys())

    def _is_news(self, trial: FrozenTrial) -> bool:
        if not trial.state.is_finished():
            return trial.number not in self._given_here
        self._given_here.discard(trial.number)
        self._told_by.pop(trial.number, None)
        return True

    # Trials that nobody will finish

    def _abandoned(self, study: Study, in_full: bool) -> list[RunningTrial]:
        here = Owner.current(in_optimize=study._thread_local.in_optimize_loop)
        has_heartbeat = is_heartbeat_enabled(study._storage)
        liveness: dict[Owner, Liveness] = {}
        abandoned = []
        for number in self._to_read(in_full):
            trial = self.book.running[number]
            if trial.claim is None:
                continue
            owner = trial.claim.owner
            if owner.same_process(here):
                if self._is_lost(trial.claim, here):
                    abandoned.append(trial)
                continue
            if owner not in liveness:
                liveness[owner] = owner.liveness()
            is_unheard_of = liveness[owner] is Liveness.UNKNOWN and not has_heartbeat
            if liveness[owner] is Liveness.DEAD or (is_unheard_of and self._is_stale(trial)):
                abandoned.append(trial)
        return abandoned

    def _is_lost(self, claim: Claim, here: Owner) -> bool:
        """Whether this process itself will never tell a trial.

        Study.optimize tells a trial in the thread that asked for it, before it asks for the next
        one. If the trial is running still then the storage failed, or Ctrl-C came, meanwhile.
        """
        if not claim.owner.in_optimize:
            return False
        is_told = here.in_optimize and self._told_by.get(claim.trial_number) == here.thread
        return is_told or claim.owner.has_ended_here()

    def _is_stale(self, trial: RunningTrial) -> bool:
        if trial.started is None:
            return False
        age = datetime.datetime.now(trial.started.tzinfo) - trial.started
        return age.total_seconds() > self._stale_after

    def _fail(self, study: Study, trial: RunningTrial) -> None:
        assert trial.claim is not None
        with self.lock:
            # What is known here of a trial given here is the newest no longer.
            self._given_here.discard(trial.position.number)
        try:
            study._storage.set_trial_state_values(trial.position.trial_id, TrialState.FAIL)
        except (UpdateFinishedTrialError, KeyError):
            # Its owner, or another process that saw the same, was faster.
            return
        _logger.warning(
            f"Trial {trial.position.number} was abandoned by {trial.claim.owner} and has been "
            "failed; its candidate will be evaluated again."
        )

    # Claiming

    def claim(self, study: Study, trial: FrozenTrial, search: Search) -> dict[str, Any] | None:
        """Claims a free candidate for a trial, waiting for one if that is safe.

        The caller has refreshed the desk since the trial was created.

        Args:
            study: the study.
            trial: a running trial without a claim.
            search: whose candidate is wanted.

        Returns:
            The candidate's parameters; None if nothing is free and waiting might last for ever.
        """
        params = self._params_of_earlier_claim(trial, search)
        if params is not None:
            return params
        owner = Owner.current(in_optimize=study._thread_local.in_optimize_loop)
        patience = _Patience(self._random)
        n_options = 1
        while True:
            choice = self._choose(trial, search, owner, n_options)
            if choice is None:
                self.refresh(study, in_full=True)
                choice = self._choose(trial, search, owner, n_options)
            if choice is not None:
                if self._write_and_check(study, trial, choice.claim, search):
                    return choice.params
                n_options = _N_OPTIONS
            else:
                holders = self._holders(search, trial.number)
                if not _may_wait(study, holders, owner):
                    self._warn_of(search, holders)
                    return None
                patience.explain(holders)
            patience.pause()
            _fail_stale_trials(study)
            self.refresh(study, in_full=False)

    def _params_of_earlier_claim(self, trial: FrozenTrial, search: Search) -> dict[str, Any] | None:
        # A running trial may be handed to another process, which makes a Trial of it once more.
        claim = Claim.of(trial)
        if claim is None or claim.candidate.evolution != search.evolution:
            return None
        with self.lock:
            source = self.source(search)
            if claim.candidate.generation != source.generation:
                return None
            return source.params(claim.candidate)

    def _choose(
        self, trial: FrozenTrial, search: Search, owner: Owner, n_options: int
    ) -> _Choice | None:
        with self.lock:
            source = self.source(search)
            options = list(itertools.islice(source.free(self.book, trial.number), n_options))
            if not options:
                return None
            index = self._random.choice(options)
            is_first = index == 0 and source.generation <= 0
            claim = Claim(
                trial_number=trial.number,
                candidate=Candidate(search.evolution, source.generation, index),
                owner=owner,
                definition=search.definition if is_first else None,
            )
            # Held here before it is written, so that other threads choose something else.
            self.book.hold(trial, claim)
            self._given_here.add(trial.number)
            return _Choice(claim, source.params(claim.candidate))

    def _write_and_check(
        self, study: Study, trial: FrozenTrial, claim: Claim, search: Search
    ) -> bool:
        """Writes a claim; False if another trial has the candidate, and the claim is withdrawn."""
        try:
            study._storage.set_trial_system_attr(trial._trial_id, CLAIM_KEY, claim.to_json())
            self._read(study, in_full=False)
            with self.lock:
                generation = self.source(search).generation
                record = self.book.record(search.evolution, generation)
                # A generation that is over had all its candidates evaluated by others.
                if generation == claim.candidate.generation and record.is_free(
                    claim.candidate.index, self._max_attempts, trial.number
                ):
                    return True
            study._storage.set_trial_system_attr(trial._trial_id, CLAIM_KEY, None)
            with self.lock:
                self.book.hold(trial, None)
                self._given_here.discard(trial.number)
            return False
        except BaseException:
            # Whether the claim was written only the storage knows now.
            with self.lock:
                self._given_here.discard(trial.number)
            raise

    def _warn_of(self, search: Search, holders: list[RunningTrial]) -> None:
        with self.lock:
            place = (search.evolution, self.source(search).generation)
            if place in self._warned_of:
                return
            self._warned_of.add(place)
        _logger.warning(
            f"Generation {place[1]} of the differential evolution cannot be finished before "
            f"trials {_numbers(holders)} are told; until then trials are sampled independently."
        )

    def _holders(self, search: Search, trial_number: int) -> list[RunningTrial]:
        with self.lock:
            record = self.book.record(search.evolution, self.source(search).generation)
            numbers = {number for holders in record.holders.values() for number in holders}
            return [self.book.running[number] for number in numbers - {trial_number}]


def _may_wait(study: Study, holders: list[RunningTrial], asker: Owner) -> bool:
    # In a transaction, others could not write what is waited for.
    if getattr(study._storage, "in_batch", False):
        return False
    return not any(
        holder.claim is not None and holder.claim.owner.depends_on(asker) for holder in holders
    )


def _fail_stale_trials(study: Study) -> None:
    if is_heartbeat_enabled(study._storage):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)


def _numbers(trials: list[RunningTrial]) -> str:
    return ", ".join(str(number) for number in sorted(trial.position.number for trial in trials))


class _Patience:
    """Pauses of growing, random length, with a word now and then on what is waited for."""

    def __init__(self, source_of_randomness: random.Random) -> None:
        self._random = source_of_randomness
        self._longest_s = _SHORTEST_PAUSE_S
        self._silence_s = _FIRST_MESSAGE_S
        self._began = time.monotonic()

    def pause(self) -> None:
        time.sleep(self._random.uniform(0.0, self._longest_s))
        self._longest_s = min(2 * self._longest_s, _LONGEST_PAUSE_S)

    def explain(self, holders: list[RunningTrial]) -> None:
        waited_s = time.monotonic() - self._began
        if waited_s < self._silence_s:
            return
        self._silence_s *= 4
        owners = {str(holder.claim.owner) for holder in holders if holder.claim}
        _logger.warning(
            f"Waiting for {waited_s:.0f} s for the last trials of a generation: "
            f"{_numbers(holders)}, evaluated by {', '.join(sorted(owners))}. One that will never "
            "finish can be given up: study.tell(number, state=TrialState.FAIL)."
        )
