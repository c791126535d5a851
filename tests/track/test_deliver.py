"""What is delivered to MLflow, and that nothing is there twice; a real SQLite store, in process."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState
from tracked_studies import (
    SERIES,
    all_runs,
    assert_complete,
    assert_table,
    finished_trial,
    finished_trials,
    make_study,
    recorded,
)

from wpo_optuna.evaluate.metric_over_time import MetricOverTime
from wpo_optuna.study import attributes
from wpo_optuna.track import delivery
from wpo_optuna.track.delivery import Delivery, deliver
from wpo_optuna.track.destination import Destination
from wpo_optuna.track.store import KIND_TAG
from wpo_optuna.track.study_run import PARENT_TAG
from wpo_optuna.track.trials import numbers_of_strategy
from wpo_optuna.track.view import VIEW_TAG, page_of_experiment, page_of_trials

TO_ALL = Destination(trial_runs="all")

drawn = settings(
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_names = (f"study-{i}" for i in itertools.count())


def study_of(
    finished: list[FrozenTrial], name: str = "quadratic", storage: object = None
) -> optuna.Study:
    study = make_study(name, storage)
    study.add_trials(finished)
    return study


def small_study(n_trials: int = 5, name: str = "quadratic") -> optuna.Study:
    return study_of(finished_trials(n_trials), name)


def test_every_trial_is_read_back_whole_and_a_second_time_changes_nothing(store: str) -> None:
    client = MlflowClient(store)
    study = small_study(12)
    first = deliver(study, TO_ALL)
    before = recorded(client, "quadratic")
    assert_complete(before, study, "all")
    assert deliver(study, TO_ALL) == first
    assert first.n_trials == 12
    assert recorded(client, "quadratic") == before


def test_runs_written_at_once_are_those_that_mlflows_client_writes(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, study = MlflowClient(store), small_study()
    deliver(study, Destination(trial_runs="all", experiment_name="at once"))
    monkeypatch.setattr(delivery, "file_of", lambda uri: None)
    deliver(study, Destination(trial_runs="all", experiment_name="by requests"))
    by_requests = recorded(client, "quadratic", "by requests").trials
    assert recorded(client, "quadratic", "at once").trials == by_requests
    for run in all_runs(client, "at once"):
        assert run.info.lifecycle_stage == "active"
        assert run.info.user_id == "unknown"
        assert run.info.artifact_uri.endswith(f"/{run.info.run_id}/artifacts")


class CutError(Exception):
    """The delivery is interrupted."""


class InterruptedClient:
    """MLflow's client until its n-th request, which is carried out or not, but never answered."""

    def __init__(self, client: MlflowClient, n: int, is_carried_out: bool) -> None:
        self._client = client
        self._left = n
        self._is_carried_out = is_carried_out

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self._client, name)

        def request(*arguments: object, **named: object) -> object:
            self._left -= 1
            if self._left >= 0:
                return method(*arguments, **named)
            if self._is_carried_out and self._left == -1:
                method(*arguments, **named)
            raise CutError(name)

        return request


@settings(drawn, max_examples=8)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=4),
    trial_runs=st.sampled_from(["all", "best"]),
    goes_on=st.booleans(),
    is_at_once=st.booleans(),
)
def test_a_delivery_interrupted_at_any_request_is_completed_by_the_next(
    store: str, cuts: list[tuple[int, bool]], trial_runs: str, goes_on: bool, is_at_once: bool
) -> None:
    """Whether or not the request without an answer was carried out, by the same process or not."""
    client = MlflowClient(store)
    study = small_study(name=next(_names))
    destination = Destination(trial_runs=trial_runs)
    deliverer = Delivery(study, destination)
    with pytest.MonkeyPatch.context() as patch:
        for n, is_carried_out in cuts:
            cut = InterruptedClient(client, n, is_carried_out)
            patch.setattr(delivery, "connect", lambda uri, cut=cut: cut)
            patch.setattr(delivery, "file_of", lambda uri: Path(uri) if is_at_once else None)
            try:
                deliverer.bring(running=False)
            except CutError:
                deliverer = deliverer if goes_on else Delivery(study, destination)
    deliver(study, destination)
    assert_complete(recorded(client, study.study_name), study, trial_runs)


@settings(drawn, max_examples=5)
@given(turns=st.lists(st.integers(0, 2), min_size=4, max_size=9))
def test_several_deliverers_by_turns_leave_everything_once(store: str, turns: list[int]) -> None:
    """None knows of the others; each reads what is new, writes it, and perhaps ends the run."""
    client = MlflowClient(store)
    study = small_study(2, next(_names))
    deliverers = [Delivery(study, TO_ALL) for _ in range(3)]
    for n, turn in enumerate(turns):
        study.add_trials(finished_trials(1, seed=n))
        deliverers[turn].bring(running=turn != 2)
    deliverers[0].bring(running=False)
    assert_complete(recorded(client, study.study_name), study, "all")


def test_what_two_deliverers_created_at_the_same_time_is_reduced_to_one(store: str) -> None:
    """On two hosts: both look, find nothing, and create the run; both have a trial already."""
    client = MlflowClient(store)
    study = small_study(6)
    first = deliver(study, TO_ALL)
    tags = client.get_run(first.run_id).data.tags
    later = client.create_run(first.experiment_id, run_name="quadratic", tags=tags)
    for parent, number in ((later.info.run_id, 0), (first.run_id, 3)):
        client.create_run(
            first.experiment_id,
            tags={"mlflow.parentRunId": parent, "wpo.trial_number": str(number)},
        )
    foreign = client.create_run(
        first.experiment_id, run_name="notes", tags={"mlflow.parentRunId": first.run_id}
    )
    deliver(study, TO_ALL)
    assert len(all_runs(client)) == 1 + 6 + 1
    assert client.get_run(foreign.info.run_id).info.lifecycle_stage == "active"
    client.delete_run(foreign.info.run_id)
    assert_complete(recorded(client, "quadratic"), study, "all")


def test_a_lost_store_is_rebuilt_as_it_was(new_store: Path, store: str, tmp_path: Path) -> None:
    study = study_of(
        [
            finished_trial([0.1, 0.2, 0.3, 0.4], n_knots=401),
            finished_trial([0.9, 0.2, 0.3, 0.4], state=TrialState.PRUNED),
            finished_trial([0.2, 0.2, 0.3, 0.4], tnmse=math.inf),
            *finished_trials(4),
        ]
    )
    study.set_user_attr(attributes.STATUS, "KILLED")
    deliver(study, TO_ALL)
    before = recorded(MlflowClient(store), "quadratic")
    assert before.run.status == "KILLED"
    again = f"sqlite:///{tmp_path}/again.db"
    (tmp_path / "again.db").write_bytes(new_store.read_bytes())
    deliver(study, Destination(again, trial_runs="all"))
    rebuilt = recorded(MlflowClient(again), "quadratic")
    assert rebuilt.trials == before.trials
    for name in ("status", "start_time", "end_time", "params", "tags", "artifacts"):
        assert getattr(rebuilt.run, name) == getattr(before.run, name)
    for name in SERIES:
        assert rebuilt.run.histories[name] == before.run.histories[name]


def test_trials_without_a_finite_value_are_shown_as_such_and_do_not_spoil_the_series(
    store: str,
) -> None:
    x = [0.2, 0.2, 0.3, 0.4]
    bad = finished_trial(x, tnmse=math.inf)
    others = [finished_trial(x, state=state) for state in (TrialState.FAIL, TrialState.PRUNED)]
    study = study_of([finished_trial(x), bad, *others])
    deliver(study, TO_ALL)
    found = recorded(MlflowClient(store), "quadratic")
    series = found.run.histories
    assert [step for step, _, _ in series["trial_tnmse"]] == [0, 1]
    assert math.isnan(float(series["trial_tnmse"][1][1]))
    assert float(series["best_tnmse"][1][1]) == study.trials[0].user_attrs["tnmse"]
    assert [found.trials[n].status for n in (2, 3)] == ["FAILED", "KILLED"]
    assert [found.trials[n].tags.get("wpo.state") for n in (1, 2, 3)] == [None, "FAIL", "PRUNED"]
    assert found.trials[1].tags["wpo.loss"] == "inf"
    assert found.trials[2].histories == {}
    shown = json.loads(found.run.artifacts["trials.json"])
    assert shown["data"][1][shown["columns"].index("loss")] == "inf"


def test_what_is_longer_than_a_parameter_is_kept_whole(store: str) -> None:
    study = study_of([finished_trial([0.1, 0.2, 0.3, 0.7], n_knots=401)])
    study.set_user_attr(attributes.PROBLEM, {"note": "x" * 7000, **dict.fromkeys("abc", 1)})
    destination = Destination(parameters={f"setting.{i}": str(i) for i in range(250)})
    deliver(study, destination)
    found = recorded(MlflowClient(store), "quadratic")
    assert "trials.parquet" in found.trials[0].params["g_lst"]
    assert_table(found, study)
    assert "parameters.json" in found.run.params["problem.note"]
    whole = json.loads(found.run.artifacts["parameters.json"])
    assert whole["problem.note"] == "x" * 7000
    assert found.run.params.items() >= destination.parameters.items()


@pytest.mark.parametrize(
    ("trial_runs", "planned", "expected"),
    [("auto", None, "all"), ("auto", 1001, "best"), ("best", 20, "best"), ("none", 20, "none")],
)
def test_which_trials_get_a_run(
    store: str, trial_runs: str, planned: int | None, expected: str
) -> None:
    study = small_study(20)
    if planned is not None:
        study.set_user_attr(attributes.N_TRIALS, planned)
    deliver(study, Destination(trial_runs=trial_runs))
    assert_complete(recorded(MlflowClient(store), "quadratic"), study, expected)


def test_what_the_study_says_is_told_and_changes_only_where_it_changed(store: str) -> None:
    client = MlflowClient(store)
    study = small_study(3)
    check = {"engine": "expected", "deviations": [0.001, -0.004], "worst": 0.002, "mean": -0.0015}
    for name, value in {
        attributes.SELF_CHECK: check,
        attributes.SEED: 3,
        attributes.VERSIONS: {"optuna": "5.0"},
        attributes.METRICS: {"winner_tnmse": 0.06, "broken": math.inf},
    }.items():
        study.set_user_attr(name, value)
    for _ in range(2):
        deliver(study, Destination(tags={"network": "digits"}))
    found = recorded(client, "quadratic").run
    for name, value in (("at_least", 0.2), ("mean", -0.15)):
        ((step, logged, _),) = found.histories[f"self_check_{name}_percent"]
        assert (step, float(logged)) == (0, pytest.approx(value))
    assert len(found.histories["winner_tnmse"]) == 1
    assert len(found.histories["broken"]) == 1
    # In this order MLflow's page that compares runs shows them.
    shown = list(found.histories)
    assert shown[-2:] == ["self_check_at_least_percent", "self_check_mean_percent"]
    assert found.params["self_check.deviations"] == "[0.001, -0.004]"
    assert found.params["problem.tile.size"] == "512"
    assert (found.params["seed"], found.tags["network"]) == ("3", "digits")
    assert found.tags["version.optuna"] == "5.0"
    assert found.tags["wpo.study"] == "quadratic"

    study.set_user_attr(attributes.SEED, 4)
    study.set_user_attr(attributes.METRICS, {"winner_tnmse": 0.05})
    data = client.get_run(deliver(study, Destination()).run_id).data
    assert data.params["seed"] == "3"  # MLflow's parameters cannot be changed
    assert data.metrics["winner_tnmse"] == 0.05


def test_the_winners_strategy_is_shown_in_numbers_with_the_study(store: str) -> None:
    """The winner need not be the trial of the lowest TNMSE; without one that trial is shown."""
    client, study = MlflowClient(store), small_study(3)

    def metrics() -> dict[str, float]:
        return dict(client.get_run(deliver(study, TO_ALL).run_id).data.metrics)

    best = min(study.trials, key=lambda trial: trial.user_attrs["tnmse"])
    assert metrics()["f_2"] == best.user_attrs["f_lst"][1]
    plus = [0.0, 0.0, 1.0, 12.34567, 25.0]
    study.set_user_attr(attributes.STRATEGY, {"f_lst": [1.9], "g_lst_us": [plus, plus[::-1]]})
    shown = metrics()
    assert (shown["f_1"], shown["tnmse"]) == (1.9, best.user_attrs["tnmse"])
    assert numbers_of_strategy([1.9], [plus, plus[::-1]]) == {
        "f_1": 1.9,
        "g_1_plus_at_0": 1.0,
        "g_1_plus_at_0.5": 12.346,
        "g_1_plus_at_1": 25.0,
        "g_1_minus_at_0": 1.0,
        "g_1_minus_at_0.5": 0.0,
        "g_1_minus_at_1": 0.0,
    }


def test_the_pages_that_are_printed_show_studies_and_a_studys_trials(store: str) -> None:
    """Their filters and their order, asked as MLflow's page asks."""
    client = MlflowClient(store)
    studies = [small_study(4, name) for name in ("one", "other")]
    delivered = [deliver(study, TO_ALL) for study in studies]
    accuracy = client.create_run(delivered[0].experiment_id, tags={KIND_TAG: "accuracy"})

    def listed(page: str) -> list[Run]:
        assert page.startswith("/#/experiments/")
        asked = dict(parse_qsl(page.partition("?")[2]))
        assert asked["workflowType"] == "machine_learning"
        if "viewStateShareKey" in asked:
            # Of the view MLflow would take nothing if its address had a filter, too.
            assert not asked.keys() & {"searchFilter", "orderByKey", "orderByAsc"}
            tags = client.get_experiment(delivered[0].experiment_id).tags
            asked |= json.loads(json.loads(tags[VIEW_TAG])["state"])
        order = [f"{asked.get('orderByKey', 'attributes.start_time')} ASC"]
        return list(
            client.search_runs([delivered[0].experiment_id], asked["searchFilter"], order_by=order)
        )

    compared = listed(page_of_experiment(delivered[0].experiment_id))
    run_ids = {done.run_id for done in delivered} | {accuracy.info.run_id}
    assert {run.info.run_id for run in compared} == run_ids
    page = page_of_trials(delivered[1].experiment_id, delivered[1].run_id)
    trials = listed(page)
    tnmse = [trial.user_attrs["tnmse"] for trial in studies[1].trials]
    assert [run.data.metrics["tnmse"] for run in trials] == sorted(tnmse)
    assert {run.data.tags["wpo.study"] for run in trials} == {"other"}


def test_the_results_folder_becomes_artifacts_and_what_it_lacks_comes_from_the_study(
    store: str, working_directory: Path
) -> None:
    client = MlflowClient(store)
    study = small_study(3)
    results = working_directory / "results"
    (results / "figures").mkdir(parents=True)
    (results / "figures" / "search.svg").write_text("<svg/>")
    strategy = {"f_lst": [1.0], "g_lst_us": [[0.0, 25.0], [25.0, 0.0]]}
    (results / "strategy.json").write_text(json.dumps(strategy))
    for name, value in {
        attributes.RESULTS: str(results),
        attributes.STRATEGY: strategy,
        attributes.SETTINGS: "n_trials: 3\n",
    }.items():
        study.set_user_attr(name, value)
    run_id = deliver(study, Destination()).run_id

    def content(name: str) -> str:
        return Path(client.download_artifacts(run_id, name)).read_text()

    assert content("figures/search.svg") == "<svg/>"
    assert content("settings.yaml") == "n_trials: 3\n"
    (results / "figures" / "search.svg").write_text("<svg>2</svg>")
    deliver(study, Destination())
    assert content("figures/search.svg") == "<svg>2</svg>"

    # Another study of the same name has written there since: its files are not this study's.
    (results / "strategy.json").write_text(json.dumps({"f_lst": [9.0, 9.0]}))
    (results / "figures" / "search.svg").write_text("<svg>another study's</svg>")
    deliver(study, Destination())
    assert content("figures/search.svg") == "<svg>2</svg>"
    assert json.loads(content("strategy.json")) == strategy


def test_a_study_is_put_under_the_run_of_its_parent_study(store: str) -> None:
    """The parent's own trials are not mixed up with it, and it may be there later."""
    client = MlflowClient(store)
    storage = optuna.storages.InMemoryStorage()

    def parent_of(run_id: str) -> object:
        return client.get_run(run_id).data.tags.get(PARENT_TAG)

    parent = study_of(finished_trials(3), "network", storage)
    child = study_of(finished_trials(2, seed=1), "layer", storage)
    child.set_user_attr(attributes.PARENT_STUDY, "network")
    run_id = deliver(child, TO_ALL).run_id
    assert parent_of(run_id) is None
    for _ in range(2):
        of_parent = deliver(parent, TO_ALL).run_id
        deliver(child, TO_ALL)
    assert parent_of(run_id) == of_parent
    assert_complete(recorded(client, "layer"), child, "all")
    assert set(recorded(client, "network").trials) == {0, 1, 2}
    assert len(all_runs(client)) == 2 + 3 + 2


def test_an_accuracy_is_put_under_the_latest_study_that_made_its_strategy(store: str) -> None:
    """Another problem's study of the same name is not taken for it; without one it stands alone."""
    client, run_ids, name = MlflowClient(store), [], "anybody's"
    for fingerprint in ("right", "right", "other"):
        study = small_study(2, name)
        study.set_user_attr(attributes.FINGERPRINT, fingerprint)
        run_ids.append(deliver(study, TO_ALL).run_id)
        time.sleep(0.01)
    measured = MetricOverTime("accuracy", (1.0,), None, {"baseline": np.ones((1, 1))})

    def tags(**provenance: str) -> dict[str, str]:
        run_id = measured.record(
            [],
            Destination(),
            run_name="accuracy",
            parameters={},
            started_s=0,
            provenance=provenance,
        )
        return dict(client.get_run(run_id).data.tags)

    linked = tags(study_name=name, problem_fingerprint="right")
    assert (linked[PARENT_TAG], linked["wpo.study"]) == (run_ids[1], name)
    assert linked[KIND_TAG] == "accuracy"
    for provenance in (
        {},
        {"study_name": name},
        {"study_name": "x", "problem_fingerprint": "right"},
    ):
        assert PARENT_TAG not in tags(**provenance)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(None, "FINISHED"), ("RUNNING", "KILLED"), ("FAILED", "FAILED"), ("KILLED", "KILLED")],
)
def test_the_run_ends_as_the_study_says(store: str, status: str | None, expected: str) -> None:
    """A study that still says it is running, and that nobody records, was killed."""
    study = small_study(2)
    Delivery(study, TO_ALL).bring(running=True)
    if status is not None:
        study.set_user_attr(attributes.STATUS, status)
    for _ in range(2):
        run_id = deliver(study, TO_ALL).run_id
        assert MlflowClient(store).get_run(run_id).info.status == expected


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:///{}/notes.txt", "file is not a database"),
        ("sqlite:////proc/nowhere/mlflow.db", "/proc/nowhere"),
    ],
)
def test_a_database_that_cannot_be_opened_is_told_at_once(
    tmp_path: Path, uri: str, message: str
) -> None:
    """MLflow alone tries for two minutes."""
    (tmp_path / "notes.txt").write_text("no database, but long enough to be read as one" * 9)
    with pytest.raises(Exception, match=message):
        deliver(small_study(1), Destination(uri.format(tmp_path)))
