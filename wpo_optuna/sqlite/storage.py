"""An Optuna storage for thousands of trials per second in an ordinary Optuna SQLite file."""

from __future__ import annotations

import contextlib
import copy
import threading
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.sqlite import heartbeats, schema, studies, writing
from wpo_optuna.sqlite.cache import StudyCache
from wpo_optuna.sqlite.database import Database
from wpo_optuna.sqlite.reading import refreshed
from wpo_optuna.sqlite.records import OpenTrial, json_round_trip

StaleTrialCallback = Callable[["optuna.study.Study", FrozenTrial], None]


class SQLiteStorage(BaseStorage, BaseHeartbeat):
    """Optuna's SQLite schema in plain SQL, with whole batches of trials in one transaction.

    The file is an ordinary Optuna database: the ``optuna`` command, optuna-dashboard and
    :class:`optuna.storages.RDBStorage` read it and may write it at the same time. What differs is
    the cost: trials are kept in memory once read, only changes of other processes are read again,
    and inside :meth:`batch` all writes of the calling thread become one transaction.

    Outside a batch every write is a transaction of its own and durable when the call returns.
    The object may be shared by threads, pickled, and used on in forked processes.

    Args:
        path: The database file; made if it does not exist.
        busy_timeout: How long to wait for a lock held by another program, in seconds.
        heartbeat_interval: As :class:`optuna.storages.RDBStorage`, in seconds: trials run by
            ``Study.optimize`` report that they are alive this often.
        grace_period: How long after its last heartbeat a running trial counts as dead, in
            seconds; None means twice the interval.
        heartbeat_stale_trial_callback: Called with the study and each trial that was failed so.

    Raises:
        InvalidArgument: If the file cannot be used, is not Optuna's, or has another version's
            schema; nothing is written then.
        UnknownSchemaError: If the installed Optuna has a schema unknown here; use
            :class:`optuna.storages.RDBStorage` instead.
        StorageError: If the file is locked for longer than ``busy_timeout``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        busy_timeout: float = 60.0,
        heartbeat_interval: int | None = None,
        grace_period: int | None = None,
        heartbeat_stale_trial_callback: StaleTrialCallback | None = None,
    ) -> None:
        for name, value in (
            ("busy_timeout", busy_timeout),
            ("heartbeat_interval", heartbeat_interval),
            ("grace_period", grace_period),
        ):
            if value is not None and not value > 0:
                raise InvalidArgument(f"{name}: {value} s; accepted is a positive number")
        schema.check_schema_is_known()
        self._path = Path(path).absolute()
        self._busy_timeout = busy_timeout
        self._heartbeat_interval = heartbeat_interval
        self._grace_period = grace_period
        self._heartbeat_stale_trial_callback = heartbeat_stale_trial_callback
        schema.prepare(self._path, busy_timeout)
        self._start_empty()

    def _start_empty(self) -> None:
        self._database = Database(self._path, self._busy_timeout)
        self._studies: dict[int, StudyCache] = {}
        self._study_ids: dict[int, int] = {}
        self._rollbacks = 0
        self._thread_in_batch: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_database", "_studies", "_study_ids", "_rollbacks", "_thread_in_batch"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    def __repr__(self) -> str:
        return f"SQLiteStorage({str(self._path)!r})"

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path

    @contextlib.contextmanager
    def batch(self, study_id: int) -> Iterator[None]:
        """All writes of this thread inside the block become one transaction, or none of them.

        Reads inside see the block's own writes. Blocks may be nested: the outermost decides. An
        exception that leaves any of them undoes the whole transaction. Other threads and
        processes that want to write wait until the end, so evaluate objectives outside.

        Args:
            study_id: The study written to.

        Raises:
            KeyError: If there is no such study.
            StorageError: If the database is locked for longer than ``busy_timeout``, or the
                transaction could not be written (for example on a full disk); nothing of the
                batch is stored then, and everything committed before is.
        """
        with self._database:
            self._study(study_id)
            outer, self._thread_in_batch = self._thread_in_batch, threading.get_ident()
            try:
                yield
            except BaseException as error:
                self._database.fail_batch(error)
                raise
            finally:
                self._thread_in_batch = outer

    @property
    def in_batch(self) -> bool:
        """Whether the calling thread is inside a batch: others wait for it then."""
        return self._thread_in_batch == threading.get_ident()

    @property
    def rollbacks(self) -> int:
        """How many transactions were undone; what was read inside them must be forgotten."""
        return self._database.rollbacks

    def close(self) -> None:
        """Close the connection to the file; the next use opens it again."""
        self._database.close()

    # Studies

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Make a study; see :meth:`optuna.storages.BaseStorage.create_new_study`."""
        if study_name is None:
            study_name = DEFAULT_STUDY_NAME_PREFIX + str(uuid.uuid4())
        with self._database as connection:
            if studies.find_id(connection, study_name) is not None:
                raise DuplicatedStudyError(f"A study named {study_name!r} exists in {self._path}.")
            self._database.changed = True
            study_id = studies.create(connection, study_name, directions)
            self._studies.pop(study_id, None)
            return study_id

    def delete_study(self, study_id: int) -> None:
        """Delete a study with all its trials."""
        with self._database as connection:
            studies.name_of(connection, study_id)
            self._database.changed = True
            self._database.pending.flush(connection)
            studies.delete(connection, study_id)
            self._studies.pop(study_id, None)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set or replace one of a study's user attributes."""
        text, _ = json_round_trip(value)
        with self._database as connection:
            studies.set_attribute(connection, "study_user_attributes", study_id, key, text)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set or replace one of a study's system attributes."""
        text, _ = json_round_trip(value)
        with self._database as connection:
            studies.set_attribute(connection, "study_system_attributes", study_id, key, text)

    def get_study_id_from_name(self, study_name: str) -> int:
        """The id of the study with this name."""
        with self._database.locked(), self._database.snapshot() as connection:
            study_id = studies.find_id(connection, study_name)
        if study_id is None:
            raise KeyError(f"No study named {study_name!r} exists.")
        return study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        """The name of a study."""
        with self._database.locked(), self._database.snapshot() as connection:
            return studies.name_of(connection, study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """The direction of each of a study's objectives."""
        with self._database.locked():
            return list(self._study(study_id).directions)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """All user attributes of a study."""
        with self._database.locked(), self._database.snapshot() as connection:
            return studies.attributes(connection, "study_user_attributes", study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """All system attributes of a study."""
        with self._database.locked(), self._database.snapshot() as connection:
            return studies.attributes(connection, "study_system_attributes", study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        """All studies of the database, in order of their ids."""
        with self._database.locked(), self._database.snapshot() as connection:
            return studies.read_all(connection)

    # Writing trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a running trial, or a copy of a template with a number of its own."""
        with self._database as connection:
            study = self._study(study_id)
            if template_trial is None:
                trial_id = writing.insert(self._database, connection, study)
            else:
                trial_id = writing.insert_copy(self._database, connection, study, template_trial)
            self._study_ids[trial_id] = study_id
            return trial_id

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Set a parameter of an open trial; a second value for the same name is ignored."""
        with self._database:
            study, trial = self._open_trial(trial_id)
            writing.set_param(
                self._database, study, trial, param_name, param_value_internal, distribution
            )

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Change an open trial's state, and its values if given; False if somebody was first."""
        with self._database:
            study, trial = self._open_trial(trial_id)
            return writing.set_state(self._database, study, trial, state, values)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Set or replace the value reported at a step of an open trial."""
        with self._database:
            study, trial = self._open_trial(trial_id)
            writing.set_intermediate_value(self._database, study, trial, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set or replace a user attribute of an open trial."""
        text, meaning = json_round_trip(value)
        with self._database:
            study, trial = self._open_trial(trial_id)
            writing.set_user_attr(self._database, study, trial, key, text, meaning)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set or replace a system attribute of an open trial."""
        text, meaning = json_round_trip(value)
        with self._database:
            study, trial = self._open_trial(trial_id)
            writing.set_system_attr(self._database, study, trial, key, text, meaning)

    # Reading trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """One trial as it is now; later writes do not change the object."""
        with self._database.locked():
            return self._study_of(trial_id).trial(trial_id)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """The id of the trial with this number."""
        with self._database.locked():
            return self._study(study_id).trial_id_of(trial_number)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """The trials of a study, or those in any of ``states``, in order of their numbers."""
        with self._database.locked():
            trials = self._study(study_id).trials(states)
        return copy.deepcopy(trials) if deepcopy else trials

    def read_trials(
        self, study_id: int, trial_ids: Iterable[int], first_number: int
    ) -> list[FrozenTrial]:
        """Some trials, and all that came after them; the cost does not grow with the study.

        Args:
            study_id: The study.
            trial_ids: Ids of trials to read, for example of those that ran when last seen.
            first_number: All trials with this number or a larger one are read as well.

        Returns:
            The trials by ``trial_ids``, then those by number; not to be changed.

        Raises:
            KeyError: If the study or one of the trials is gone.
        """
        with self._database.locked():
            return self._study(study_id).shared(trial_ids, first_number)

    def get_n_trials(
        self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None
    ) -> int:
        """The number of trials of a study, or of those in any of these states."""
        with self._database.locked():
            return self._study(study_id).count((state,) if isinstance(state, TrialState) else state)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The completed trial with the best value; the earliest of equals."""
        with self._database.locked():
            study = self._study(study_id)
            if len(study.directions) > 1:
                raise RuntimeError("Only a study of a single objective has a best trial.")
            if study.best is None:
                raise ValueError("No trials are completed yet.")
            return study.best

    # Heartbeats

    def record_heartbeat(self, trial_id: int) -> None:
        """Note that a trial is alive."""
        with self._database as connection:
            heartbeats.record(connection, trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        assert self._heartbeat_interval is not None
        grace_period = self._grace_period or 2 * self._heartbeat_interval
        with self._database.locked():
            running = self._study(study_id).trials((TrialState.RUNNING,))
            with self._database.snapshot() as connection:
                return heartbeats.stale(connection, [t._trial_id for t in running], grace_period)

    def get_heartbeat_interval(self) -> int | None:
        """Seconds between heartbeats, None if trials do not report."""
        return self._heartbeat_interval

    def get_heartbeat_stale_trial_callback(self) -> StaleTrialCallback | None:
        """What to call with each trial that was failed for want of heartbeats."""
        return self._heartbeat_stale_trial_callback

    # What is known

    def _study(self, study_id: int) -> StudyCache:
        """The study as of now; the caller holds the database's lock."""
        database = self._database
        if self._rollbacks != database.rollbacks:
            self._studies.clear()
            self._study_ids.clear()
            self._rollbacks = database.rollbacks
        study = self._studies.get(study_id)
        if study is not None and study.version == database.version():
            return study
        # Out of the dictionary while it changes: an error half-way must not leave it there.
        study = self._studies.pop(study_id, None)
        with database.snapshot() as connection:
            version = database.version()
            study = refreshed(connection, study_id, study)
        study.version = version
        self._studies[study_id] = study
        return study

    def _study_of(self, trial_id: int) -> StudyCache:
        study_id = self._study_ids.get(trial_id)
        if study_id is not None:
            with contextlib.suppress(KeyError):
                study = self._study(study_id)
                if trial_id in study.positions:
                    return study
        with self._database.snapshot() as connection:
            row = connection.execute("SELECT study_id FROM trials WHERE trial_id = ?", (trial_id,))
            found = row.fetchone()
        if found is None:
            raise KeyError(f"No trial with trial_id {trial_id} exists.")
        self._study_ids[trial_id] = found[0]
        return self._study(found[0])

    def _open_trial(self, trial_id: int) -> tuple[StudyCache, OpenTrial]:
        study = self._study_of(trial_id)
        trial = study.open.get(trial_id)
        if trial is None:
            number = study.trial(trial_id).number
            message = f"Trial#{number} has already finished and can not be updated."
            raise UpdateFinishedTrialError(message)
        return study, trial
