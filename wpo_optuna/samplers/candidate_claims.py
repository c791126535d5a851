"""Who evaluates which candidate: claims kept in the trials, and what follows from all of them.

A trial that evaluates a candidate says so in a system attribute. Nothing else is stored, so that
the trials alone tell, to every process and after any interruption, which candidates are finished,
which are being evaluated, and which are free.
"""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.samplers.claim_owner import Owner
from wpo_optuna.samplers.trial_reading import TrialPosition

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

CLAIM_KEY = "de:claim"
# Set when a trial was told to have failed. A trial failed without it has lost its process.
FAILED_KEY = "de:failed"

# The generation of draws that belong to no evolution: the first trials of a study whose search
# space is unknown, and trials asked while no candidate can be had.
INDEPENDENT = -1


@dataclass(frozen=True)
class Evolution:
    """What makes two candidates comparable.

    Attributes:
        seed: seed of the random numbers.
        settings: digest of the other settings.
        space: digest of the search space; empty for independent draws.
    """

    seed: int
    settings: str
    space: str


@dataclass(frozen=True)
class Candidate:
    """One candidate.

    Attributes:
        evolution: where it belongs.
        generation: its generation, or :data:`INDEPENDENT`.
        index: its place in the generation.
    """

    evolution: Evolution
    generation: int
    index: int


@dataclass(frozen=True)
class Claim:
    """What a trial says about itself.

    Attributes:
        trial_number: the trial's number: an attribute that was copied into another trial (as
            Optuna does when it retries one) claims nothing.
        candidate: what the trial evaluates.
        owner: who evaluates it.
        definition: the settings in full, in the first claims of a study.
    """

    trial_number: int
    candidate: Candidate
    owner: Owner
    definition: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, trial: FrozenTrial) -> Claim | None:
        """The claim a trial makes, if it makes one."""
        stored = trial.system_attrs.get(CLAIM_KEY)
        if not stored or stored["trial"] != trial.number:
            return None
        evolution = Evolution(stored["seed"], stored["settings"], stored["space"])
        return cls(
            trial_number=trial.number,
            candidate=Candidate(evolution, stored["generation"], stored["index"]),
            owner=Owner.from_json(stored["owner"]),
            definition=stored.get("definition"),
        )

    def to_json(self) -> dict[str, Any]:
        """The value of the system attribute :data:`CLAIM_KEY`."""
        candidate, evolution = self.candidate, self.candidate.evolution
        stored = {
            "trial": self.trial_number,
            "seed": evolution.seed,
            "settings": evolution.settings,
            "space": evolution.space,
            "generation": candidate.generation,
            "index": candidate.index,
            "owner": self.owner.to_json(),
        }
        return stored if self.definition is None else stored | {"definition": self.definition}


@dataclass(frozen=True)
class RunningTrial:
    """A trial that is not finished, as last read.

    Attributes:
        position: where it is kept.
        started: when it was created, or taken from the queue; None while it waits there.
        claim: what it evaluates, if it claims a candidate.
    """

    position: TrialPosition
    started: datetime.datetime | None
    claim: Claim | None


@dataclass
class GenerationRecord:
    """What the trials say of the candidates of one generation, by index.

    Attributes:
        energies: values told, small ones being better.
        holders: numbers of the running trials that claim a candidate.
        failures: how often it was told that a candidate failed.
        witness: the completed trial of the smallest index, after that index.
    """

    energies: dict[int, float] = field(default_factory=dict)
    holders: dict[int, set[int]] = field(default_factory=dict)
    failures: Counter[int] = field(default_factory=Counter)
    witness: tuple[int, FrozenTrial] | None = None

    def is_settled(self, index: int, max_attempts: int) -> bool:
        """Whether a candidate's value is final."""
        return index in self.energies or self.failures.get(index, 0) >= max_attempts

    def is_free(self, index: int, max_attempts: int, trial_number: int | None = None) -> bool:
        """Whether nobody evaluates a candidate nor has, except trial ``trial_number``."""
        holders = self.holders.get(index)
        return (not holders or holders == {trial_number}) and not self.is_settled(
            index, max_attempts
        )


@dataclass(frozen=True)
class FirstOf:
    """The earliest trial of a study with some settings.

    Attributes:
        trial_number: its number.
        evolution: what it belongs to.
        definition: the settings in full, where a trial holds them.
    """

    trial_number: int
    evolution: Evolution
    definition: Mapping[str, Any] | None


class TrialsChangedError(Exception):
    """What was read contradicts what was read before: the study is another one, or was undone."""


class ClaimBook:
    """What the trials of one study say, brought up to date by :meth:`take_in`.

    Args:
        sign: 1 if small values are better, -1 if large ones are.

    Attributes:
        first_unread: the smallest trial number that was never read.
        running: the unfinished trials by number.
        space: the parameters that all completed trials share with equal distributions; None
            before the first.
        newest: the trial of the largest number read, finished or not.
    """

    def __init__(self, sign: int) -> None:
        self._sign = sign
        self.first_unread = 0
        self.running: dict[int, RunningTrial] = {}
        self.space: dict[str, BaseDistribution] | None = None
        self._records: defaultdict[tuple[Evolution, int], GenerationRecord] = defaultdict(
            GenerationRecord
        )
        self._firsts: dict[tuple[int, str], FirstOf] = {}
        self.newest: RunningTrial | None = None

    def take_in(self, trials: Iterable[FrozenTrial]) -> None:
        """Notes the present state of trials, known or new.

        Raises:
            TrialsChangedError: a trial is not the one that was read before under its number.
        """
        for trial in trials:
            if self.newest is not None and trial.number == self.newest.position.number:
                _check_same(self.newest, trial)
            if trial.number >= self.first_unread or trial.number in self.running:
                self._take_in(trial)
            # Others were finished when another thread read them: they cannot change any more.

    def hold(self, trial: FrozenTrial, claim: Claim | None) -> None:
        """Notes a running trial's claim that no reading has shown yet, or its withdrawal."""
        self._note_running(trial, claim)

    def claim_of(self, trial: FrozenTrial) -> Claim | None:
        """The claim of a running trial, as last noted."""
        known = self.running.get(trial.number)
        return None if known is None else known.claim

    def record(self, evolution: Evolution, generation: int) -> GenerationRecord:
        """What is known of a generation."""
        return self._records[evolution, generation]

    def forget(self, evolution: Evolution, generation: int) -> None:
        """Drops what is not needed any more once the next generation has begun."""
        self._records.pop((evolution, generation), None)

    def firsts(self) -> list[FirstOf]:
        """The earliest trial of each pair of seed and settings, in the order of their numbers."""
        return sorted(self._firsts.values(), key=lambda first: first.trial_number)

    def check_running(self, trial: FrozenTrial) -> None:
        """Checks that a running trial agrees with what was read.

        Raises:
            TrialsChangedError: it does not; the study is another one.
        """
        known = self.running.get(trial.number)
        if known is not None:
            _check_same(known, trial)
        elif trial.number < self.first_unread:
            raise TrialsChangedError

    def _take_in(self, trial: FrozenTrial) -> None:
        self.check_running(trial)
        claim = Claim.of(trial)
        if claim is not None:
            self._note_first(claim)
        if not trial.state.is_finished():
            self._note_running(trial, claim)
        else:
            self._note_finished(trial, claim)
        if trial.number >= self.first_unread:
            self.first_unread = trial.number + 1
            self.newest = _as_running(trial, claim)

    def _note_running(self, trial: FrozenTrial, claim: Claim | None) -> None:
        self._note_not_running(trial.number)
        self.running[trial.number] = _as_running(trial, claim)
        if claim is not None:
            holders = self._record_of(claim.candidate).holders
            holders.setdefault(claim.candidate.index, set()).add(trial.number)

    def _note_not_running(self, number: int) -> None:
        known = self.running.pop(number, None)
        if known is not None and known.claim is not None:
            holders = self._record_of(known.claim.candidate).holders
            holders.get(known.claim.candidate.index, set()).discard(number)

    def _record_of(self, candidate: Candidate) -> GenerationRecord:
        return self.record(candidate.evolution, candidate.generation)

    def _note_finished(self, trial: FrozenTrial, claim: Claim | None) -> None:
        self._note_not_running(trial.number)
        if trial.state == TrialState.COMPLETE:
            self._narrow_space(trial)
        if claim is None:
            return
        record, index = self._record_of(claim.candidate), claim.candidate.index
        if trial.state == TrialState.FAIL:
            record.failures[index] += int(FAILED_KEY in trial.system_attrs)
            return
        energy = float("inf") if trial.value is None else self._sign * trial.value
        record.energies.setdefault(index, energy)
        is_witness = record.witness is None or index < record.witness[0]
        if trial.state == TrialState.COMPLETE and is_witness:
            record.witness = (index, trial)

    def _note_first(self, claim: Claim) -> None:
        evolution = claim.candidate.evolution
        key = (evolution.seed, evolution.settings)
        known = self._firsts.get(key)
        if known is None:
            self._firsts[key] = FirstOf(claim.trial_number, evolution, claim.definition)
        elif claim.trial_number < known.trial_number or (claim.definition and not known.definition):
            self._firsts[key] = FirstOf(
                min(claim.trial_number, known.trial_number),
                evolution,
                known.definition or claim.definition,
            )

    def _narrow_space(self, trial: FrozenTrial) -> None:
        if self.space is None:
            self.space = dict(sorted(trial.distributions.items()))
        elif self.space != trial.distributions:
            self.space = {
                name: distribution
                for name, distribution in self.space.items()
                if trial.distributions.get(name) == distribution
            }


def _as_running(trial: FrozenTrial, claim: Claim | None) -> RunningTrial:
    started = None if trial.state == TrialState.WAITING else trial.datetime_start
    return RunningTrial(TrialPosition(trial.number, trial._trial_id), started, claim)


def _check_same(known: RunningTrial, trial: FrozenTrial) -> None:
    if known.position.trial_id != trial._trial_id:
        raise TrialsChangedError
    if known.started is None or trial.datetime_start is None:
        return
    # Some databases keep whole seconds, while the process that made the trial knows more.
    if abs(known.started - trial.datetime_start) > datetime.timedelta(seconds=2):
        raise TrialsChangedError
