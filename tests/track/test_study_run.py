"""What is written to MLflow, and that nothing is written twice; a real SQLite store, in process."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial, TrialState
from tracked_studies import (
    BASELINE,
    all_runs,
    assert_complete,
    finished_trial,
    make_study,
    random_points,
    recorded,
)

from wpo_optuna.track.delivery.best import BestSoFar
from wpo_optuna.track.delivery.messages import (
    Artifact,
    Metrics,
    StudyDescription,
    Tags,
    Text,
    TrialRecord,
)
from wpo_optuna.track.delivery.study_run import StudyRun
from wpo_optuna.track.delivery.table import TrialTable

_identities = itertools.count()


def describe(name: str = "quadratic", **changed: object) -> StudyDescription:
    values = {
        "name": name,
        "identity": f"identity-{next(_identities)}",
        "tracking_uri": None,
        "experiment_name": "wpo",
        "trial_runs": "all",
        "all_runs_below": 1000,
        "parameters": (("sampler", "random"),),
        "tags": (("version.optuna", "5.0"),),
        "started_ms": 1_700_000_000_000,
        "is_live": True,
    }
    return StudyDescription(**(values | changed))  # type: ignore[arg-type]


def open_run(client: MlflowClient, description: StudyDescription) -> StudyRun:
    """A delivery that knows nothing of earlier ones."""
    run = StudyRun(client, description, TrialTable(), BestSoFar())
    run.open()
    return run


def records(study: optuna.Study) -> list[TrialRecord]:
    return [TrialRecord.from_trial(trial) for trial in study.get_trials(deepcopy=False)]


def study_of(trials: list[FrozenTrial]) -> optuna.Study:
    study = make_study()
    study.add_trials(trials)
    return study


def deliver(client: MlflowClient, description: StudyDescription, study: optuna.Study) -> None:
    run = open_run(client, description)
    run.deliver(records(study), lambda n: None)
    run.finish("FINISHED", keep_end=False)


def test_every_trial_is_read_back_whole(store: str) -> None:
    client = MlflowClient(store)
    study = study_of([finished_trial(x) for x in random_points(12)])
    deliver(client, describe(), study)
    assert_complete(recorded(client, "quadratic"), study, "all")


def test_delivering_a_second_time_changes_nothing(store: str) -> None:
    client = MlflowClient(store)
    description = describe()
    study = study_of([finished_trial(x) for x in random_points(7)])
    deliver(client, description, study)
    before = recorded(client, "quadratic")
    deliver(client, description, study)
    assert recorded(client, "quadratic") == before


class CutError(Exception):
    """The delivery is interrupted."""


class InterruptedClient:
    """MLflow's client until its n-th request, which is carried out or not, but never answered."""

    def __init__(self, client: MlflowClient, n: int, is_carried_out: bool) -> None:
        self._client = client
        self._left = n
        self._is_carried_out = is_carried_out

    def __getattr__(self, name: str) -> object:
        method = getattr(self._client, name)

        def request(*arguments: object, **named: object) -> object:
            self._left -= 1
            if self._left >= 0:
                return method(*arguments, **named)
            if self._is_carried_out and self._left == -1:
                method(*arguments, **named)
            raise CutError(name)

        return request


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 24), st.booleans()), min_size=1, max_size=4),
    trial_runs=st.sampled_from(["all", "best"]),
)
def test_a_delivery_interrupted_at_any_request_is_completed_by_the_next(
    store: str, cuts: list[tuple[int, bool]], trial_runs: str
) -> None:
    """Whether or not the request that was not answered was carried out."""
    client = MlflowClient(store)
    description = describe(f"study-{next(_identities)}", trial_runs=trial_runs)
    study = study_of([finished_trial(x) for x in random_points(5)])
    for n, is_carried_out in cuts:
        cut = InterruptedClient(client, n, is_carried_out)
        try:
            deliver(cut, description, study)  # type: ignore[arg-type]
        except CutError:
            continue
    deliver(client, description, study)
    assert_complete(recorded(client, description.name), study, trial_runs)


def test_a_conductance_table_longer_than_a_parameter_is_kept_whole(store: str) -> None:
    client = MlflowClient(store)
    study = study_of([finished_trial([0.1, 0.2, 0.3, 0.7], n_knots=401)])
    g_lst = study.trials[0].user_attrs["g_lst"]
    assert len(json.dumps(g_lst)) > 12_000
    deliver(client, describe(), study)
    found = recorded(client, "quadratic").trials[0]
    assert json.loads(bytes.fromhex(found.artifacts["g_lst.json"])) == g_lst
    assert "g_lst.json" in found.params["g_lst"]


def test_infinite_losses_do_not_spoil_the_series(store: str) -> None:
    client = MlflowClient(store)
    points = random_points(3)
    bad = finished_trial(points[1], tnmse=math.inf)
    study = study_of([finished_trial(points[0]), bad, finished_trial(points[2])])
    deliver(client, describe(), study)
    found = recorded(client, "quadratic")
    series = found.run.histories
    assert [step for step, _, _ in series["tnmse"]] == [0, 1, 2]
    assert math.isnan(float(series["tnmse"][1][1]))
    assert math.isnan(float(series["loss"][1][1]))
    assert float(series["best_tnmse"][1][1]) == study.trials[0].user_attrs["tnmse"]
    assert found.trials[1].tags["wpo.loss"] == "inf"
    shown = json.loads(bytes.fromhex(found.run.artifacts["trials.json"]))
    assert shown["data"][1][shown["columns"].index("loss")] == "inf"


def test_an_infinite_metric_is_what_mlflow_cannot_store(store: str) -> None:
    """The reason for NaN in the series; if this fails, MLflow has learnt it."""
    client = MlflowClient(store)
    run = client.create_run(client.create_experiment("infinite"))
    client.log_metric(run.info.run_id, "loss", math.inf)
    assert math.isfinite(client.get_metric_history(run.info.run_id, "loss")[0].value)


def test_failed_and_pruned_trials_are_shown_as_such_and_have_no_values(store: str) -> None:
    client = MlflowClient(store)
    points = random_points(3)
    study = study_of(
        [
            finished_trial(points[0], state=TrialState.FAIL),
            finished_trial(points[1], state=TrialState.PRUNED),
            finished_trial(points[2]),
        ]
    )
    deliver(client, describe(), study)
    found = recorded(client, "quadratic")
    assert [found.trials[number].status for number in range(3)] == ["FAILED", "KILLED", "FINISHED"]
    assert [found.trials[number].tags.get("wpo.state") for number in range(3)] == [
        "FAIL",
        "PRUNED",
        None,
    ]
    assert found.trials[0].histories == {}
    assert [step for step, _, _ in found.run.histories["tnmse"]] == [2]


@pytest.mark.parametrize(
    ("trial_runs", "all_runs_below", "expected"),
    [("auto", 20, "all"), ("auto", 0, "best"), ("best", 20, "best"), ("none", 20, "none")],
)
def test_which_trials_get_a_run(
    store: str, trial_runs: str, all_runs_below: int, expected: str
) -> None:
    client = MlflowClient(store)
    study = study_of([finished_trial(x) for x in random_points(20)])
    description = describe(trial_runs=trial_runs, all_runs_below=all_runs_below)
    deliver(client, description, study)
    assert_complete(recorded(client, "quadratic"), study, expected)


@pytest.mark.parametrize("at_once", [1, 3, 20])
def test_where_auto_goes_over_to_the_best_does_not_depend_on_what_is_delivered_together(
    store: str, at_once: int
) -> None:
    client = MlflowClient(store)
    study = study_of([finished_trial(x) for x in random_points(20)])
    run = open_run(client, describe(trial_runs="auto", all_runs_below=7))
    of_study = records(study)
    for start in range(0, 20, at_once):
        run.deliver(of_study[start : start + at_once], lambda n: None)
    tnmse = [trial.user_attrs["tnmse"] for trial in study.trials]
    improving = {number for number in range(20) if tnmse[number] < min(tnmse[:number], default=9.9)}
    assert improving > {0}
    assert set(recorded(client, "quadratic").trials) == set(range(7)) | improving


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(8)), at_once=st.integers(1, 8))
def test_the_best_so_far_is_right_once_trials_come_in_order_and_others_are_known(
    store: str, order: list[int], at_once: int
) -> None:
    """Trials that other processes deliver are regarded in any order and pieces."""
    client = MlflowClient(store)
    description = describe(f"study-{next(_identities)}", trial_runs="best")
    study = study_of([finished_trial(x) for x in random_points(8, seed=3)])
    of_study = records(study)
    run = open_run(client, description)
    for start in range(0, 8, at_once):
        run.regard([of_study[number] for number in order[start : start + at_once]])
    for number in range(8):
        run.deliver([of_study[number]], lambda n: None)
    run.finish("FINISHED", keep_end=False)
    assert_complete(recorded(client, description.name), study, "best")


def test_studies_of_one_name_from_two_databases_are_two_runs(store: str) -> None:
    client = MlflowClient(store)
    studies = [study_of([finished_trial(x) for x in random_points(3, seed)]) for seed in (1, 2)]
    for study in studies:
        deliver(client, describe("the same name"), study)
    runs = [run for run in all_runs(client) if run.data.tags.get("wpo.kind") == "study"]
    values = {
        tuple(metric.value for metric in client.get_metric_history(run.info.run_id, "tnmse"))
        for run in runs
    }
    assert values == {
        tuple(trial.user_attrs["tnmse"] for trial in study.trials) for study in studies
    }


def test_a_run_created_twice_at_the_same_time_is_reduced_to_one(store: str) -> None:
    """Two processes look, find nothing, and create the run; the later one has a trial already."""
    client = MlflowClient(store)
    description = describe()
    study = study_of([finished_trial(x) for x in random_points(6)])
    first = open_run(client, description)
    later = client.create_run(
        first.experiment_id,
        run_name=description.name,
        tags={
            "wpo.study_id": description.identity,
            "wpo.kind": "study",
            "wpo.created_ns": str(2**62),
        },
    )
    client.create_run(
        first.experiment_id,
        tags={"mlflow.parentRunId": later.info.run_id, "wpo.trial_number": "0"},
    )
    first.deliver(records(study)[:3], lambda n: None)
    deliver(client, description, study)
    assert_complete(recorded(client, "quadratic"), study, "all")
    assert len(all_runs(client)) == 1 + 6


def test_a_trial_with_two_runs_keeps_the_complete_one(store: str) -> None:
    """As after a request that timed out and was carried out later."""
    client = MlflowClient(store)
    description = describe()
    study = study_of([finished_trial(x) for x in random_points(3)])
    deliver(client, description, study)
    before = recorded(client, "quadratic")
    parent = next(run for run in all_runs(client) if run.data.tags.get("wpo.kind") == "study")
    client.create_run(
        parent.info.experiment_id,
        run_name="quadratic trial 1",
        tags={"mlflow.parentRunId": parent.info.run_id, "wpo.trial_number": "1"},
    )
    deliver(client, description, study)
    assert recorded(client, "quadratic") == before


def test_runs_that_others_put_under_the_study_are_left_alone(store: str) -> None:
    client = MlflowClient(store)
    description = describe()
    study = study_of([finished_trial(x) for x in random_points(2)])
    run = open_run(client, description)
    foreign = client.create_run(
        run.experiment_id, run_name="notes", tags={"mlflow.parentRunId": run.run_id}
    )
    deliver(client, description, study)
    assert client.get_run(foreign.info.run_id).info.lifecycle_stage == "active"


def test_settings_changed_on_resuming_are_told_beside_the_first_ones(store: str) -> None:
    client = MlflowClient(store)
    description = describe()
    open_run(client, description)
    changed = describe(identity=description.identity, parameters=(("sampler", "cmaes"),))
    run = open_run(client, changed)
    data = client.get_run(run.run_id).data
    assert data.params["sampler"] == "random"
    assert data.tags["wpo.since_resumed.sampler"] == "cmaes"


def test_a_setting_longer_than_a_parameter_is_kept_whole(store: str) -> None:
    client = MlflowClient(store)
    text = "x" * 7000
    run = open_run(client, describe(parameters=(("problem.note", text), ("seed", "1"))))
    assert "parameters.json" in client.get_run(run.run_id).data.params["problem.note"]
    path = Path(client.download_artifacts(run.run_id, "parameters.json"))
    assert json.loads(path.read_text())["problem.note"] == text


def test_more_settings_than_one_request_takes_are_all_kept(store: str) -> None:
    client = MlflowClient(store)
    parameters = tuple((f"setting.{i}", str(i)) for i in range(250))
    run = open_run(client, describe(parameters=parameters))
    assert client.get_run(run.run_id).data.params == dict(parameters)


def test_extras_written_twice_are_there_once(store: str, working_directory: Path) -> None:
    client = MlflowClient(store)
    run = open_run(client, describe())
    figure = working_directory / "figure.svg"
    figure.write_text("<svg/>")
    extras = [
        Artifact(str(figure), "figures"),
        Text("hello", "notes.txt"),
        Metrics((("winner_tnmse", 0.06), ("broken", math.inf)), 3, 1_700_000_000_000),
        Tags((("colour", "blue"),)),
    ]
    for extra in extras * 2:
        run.deliver_extra(extra)
    data = client.get_run(run.run_id).data
    assert data.tags["colour"] == "blue"
    history = client.get_metric_history(run.run_id, "winner_tnmse")
    assert [(metric.value, metric.step) for metric in history] == [(0.06, 3)]
    assert math.isnan(data.metrics["broken"])
    path = Path(client.download_artifacts(run.run_id, "figures/figure.svg"))
    assert path.read_text() == "<svg/>"
    assert Path(client.download_artifacts(run.run_id, "notes.txt")).read_text() == "hello"


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(store: str) -> None:
    client = MlflowClient(store)
    client.delete_experiment(client.create_experiment("wpo"))
    with pytest.raises(MlflowException, match="mlflow experiments restore"):
        open_run(client, describe())


def test_resuming_sets_the_run_to_running_and_delivering_later_does_not(store: str) -> None:
    client = MlflowClient(store)
    description = describe()
    deliver(client, description, study_of([finished_trial(random_points(1)[0])]))
    later = open_run(client, describe(identity=description.identity, is_live=False))
    assert client.get_run(later.run_id).info.status == "FINISHED"
    resumed = open_run(client, description)
    assert client.get_run(resumed.run_id).info.status == "RUNNING"


def test_a_study_that_was_interrupted_stays_so_when_delivered_later(store: str) -> None:
    client = MlflowClient(store)
    description = describe(is_live=False)
    study = study_of([finished_trial(random_points(1)[0])])
    run = open_run(client, description)
    run.deliver(records(study), lambda n: None)
    run.finish("KILLED", keep_end=False)
    again = open_run(client, description)
    again.deliver(records(study), lambda n: None)
    again.finish("FINISHED", keep_end=True)
    assert client.get_run(run.run_id).info.status == "KILLED"


def test_the_best_trial_is_an_artifact_with_its_strategy(store: str) -> None:
    client = MlflowClient(store)
    study = study_of([finished_trial(x) for x in random_points(9)])
    deliver(client, describe(), study)
    found = recorded(client, "quadratic").run
    best = min(study.trials, key=lambda trial: trial.user_attrs["tnmse"])
    document = json.loads(bytes.fromhex(found.artifacts["best_trial.json"]))
    assert document["trial"] == best.number
    assert document["f_lst"] == best.user_attrs["f_lst"]
    assert document["g_lst_us"] == best.user_attrs["g_lst"]
    assert document["parameters"] == best.params
    assert document["improvement_percent"] == pytest.approx(
        100 * (1 - best.user_attrs["tnmse"] / BASELINE)
    )


def test_the_table_is_announced_to_mlflows_ui(store: str) -> None:
    client = MlflowClient(store)
    study = study_of([finished_trial(x) for x in random_points(2)])
    deliver(client, describe(), study)
    listed = json.loads(recorded(client, "quadratic").run.tags["mlflow.loggedArtifacts"])
    assert listed == [{"path": "trials.json", "type": "table"}]
    experiment = client.get_experiment_by_name("wpo")
    run = next(run for run in all_runs(client) if run.data.tags.get("wpo.kind") == "study")
    table = client.load_table(experiment.experiment_id, "trials.json", [run.info.run_id])
    assert table["number"].tolist() == [0, 1]
    assert table["tnmse"].tolist() == pytest.approx(
        [trial.user_attrs["tnmse"] for trial in study.trials], rel=1e-5
    )


def test_what_was_measured_before_the_first_trial_is_logged_once(store: str) -> None:
    client = MlflowClient(store)
    description = describe(metrics=(("self_check_worst_percent", 0.4),))
    open_run(client, description)
    # A later session says another time, which would make it another row of MLflow's database.
    run = open_run(client, dataclasses.replace(description, started_ms=1_800_000_000_000))
    history = client.get_metric_history(run.run_id, "self_check_worst_percent")
    assert [(metric.value, metric.step) for metric in history] == [(0.4, 0)]


def parent_of(client: MlflowClient, run: StudyRun) -> str | None:
    parent: str | None = client.get_run(run.run_id).data.tags.get("mlflow.parentRunId")
    return parent


def test_a_study_is_put_under_the_run_of_its_parent_study(store: str) -> None:
    """The parent's own trials are not mixed up with it."""
    client = MlflowClient(store)
    parent = describe("network")
    of_parent = study_of([finished_trial(x) for x in random_points(3)])
    deliver(client, parent, of_parent)
    child = open_run(client, describe("layer", parent_identity=parent.identity))
    of_child = study_of([finished_trial(x) for x in random_points(2, seed=1)])
    child.deliver(records(of_child), lambda n: None)
    child.finish("FINISHED", keep_end=False)
    deliver(client, parent, of_parent)
    assert parent_of(client, child) == open_run(client, parent).run_id
    assert_complete(recorded(client, "layer"), of_child, "all")
    assert set(recorded(client, "network").trials) == {0, 1, 2}
    assert len(all_runs(client)) == 2 + 3 + 2


def test_a_parent_that_mlflow_lacks_is_looked_for_again_at_the_next_opening(store: str) -> None:
    client = MlflowClient(store)
    parent = describe("network")
    description = describe("layer", parent_identity=parent.identity)
    assert parent_of(client, open_run(client, description)) is None
    run_id = open_run(client, parent).run_id
    assert parent_of(client, open_run(client, description)) == run_id


def test_deleting_a_parent_that_is_there_twice_leaves_the_run_of_the_study_under_it(
    store: str,
) -> None:
    """Two processes create the parent; the study was put under the one that goes."""
    client = MlflowClient(store)
    parent = describe("network")
    later = open_run(client, parent)
    description = describe("layer", parent_identity=parent.identity)
    child = open_run(client, description)
    assert parent_of(client, child) == later.run_id
    earlier = client.create_run(
        later.experiment_id,
        run_name=parent.name,
        tags={"wpo.study_id": parent.identity, "wpo.kind": "study", "wpo.created_ns": "1"},
    )
    assert open_run(client, parent).run_id == earlier.info.run_id
    assert client.get_run(later.run_id).info.lifecycle_stage == "deleted"
    assert client.get_run(child.run_id).info.lifecycle_stage == "active"
    assert parent_of(client, open_run(client, description)) == earlier.info.run_id
