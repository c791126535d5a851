"""A study in memory, copied into a temporary file from where another process can read it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from wpo_optuna.storage import FinishedTrials, open_storage

if TYPE_CHECKING:
    from optuna import Study

_EVERY_S = 0.5


class MemoryCopy:
    """Copies a study's attributes and finished trials, again and again until told that it is over.

    Trials keep their numbers: one waits until all earlier ones are finished.

    Args:
        study: the study.
        is_over: set once nothing more will come.

    Attributes:
        directory: the temporary directory, which whoever reads the copy removes.
        url: URL of the copy's storage.
    """

    def __init__(self, study: Study, is_over: threading.Event) -> None:
        self._study = study
        self._is_over = is_over
        self._new = FinishedTrials(study, reads_only=True)
        self._waiting: dict[int, FrozenTrial] = {}
        self._n_copied = 0
        self._attributes: dict[str, Any] = {}
        self.directory = tempfile.mkdtemp(prefix="wpo_memory_")
        self.url = f"sqlite:///{self.directory}/study.db"
        self._copy = optuna.create_study(
            study_name=study.study_name,
            storage=open_storage(self.url),
            directions=study.directions,
        )
        self._stored = FinishedTrials(self._copy)

    def start(self, on_end: Callable[[], None]) -> None:
        """Begins to copy; ``on_end`` is called when all is copied."""
        threading.Thread(target=self._work, args=(on_end,), name="wpo-copy", daemon=True).start()

    def _work(self, on_end: Callable[[], None]) -> None:
        try:
            is_last = False
            while not is_last:
                is_last = self._is_over.wait(_EVERY_S if self._n_copied else 0)
                self._copy_new(is_last)
        finally:
            on_end()

    def _copy_new(self, is_last: bool) -> None:
        for name, value in self._study.user_attrs.items():
            if name not in self._attributes or self._attributes[name] != value:
                self._copy.set_user_attr(name, value)
                self._attributes[name] = value
        self._waiting |= {trial.number: trial for trial in self._new.read_new()}
        while self._waiting:
            batch: list[FrozenTrial] = []
            while (trial := self._waiting.pop(self._n_copied + len(batch), None)) is not None:
                batch.append(trial)
            self._stored.append(batch, None, lambda trial: None)
            self._n_copied += len(batch)
            if not is_last or not self._waiting:
                break
            # A trial that will never finish keeps its number all the same.
            self._copy.add_trial(create_trial(state=TrialState.RUNNING))
            self._n_copied += 1
