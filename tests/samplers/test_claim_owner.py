"""Who holds a candidate, and whether the holder still lives."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from wpo_optuna.samplers.claim_owner import Liveness, Owner


def owner_of_a_child() -> tuple[Owner, int]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        sender.send(Owner.current(in_optimize=True).to_json())
        time.sleep(60)

    process = context.Process(target=run, daemon=True)
    process.start()
    assert process.pid is not None
    return Owner.from_json(receiver.recv()), process.pid


def test_a_process_lives_until_it_is_killed_even_if_nobody_waits_for_it() -> None:
    owner, pid = owner_of_a_child()
    assert owner.liveness() is Liveness.ALIVE
    assert not owner.same_process(Owner.current(in_optimize=True))
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while owner.liveness() is not Liveness.DEAD:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert os.waitpid(pid, 0)[0] == pid, "until now it was a zombie"
    assert owner.liveness() is Liveness.DEAD


def test_another_process_with_the_same_number_is_another_process() -> None:
    here = Owner.current(in_optimize=False)
    earlier = replace(here, started="1")
    assert here.liveness() is Liveness.ALIVE
    assert earlier.liveness() is Liveness.DEAD
    assert not earlier.same_process(here)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"host": "elsewhere"}, Liveness.UNKNOWN),
        ({"machine": "another"}, Liveness.UNKNOWN),
        ({"namespace": "[1]"}, Liveness.UNKNOWN),
        ({"boot": "earlier", "machine": ""}, Liveness.UNKNOWN),
        ({"boot": "", "machine": "m"}, Liveness.UNKNOWN),
    ],
)
def test_nothing_is_known_of_processes_elsewhere(
    change: dict[str, str], expected: Liveness
) -> None:
    owner = replace(Owner.current(in_optimize=False), **change)
    assert owner.liveness() is expected
    assert not owner.same_process(Owner.current(in_optimize=False))


def test_no_process_survives_a_restart_of_its_machine() -> None:
    here = Owner.current(in_optimize=False)
    if not (here.machine and here.boot):
        pytest.skip("this system names neither itself nor its start")
    assert replace(here, boot="earlier").liveness() is Liveness.DEAD


def test_an_owner_survives_being_stored() -> None:
    owner = Owner.current(in_optimize=True)
    assert Owner.from_json(json.loads(json.dumps(owner.to_json()))) == owner


def test_threads_are_told_apart_and_their_end_is_noticed() -> None:
    seen: list[Owner] = []
    for _ in range(3):
        # The system gives each of these threads the number of the one before.
        thread = threading.Thread(target=lambda: seen.append(Owner.current(in_optimize=True)))
        thread.start()
        thread.join()
    here = Owner.current(in_optimize=True)
    assert len({owner.thread for owner in [*seen, here]}) == 4
    assert [owner.has_ended_here() for owner in [*seen, here]] == [True, True, True, False]


def test_only_trials_that_finish_by_themselves_can_be_waited_for() -> None:
    here = Owner.current(in_optimize=True)
    other_thread = replace(here, thread=here.thread + 1)
    other_process = replace(here, pid=here.pid + 1)
    assert here.depends_on(here)
    assert not other_thread.depends_on(here)
    assert replace(other_thread, in_optimize=False).depends_on(here)
    assert not other_process.depends_on(here)
    assert not replace(other_process, in_optimize=False).depends_on(here)
