"""Studies of error and conductance: their front, and what else one expects of a study."""

from __future__ import annotations

import csv
from contextlib import nullcontext as _nothing
from pathlib import Path

import numpy as np
import optuna
import pytest
from small_problems import small_problem

from wpo_optuna import HypercubeObjective, ProgrammingStrategy, make_engine, polish, run_study
from wpo_optuna.errors import InvalidArgument
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
from wpo_optuna.report.page import write_report
from wpo_optuna.study import __main__ as study_command
from wpo_optuna.study.attributes import CONDUCTANCE, PHASE
from wpo_optuna.study.objective import MeanConductance

pytestmark = pytest.mark.usefixtures("few_draws")

TWO = {
    "objective": "tnmse,conductance", "tracking_uri": False, "self_check": False, "finalists": 1,
    "report": False,
}  # fmt: skip


def values(study: optuna.Study) -> list[list[float]]:
    return [trial.values for trial in study.trials]


@pytest.mark.parametrize("sampler", ["nsga2", "gradient"])
def test_the_front_by_gradients_falls_from_the_lowest_error_to_the_lowest_conductance(
    sampler: str, tmp_path: Path
) -> None:
    result = run_study(small_problem(), sampler, 160, "front", "memory", output=tmp_path, **TWO)
    study = result.study
    assert [d.name for d in study.directions] == ["MINIMIZE", "MINIMIZE"]
    assert len(study.trials) == 160
    front = result.front
    assert len(front) >= 6
    conductance = np.array([point.second for point in front])
    tnmse = np.array([point.tnmse for point in front])
    assert (np.diff(conductance) > 0).all()
    assert (np.diff(tnmse) < 0).all()
    assert conductance[0] < 0.5 * conductance[-1]
    # Nothing that was sampled comes near it.
    sampled = [t for t in study.trials if PHASE not in t.user_attrs]
    assert not any(
        t.user_attrs["tnmse"] < np.interp(t.values[1], conductance, tnmse) for t in sampled
    )
    # Each point's strategy has its error and its conductance.
    rows = list(csv.DictReader((tmp_path / "front" / "front.csv").open()))
    assert [int(row["trial"]) for row in rows] == [point.trial_number for point in front]
    engine = make_engine("expected", small_problem())
    strategy = ProgrammingStrategy.load(tmp_path / "front" / rows[0]["strategy"])
    converter = strategy.to_converter()
    assert engine.tnmse_of(converter, 1)[0] == pytest.approx(float(rows[0]["tnmse"]), rel=1e-4)
    found = engine.conductance_of(converter, 1)[0]
    assert found == pytest.approx(float(rows[0][CONDUCTANCE]), rel=1e-4)
    page = write_report([study], tmp_path / "page.html").page
    assert "What it costs" in page.read_text()


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "random"])
def test_a_resumed_study_has_the_total_and_the_trials_it_had(sampler: str, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'wpo.db'}"
    problem = small_problem()
    first = run_study(problem, sampler, 60, "s", storage, polish=False, **TWO)
    before = values(first.study)
    result = run_study(problem, sampler, 110, "s", storage, polish=False, **TWO)
    assert len(result.study.trials) == 110
    assert values(result.study)[:60] == before
    stored = optuna.load_study(study_name="s", storage=storage)
    assert {len(v) for v in values(stored)} == {2}
    assert all(t.user_attrs[CONDUCTANCE] == t.values[1] for t in stored.trials)


def test_a_study_of_one_objective_is_not_gone_on_with_as_one_of_two(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'wpo.db'}"
    one = dict(TWO, objective="tnmse")
    run_study(small_problem(), "random", 5, "s", storage, **one)
    with pytest.raises(InvalidArgument, match="objective was tnmse, now tnmse,conductance"):
        run_study(small_problem(), "random", 9, "s", storage, **TWO)


def test_accuracy_inside_the_search_is_the_second_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--objective", "tnmse,metric", "--n-trials", "20", "--finalists", "1",
                 "--no-self-check", "--no-report", "--tracking-uri", "none", "--repeats", "1",
                 "--model", "wpo_optuna.evaluate.digits:network",
                 "--data", "wpo_optuna.evaluate.digits:batches",
                 "--study-name", "mine"]  # fmt: skip
    assert study_command.main(arguments) == 0
    assert "strategies of accuracy 0." in capsys.readouterr().out
    study = optuna.load_study(study_name="mine", storage="sqlite:///wpo.db")
    assert [d.name for d in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert all(t.user_attrs["accuracy"] == t.values[1] <= 1 for t in study.trials)
    # The same command goes on, with the same measurements; another metric is another objective.
    arguments[3] = "30"
    Path("mine.py").write_text("def share(network, data):\n    return 0.5\n")
    assert study_command.main([*arguments, "--metric", "mine.py:share"]) == 1
    assert "objective was tnmse,accuracy, now tnmse,share" in capsys.readouterr().err
    assert study_command.main(arguments) == 0
    assert len(optuna.load_study(study_name="mine", storage="sqlite:///wpo.db").trials) == 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--objective", "tnmse,conductance", "--sampler", "de"], "for which give one of nsga2"),
        (["--objective", "tnmse,metric", "--sampler", "gradient"], "for which give one of nsga2"),
        (["--objective", "tnmse,conductance", "--stop-at-margin"], "belongs to studies of one"),
        (["--max-conductance", "9", "--sampler", "gradient"], "not with max_conductance"),
        (["--max-conductance", "9", "--no-polish"], "not with max_conductance"),
        (["--max-conductance", "-1"], "--max-conductance"),
        (
            ["--objective", "tnmse,metric", "--per", "layer", "--model", "a:b", "--data", "c:d"],
            "together with per layer",
        ),
        (["--objective", "tnmse,metric"], "needs both model and data"),
        (["--objective", "tnmse,power"], "objective"),
    ],
)
def test_what_two_objectives_cannot_be_had_with_is_refused(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) if "power" in arguments[-1] else _nothing():
        assert study_command.main(arguments) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_limit_of_the_conductance_is_met_by_the_best_strategy_there_is() -> None:
    problem = small_problem()
    options = {"tracking_uri": False, "self_check": False, "finalists": 2, "report": False}
    free = run_study(problem, "random", 100, "free", "memory", **options)
    assert free.scores.conductance is not None
    highest = free.scores.conductance[0]
    limited = run_study(
        problem, "random", 100, "limited", "memory", max_conductance=0.7 * highest, **options
    )
    engine = make_engine("expected", problem)
    (conductance,) = engine.conductance_of(limited.converter, 1)
    # The limit is used, and not exceeded but for the rounding of the strategy's numbers.
    assert 0.95 * 0.7 * highest < conductance < 1.0001 * 0.7 * highest
    # Nothing is added to the loss: it is that of the strategy.
    assert len(limited.study.trials) == 100
    front = run_study(problem, "random", 160, "front", "memory", **TWO).front
    on_front = np.interp(conductance, [p.second for p in front], [p.tnmse for p in front])
    assert engine.tnmse_of(limited.converter, 1)[0] < 1.03 * on_front
    with pytest.raises(
        InvalidArgument, match=r"no strategy was found .* the lowest that was found"
    ):
        run_study(problem, "random", 60, "none", "memory", max_conductance=1e-6, **options)


def test_an_own_study_takes_a_second_objective(problem: WeightProgrammingProblem) -> None:
    engine = make_engine("expected", problem)
    objective = HypercubeObjective(problem, engine, second=MeanConductance(engine))
    study = optuna.create_study(
        directions=objective.directions, sampler=optuna.samplers.NSGAIISampler(seed=1)
    )
    study.optimize(objective, n_trials=6)
    x = [objective.point(trial.params) for trial in study.trials]
    np.testing.assert_allclose([t.values[1] for t in study.trials], engine.conductance(x))
    # Polishing adds the lowest error, with both its values.
    polish(study, objective)
    added = study.trials[6:]
    assert min(t.values[0] for t in added) < min(t.values[0] for t in study.trials[:6])
    assert all(t.values[1] == t.user_attrs[CONDUCTANCE] for t in added)


def test_the_gradient_of_the_conductance_is_that_of_finite_differences(
    problem: WeightProgrammingProblem,
) -> None:
    engine = make_engine("expected", problem)
    x = 0.2 + 0.6 * np.random.default_rng(0).random((1, problem.hypercube.dimension))
    value, gradient = engine.conductance_and_grad(x)
    np.testing.assert_allclose(value, engine.conductance(x), rtol=1e-6)
    steps = 1e-3 * np.eye(x.shape[1])
    slopes = (engine.conductance(x + steps) - engine.conductance(x - steps)) / 2e-3
    np.testing.assert_allclose(gradient[0], slopes, atol=0.02 * np.abs(slopes).max())
