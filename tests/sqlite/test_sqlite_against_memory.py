"""Any sequence of calls, through any of several connections, does what Optuna's memory does."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import optuna
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from wpo_optuna.sqlite import SQLiteStorage

DISTRIBUTIONS: list[tuple[BaseDistribution, float]] = [
    (FloatDistribution(0, 1), 0.25),
    (FloatDistribution(0, 2), 0.75),
    (FloatDistribution(0.1, 1, log=True), 0.5),
    (IntDistribution(0, 9), 4.0),
    (CategoricalDistribution(["a", "b"]), 1.0),
    (CategoricalDistribution([1, True, None]), 1.0),
]
ATTRIBUTES = st.one_of(
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.lists(st.floats(-1, 1), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(-9, 9), max_size=2),
    st.none(),
)
NAMES = st.sampled_from(["x", "y"])


def _templates() -> st.SearchStrategy[FrozenTrial]:
    def build(state: TrialState, value: float, attrs: dict[str, Any], chosen: int) -> FrozenTrial:
        distribution, internal = DISTRIBUTIONS[chosen]
        return create_trial(
            state=state,
            value=value if state == TrialState.COMPLETE else None,
            params={"z": distribution.to_external_repr(internal)} if chosen < 2 else {},
            distributions={"z": distribution} if chosen < 2 else {},
            user_attrs=attrs,
            intermediate_values={1: value},
        )

    return st.builds(
        build,
        st.sampled_from(TrialState),
        st.floats(allow_nan=False),
        st.dictionaries(st.text(max_size=2), ATTRIBUTES, max_size=2),
        st.integers(0, len(DISTRIBUTIONS) - 1),
    )


def _contents(trial: FrozenTrial) -> tuple:
    """All of a trial except its times and id, which every storage has of its own."""
    return (
        trial.number,
        trial.state,
        trial.values,
        list(trial.params.items()),
        list(trial.distributions.items()),
        trial.user_attrs,
        trial.system_attrs,
        trial.intermediate_values,
        trial.datetime_start is None,
        trial.datetime_complete is None,
    )


class SeveralConnections(RuleBasedStateMachine):
    """Three connections to one file, as of three processes, and Optuna's memory as the judge.

    The memory has no transactions: a batch is applied to it once it is committed.
    """

    trials = Bundle("trials")

    def __init__(self) -> None:
        super().__init__()
        shared_memory = Path("/dev/shm")
        self.directory = Path(
            tempfile.mkdtemp(dir=shared_memory if shared_memory.is_dir() else None)
        )
        path = self.directory / "study.db"
        self.connections = [SQLiteStorage(path, busy_timeout=0.02) for _ in range(3)]
        self.memory = InMemoryStorage()
        self.batch: Any = None
        self.owner = 0
        self.to_repeat: list[tuple] = []

    @initialize(directions=st.sampled_from([[StudyDirection.MINIMIZE], [StudyDirection.MAXIMIZE]]))
    def create_studies(self, directions: list[StudyDirection]) -> None:
        for name in ("first", "second"):
            made = self.connections[0].create_new_study(directions, name)
            # Ids begin at 1 in a table and at 0 in memory; only their order matters.
            assert made == self.memory.create_new_study(directions, name) + 1

    def teardown(self) -> None:
        if self.batch is not None:
            self.batch.__exit__(None, None, None)
            self._repeat()
        judge = RDBStorage(f"sqlite:///{self.connections[0].path}")
        for study_id in (1, 2):
            expected = [_contents(t) for t in self.memory.get_all_trials(study_id - 1)]
            assert [_contents(t) for t in judge.get_all_trials(study_id)] == expected
        for storage in self.connections:
            storage.close()
        shutil.rmtree(self.directory)

    def _call(self, who: int, method: str, trial: int | None, *arguments: Any) -> Any:
        """Call one connection and the judge, and compare what they return or raise."""
        storage = self.connections[self.owner if self.batch is not None else who]
        ids = [] if trial is None else [trial + 1]
        outcome = _outcome(storage, method, *ids, *arguments)
        if self.batch is None:
            memory_ids = [] if trial is None else [trial]
            assert outcome == _outcome(self.memory, method, *memory_ids, *arguments)
        else:
            self.to_repeat.append((outcome, method, trial, arguments))
        return outcome

    def _repeat(self) -> None:
        for outcome, method, trial, arguments in self.to_repeat:
            memory_ids = [] if trial is None else [trial]
            assert outcome == _outcome(self.memory, method, *memory_ids, *arguments)
        self.to_repeat = []
        self.batch = None

    @rule(target=trials, who=st.integers(0, 2), study=st.integers(0, 1))
    def ask(self, who: int, study: int) -> int:
        return self._create(who, study, None)

    @rule(target=trials, who=st.integers(0, 2), study=st.integers(0, 1), template=_templates())
    def add(self, who: int, study: int, template: FrozenTrial) -> int:
        return self._create(who, study, template)

    def _create(self, who: int, study: int, template: FrozenTrial | None) -> int:
        storage = self.connections[self.owner if self.batch is not None else who]
        outcome = _outcome(storage, "create_new_trial", study + 1, template)
        expected_id = outcome[1] - 1 if outcome[0] == "returned" else None
        judged = (outcome[0], expected_id) if expected_id is not None else outcome
        if self.batch is None:
            assert judged == _outcome(self.memory, "create_new_trial", study, template)
        else:
            self.to_repeat.append((judged, "create_new_trial", None, (study, template)))
        return -1 if expected_id is None else expected_id

    @rule(
        who=st.integers(0, 2),
        trial=trials,
        name=NAMES,
        chosen=st.integers(0, len(DISTRIBUTIONS) - 1),
    )
    def set_param(self, who: int, trial: int, name: str, chosen: int) -> None:
        storage = self.connections[self.owner if self.batch is not None else who]
        seen = _outcome(storage, "get_trial_params", trial + 1)
        if seen[0] == "returned" and name in seen[1]:
            return  # Memory replaces a value set before, a table (here and in RDBStorage) keeps it.
        distribution, internal = DISTRIBUTIONS[chosen]
        self._call(who, "set_trial_param", trial, name, internal, distribution)

    @rule(who=st.integers(0, 2), trial=trials, name=NAMES, value=ATTRIBUTES)
    def set_user_attr(self, who: int, trial: int, name: str, value: Any) -> None:
        self._call(who, "set_trial_user_attr", trial, name, value)

    @rule(who=st.integers(0, 2), trial=trials, name=NAMES, value=ATTRIBUTES)
    def set_system_attr(self, who: int, trial: int, name: str, value: Any) -> None:
        self._call(who, "set_trial_system_attr", trial, name, value)

    @rule(
        who=st.integers(0, 2),
        trial=trials,
        step=st.integers(0, 2),
        value=st.floats(allow_nan=False),
    )
    def report(self, who: int, trial: int, step: int, value: float) -> None:
        self._call(who, "set_trial_intermediate_value", trial, step, value)

    @rule(
        who=st.integers(0, 2),
        trial=trials,
        state=st.sampled_from(TrialState),
        value=st.floats(allow_nan=False),
    )
    def set_state(self, who: int, trial: int, state: TrialState, value: float) -> None:
        values = [value] if state == TrialState.COMPLETE else None
        self._call(who, "set_trial_state_values", trial, state, values)

    @precondition(lambda self: self.batch is None)
    @rule(who=st.integers(0, 2), study=st.integers(1, 2))
    def begin(self, who: int, study: int) -> None:
        self.owner = who
        self.batch = self.connections[who].batch(study)
        self.batch.__enter__()

    @precondition(lambda self: self.batch is not None)
    @rule()
    def commit(self) -> None:
        self.batch.__exit__(None, None, None)
        self._repeat()

    @precondition(lambda self: self.batch is not None)
    @rule()
    def undo(self) -> None:
        error = RuntimeError("undone")
        with contextlib.suppress(RuntimeError):
            self.batch.__exit__(RuntimeError, error, None)
        self.to_repeat = []
        self.batch = None

    @precondition(lambda self: self.batch is not None)
    @rule()
    def refused_by_the_lock(self) -> None:
        other = self.connections[(self.owner + 1) % 3]
        kind, message = _outcome(other, "create_new_trial", 1)
        assert kind == "StorageError"
        assert "locked" in message

    @invariant()
    def every_connection_sees_the_same(self) -> None:
        if self.batch is not None:
            watchers = [s for who, s in enumerate(self.connections) if who != self.owner]
        else:
            watchers = self.connections
        for study_id in (1, 2):
            expected = self.memory.get_all_trials(study_id - 1, deepcopy=False)
            for storage in watchers:
                self._compare(storage, study_id, expected)

    def _compare(self, storage: SQLiteStorage, study_id: int, expected: list[FrozenTrial]) -> None:
        seen = storage.get_all_trials(study_id, deepcopy=False)
        assert [_contents(trial) for trial in seen] == [_contents(trial) for trial in expected]
        assert [_contents(storage.get_trial(t._trial_id)) for t in seen] == [
            _contents(trial) for trial in expected
        ]
        odd = [trial._trial_id for trial in seen if trial.number % 2]
        again = storage.read_trials(study_id, odd, len(seen) // 2)
        assert again == [*seen[1::2], *seen[len(seen) // 2 :]]
        for state in TrialState:
            chosen = [trial.number for trial in expected if trial.state == state]
            asked = storage.get_all_trials(study_id, deepcopy=False, states=(state,))
            assert [trial.number for trial in asked] == chosen
            assert storage.get_n_trials(study_id, state) == len(chosen)
        completed = [t.value for t in expected if t.state == TrialState.COMPLETE]
        if completed:
            direction = storage.get_study_directions(study_id)[0]
            best = max(completed) if direction == StudyDirection.MAXIMIZE else min(completed)
            assert storage.get_best_trial(study_id).value == best


def _outcome(storage: optuna.storages.BaseStorage, method: str, *arguments: Any) -> tuple:
    try:
        return "returned", getattr(storage, method)(*arguments)
    except Exception as error:
        if type(error) is ValueError or isinstance(error, KeyError):
            return type(error).__name__, ""
        return type(error).__name__, str(error)


TestSeveralConnections = SeveralConnections.TestCase
TestSeveralConnections.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
