"""The delivering process's side of the channel."""

from __future__ import annotations

import time
from multiprocessing import Pipe

import pytest

from wpo_optuna.track.delivery import worker as worker_module
from wpo_optuna.track.delivery.messages import Away, Done, Finish, Reply, Working
from wpo_optuna.track.delivery.worker import Worker


class SlowRun:
    """A study's run whose table takes long."""

    def finish(self, status: str, keep_end: bool) -> None:
        time.sleep(0.3)


def replies_to_finish(monkeypatch: pytest.MonkeyPatch) -> list[Reply]:
    here, there = Pipe()
    worker = Worker(there)
    monkeypatch.setattr(worker, "_opened", SlowRun)
    worker._carry_out(Finish("FINISHED"))
    worker._table.close()
    there.close()
    replies = []
    while True:
        try:
            replies.append(here.recv())
        except EOFError:
            return replies


def test_there_are_signs_of_life_while_the_table_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "_SIGN_EVERY_S", 0.05)
    *signs, last = replies_to_finish(monkeypatch)
    assert last == Done()
    assert 2 <= len(signs) <= 6
    assert set(signs) == {Working()}
    assert not any(isinstance(sign, Away) for sign in signs)


def test_a_table_that_never_ends_gives_no_signs_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_SIGN_EVERY_S", 0.05)
    monkeypatch.setattr(worker_module, "_LONGEST_LIFE_S", 0.1)
    assert len(replies_to_finish(monkeypatch)) <= 3
