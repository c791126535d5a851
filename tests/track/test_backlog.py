"""Trials on their way: their order, what is kept in memory, what is fetched from the storage."""

from __future__ import annotations

import datetime

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracked_studies import finished_trial, make_study, random_points

from wpo_optuna.track.delivery import backlog as backlog_module
from wpo_optuna.track.delivery.backlog import Backlog


@pytest.fixture
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "_LOOK_AFTER_S", 0.0)
    monkeypatch.setattr(backlog_module, "_LOOKING_SHARE", 1e9)


def study_with(n: int) -> optuna.Study:
    study = make_study()
    study.add_trials([finished_trial(x) for x in random_points(n)])
    return study


def numbers(trials: list[optuna.trial.FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


@given(order=st.permutations(range(12)), size=st.integers(1, 12), taken_at=st.integers(0, 12))
def test_trials_finished_in_any_order_leave_in_the_order_of_their_numbers(
    order: list[int], size: int, taken_at: int
) -> None:
    study = study_with(12)
    backlog = Backlog(study)
    left: list[int] = []
    for position, number in enumerate(order):
        backlog.put(study.trials[number])
        if position >= taken_at:
            left += numbers(backlog.next_own(size))
    while trials := backlog.next_own(size):
        left += numbers(trials)
    assert left == list(range(12))


def test_what_does_not_fit_into_memory_is_fetched_from_the_storage_again(
    monkeypatch: pytest.MonkeyPatch, without_waiting: None
) -> None:
    monkeypatch.setattr(backlog_module, "MOST_WAITING", 10)
    study = study_with(95)
    backlog = Backlog(study)
    for trial in study.trials:
        backlog.put(trial)
        assert len(backlog._waiting) <= 10
    assert backlog.n_left == 95
    left: list[int] = []
    for _ in range(100):
        trials = backlog.next_own(7) or backlog.next_foreign(7)
        left += numbers(trials)
        backlog.acknowledge(trials)
    assert left == list(range(95))
    assert backlog.n_left == 0


def test_new_trials_do_not_keep_out_those_that_did_not_fit(
    monkeypatch: pytest.MonkeyPatch, without_waiting: None
) -> None:
    """The memory is full of later trials when it is time to fetch the earlier ones."""
    monkeypatch.setattr(backlog_module, "MOST_WAITING", 10)
    study = study_with(60)
    backlog = Backlog(study)
    for trial in study.trials[:30]:
        backlog.put(trial)
    left = numbers(backlog.next_own(10))
    for trial in study.trials[30:]:
        backlog.put(trial)
    for _ in range(100):
        left += numbers(backlog.next_own(10) or backlog.next_foreign(10))
    assert left == list(range(60))


def test_trials_of_other_processes_are_regarded_and_not_delivered(without_waiting: None) -> None:
    study = make_study()
    backlog = Backlog(study)
    study.add_trials([finished_trial(x) for x in random_points(6)])
    for number in (1, 3, 5):
        backlog.put(study.trials[number])
    assert backlog.next_own(10) == []
    assert numbers(backlog.next_foreign(10)) == [0, 2, 4]
    assert numbers(backlog.next_own(10)) == [1, 3, 5]


def test_trials_of_earlier_sessions_that_mlflow_lacks_are_delivered(without_waiting: None) -> None:
    study = study_with(6)
    for trial in study.get_trials(deepcopy=False):
        trial.datetime_complete = datetime.datetime.now() - datetime.timedelta(hours=1)
    backlog = Backlog(study)
    backlog.opened([0, 1])
    backlog.put(study.trials[5])
    assert backlog.next_own(10) == []
    assert backlog.next_foreign(10) == []
    assert numbers(backlog.next_own(10)) == [2, 3, 4, 5]


def test_a_trial_that_is_never_finished_does_not_hold_up_the_others_for_long(
    monkeypatch: pytest.MonkeyPatch, without_waiting: None
) -> None:
    study = make_study()
    abandoned = study.ask()
    study.add_trials([finished_trial(x) for x in random_points(2)])
    backlog = Backlog(study)
    for trial in study.trials[1:]:
        backlog.put(trial)
    assert backlog.next_foreign(10) == []
    assert backlog.next_own(10) == []
    monkeypatch.setattr(backlog_module, "_GIVE_UP_AFTER_S", 0.0)
    backlog.next_foreign(10)
    assert numbers(backlog.next_own(10)) == [1, 2]
    study.tell(abandoned, 1.0)
    backlog.put(study.trials[0])
    assert numbers(backlog.next_own(10)) == [0]


def test_the_rest_is_everything_that_is_not_in_mlflow(without_waiting: None) -> None:
    study = study_with(8)
    study.ask()
    backlog = Backlog(study)
    for trial in study.trials[:5]:
        backlog.put(trial)
    delivered = backlog.next_own(3)
    backlog.acknowledge(delivered)
    assert numbers(backlog.rest()) == [3, 4, 5, 6, 7]


def test_trials_given_back_leave_again(without_waiting: None) -> None:
    study = study_with(4)
    backlog = Backlog(study)
    for trial in study.trials:
        backlog.put(trial)
    trials = backlog.next_own(3)
    backlog.give_back(trials)
    assert backlog.n_left == 4
    assert numbers(backlog.next_own(10)) == [0, 1, 2, 3]
