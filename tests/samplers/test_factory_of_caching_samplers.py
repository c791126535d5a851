"""The samplers by name: this project's where Optuna is known, Optuna's own where it is not."""

from __future__ import annotations

import optuna
import pytest

from wpo_optuna.samplers import make_sampler
from wpo_optuna.samplers.cmaes_sampler import CachingCmaEsSampler
from wpo_optuna.samplers.qmc_sampler import CachingQMCSampler
from wpo_optuna.samplers.tpe_sampler import CachingTPESampler


def test_names_mean_the_samplers_that_read_each_trial_once() -> None:
    assert type(make_sampler("cmaes")) is CachingCmaEsSampler
    assert type(make_sampler("tpe")) is CachingTPESampler
    assert type(make_sampler("qmc")) is CachingQMCSampler


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cmaes", optuna.samplers.CmaEsSampler),
        ("tpe", optuna.samplers.TPESampler),
        ("qmc", optuna.samplers.QMCSampler),
    ],
)
def test_an_unknown_optuna_gets_its_own_samplers(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: type
) -> None:
    monkeypatch.setattr(optuna, "__version__", "5.1.0.dev")
    with pytest.warns(UserWarning, match=r"Optuna 5\.1\.0\.dev is not known here \(5\.0 is\)"):
        assert type(make_sampler(name)) is kind
