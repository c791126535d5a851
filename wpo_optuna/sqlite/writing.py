"""Changes of trials: to the cache at once, to the database with the transaction.

Every function refuses before it changes anything, so that a refused call leaves a batch intact.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.sqlite.cache import StudyCache
from wpo_optuna.sqlite.database import Database
from wpo_optuna.sqlite.records import (
    OpenTrial,
    checked_internal,
    checked_values,
    external_value,
    finite_or_named,
    json_round_trip,
    local_of,
    now,
    utc_text,
)


def insert(database: Database, connection: sqlite3.Connection, study: StudyCache) -> int:
    """Add a running trial and return its id."""
    local, utc = now()
    database.changed = True
    trial_id = database.pending.new_trial_id(connection)
    trial = OpenTrial(trial_id, study.size, TrialState.RUNNING, local)
    row = (trial_id, trial.number, study.study_id, trial.state.name, utc, None)
    database.pending.trials.append(row)
    study.add(trial)
    return trial_id


def insert_copy(
    database: Database, connection: sqlite3.Connection, study: StudyCache, template: FrozenTrial
) -> int:
    """Add a trial with everything the template has, except for its number and id.

    Raises:
        ValueError: If a parameter's distribution contradicts the study's earlier trials, or a
            value is NaN.
        TypeError: If an attribute has no JSON form.
    """
    internal = {
        name: checked_internal(template.distributions[name].to_internal_repr(value))
        for name, value in template.params.items()
    }
    stored = {
        name: study.distributions.stored(name, template.distributions[name]) for name in internal
    }
    user_attrs = {key: json_round_trip(value) for key, value in template.user_attrs.items()}
    system_attrs = {key: json_round_trip(value) for key, value in template.system_attrs.items()}
    steps = {int(step): float(v) for step, v in template.intermediate_values.items()}
    values = None if template.values is None else checked_values(template.values)
    start, complete = utc_text(template.datetime_start), utc_text(template.datetime_complete)

    database.changed = True
    pending = database.pending
    trial_id = pending.new_trial_id(connection)
    trial = OpenTrial(trial_id, study.size, template.state, local_of(start), local_of(complete))
    trial.values = values
    trial.params = {name: external_value(stored[name][0], internal[name]) for name in internal}
    trial.distributions = {name: distribution for name, (distribution, _) in stored.items()}
    trial.user_attrs = {key: value for key, (_, value) in user_attrs.items()}
    trial.system_attrs = {key: value for key, (_, value) in system_attrs.items()}
    trial.intermediate_values = steps

    state = template.state.name
    pending.trials.append((trial_id, trial.number, study.study_id, state, start, complete))
    pending.params += [(trial_id, name, internal[name], stored[name][1]) for name in internal]
    pending.user_attrs += [(trial_id, key, text) for key, (text, _) in user_attrs.items()]
    pending.system_attrs += [(trial_id, key, text) for key, (text, _) in system_attrs.items()]
    pending.intermediate_values += [
        (trial_id, step, *finite_or_named(value)) for step, value in steps.items()
    ]
    pending.values += [(trial_id, i, *finite_or_named(v)) for i, v in enumerate(values or ())]
    study.add(trial)
    return trial_id


def set_param(
    database: Database,
    study: StudyCache,
    trial: OpenTrial,
    name: str,
    internal: float,
    distribution: BaseDistribution,
) -> None:
    """Set a parameter; a second value for the same name is ignored, as in ``RDBStorage``.

    Raises:
        ValueError: If the distribution contradicts the study's earlier trials, or the value is
            NaN.
    """
    internal = checked_internal(internal)
    distribution, text = study.distributions.stored(name, distribution)
    if name in trial.params:
        return
    database.changed = True
    trial.params[name] = external_value(distribution, internal)
    trial.distributions[name] = distribution
    database.pending.params.append((trial.trial_id, name, internal, text))
    study.distributions.note(name, distribution)
    study.touch(trial)


def set_user_attr(
    database: Database, study: StudyCache, trial: OpenTrial, key: str, text: str, value: Any
) -> None:
    """Set or replace a user attribute, given as JSON and as what that JSON means."""
    database.changed = True
    trial.user_attrs[key] = value
    database.pending.user_attrs.append((trial.trial_id, key, text))
    study.touch(trial)


def set_system_attr(
    database: Database, study: StudyCache, trial: OpenTrial, key: str, text: str, value: Any
) -> None:
    """Set or replace a system attribute, given as JSON and as what that JSON means."""
    database.changed = True
    trial.system_attrs[key] = value
    database.pending.system_attrs.append((trial.trial_id, key, text))
    study.touch(trial)


def set_intermediate_value(
    database: Database, study: StudyCache, trial: OpenTrial, step: int, value: float
) -> None:
    """Set or replace the value reported at a step."""
    step, value = int(step), float(value)
    database.changed = True
    trial.intermediate_values[step] = value
    database.pending.intermediate_values.append((trial.trial_id, step, *finite_or_named(value)))
    study.touch(trial)


def set_state(
    database: Database,
    study: StudyCache,
    trial: OpenTrial,
    state: TrialState,
    values: Sequence[float] | None,
) -> bool:
    """Move an open trial into another state, with its objective values if it has any.

    Returns:
        False, and nothing is changed, if a trial that is not waiting is to start running: then
        somebody else has taken it.

    Raises:
        ValueError: If a value is NaN.
    """
    checked = None if values is None else checked_values(values)
    if state == TrialState.RUNNING and trial.state != TrialState.WAITING:
        return False
    local, utc = now()
    database.changed = True
    if checked is not None:
        trial.values = checked
        database.pending.values += [
            (trial.trial_id, i, *finite_or_named(value)) for i, value in enumerate(checked)
        ]
    start = complete = None
    if state == TrialState.RUNNING:
        trial.datetime_start, start = local, utc
    elif state.is_finished():
        trial.datetime_complete, complete = local, utc
    database.pending.states.append((state.name, start, complete, trial.trial_id))
    study.set_state(trial, state)
    return True
