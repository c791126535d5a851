"""The saved view of MLflow's UI, as its real page shows it, and the addresses that are printed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_servers import MlflowServer
from tracked_studies import finished_trial, make_study

from wpo_optuna.study import attributes
from wpo_optuna.track import view
from wpo_optuna.track.delivery import deliver
from wpo_optuna.track.destination import Destination

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FOUND = {"winner_tnmse": 0.06, "improvement_percent": 60.0, "search_time_s": 3.0}


def deliver_study(uri: str, name: str, tnmse: list[float]) -> str:
    """A study of these TNMSE in MLflow; returns its experiment's id."""
    study = make_study(name)
    study.add_trials([finished_trial([0.5] * 4, tnmse=value) for value in tnmse])
    study.set_user_attr(attributes.METRICS, FOUND)
    return deliver(study, Destination(uri)).experiment_id


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs the browser chromium")
def test_the_page_shows_the_best_tnmse_on_a_logarithmic_axis_then_what_was_found(
    tmp_path: Path,
) -> None:
    server = MlflowServer(tmp_path)
    server.start()
    try:
        deliver_study(server.uri, "one", [10.0, 1.0, 0.1])
        page = view.page_of_experiment(deliver_study(server.uri, "other", [5.0, 0.5, 0.05]))
        command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += ["--window-size=1280,1300", "--virtual-time-budget=60000"]
        command += [f"--user-data-dir={tmp_path / 'browser'}", server.uri + page]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    finally:
        server.stop()
    charts = re.findall(r">(best_tnmse|winner_tnmse|baseline|trial_loss|\w+_percent|\w+_s)<", shown)
    in_order = ["best_tnmse", *FOUND]
    assert list(dict.fromkeys(charts)) == in_order  # the others are in a section that is folded
    places = [shown.index(title) for title in ("Best TNMSE", "Strategies found", "Model metrics")]
    assert places == sorted(places)
    ticks = [float(tick) for tick in re.findall(r'class="ytick"><text[^>]*>([\d.]+)<', shown)]
    assert 10 * ticks[0] <= ticks[-1]
    assert ticks[1] - ticks[0] < ticks[-1] - ticks[-2]
    assert {name for name in ("one", "other") if f"{name} (best_tnmse)" in shown} == {
        "one",
        "other",
    }


def test_an_experiment_has_one_view_which_replaces_an_earlier_versions(store: str) -> None:
    client = MlflowClient(store)

    def tags() -> dict[str, str]:
        return dict(client.get_experiment_by_name("wpo").tags)

    experiment_id = deliver_study(store, "one", [1.0])
    first = tags()
    assert f"viewStateShareKey={view.VIEW_KEY}" in view.page_of_experiment(experiment_id)
    client.set_experiment_tag(experiment_id, view.VIEW_TAG, "an earlier version's")
    deliver_study(store, "other", [1.0])
    assert tags() == first
    assert view.VIEW_NAME in first[view.VIEW_TAG]


@pytest.mark.parametrize(
    ("uri", "lines"),
    [
        ("sqlite:///mlflow.db", ["To look at it, run:", "mlflow ui", "and open:", "HERE/#/a"]),
        (
            "mysql://me:s3cret@h/d",
            [
                "To look at it, run:",
                'mlflow ui --backend-store-uri mysql://me:"$TRACKING_URI_PASSWORD"@h/d',
                "and open:",
                "HERE/#/a",
            ],
        ),
        ("https://me:s3cret@h:1/x/", ["To look at it, open:", "https://h:1/x/#/a"]),
    ],
)
def test_what_is_printed_can_be_pasted_into_a_shell_and_a_browser(
    uri: str, lines: list[str]
) -> None:
    told = view.look_lines(uri, "/#/a", {"others": "/#/b"})
    *told, others, page = [line.strip().replace("http://127.0.0.1:5000", "HERE") for line in told]
    assert (others, page) == ("others:", lines[-1].replace("#/a", "#/b"))
    assert [re.sub(r"^\S*mlflow ui", "mlflow ui", line) for line in told] == lines
