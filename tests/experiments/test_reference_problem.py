import torch
from aihwkit.inference import SinglePairConductanceConverter

from experiments.reference_problem import reference_problem, reference_weights
from wpo_optuna.loss.reference import ReferenceEngine


def test_the_reference_problem_has_twenty_dimensions_and_its_stated_settings() -> None:
    problem = reference_problem()
    assert problem.hypercube.dimension == 20
    assert problem.f_lst == (1.0, None)
    assert problem.t_steps == (1.0, 60.0, 3600.0, 86400.0, 30 * 86400.0, 360 * 86400.0)
    assert (problem.g_min, problem.g_max) == (0.0, 25.0)
    assert problem.test_weights.shape == (512, 20)
    torch.manual_seed(0)
    assert torch.equal(reference_weights(), 0.2 * torch.randn(100_000))


def test_the_baseline_error_is_the_one_measured_with_aihwkit() -> None:
    problem = reference_problem()
    engine = ReferenceEngine(problem)
    dual = engine.tnmse_of(problem.g_converter_baseline, repeats=8).mean()
    single = engine.tnmse_of(
        SinglePairConductanceConverter(g_min=0.0, g_max=25.0), repeats=8
    ).mean()
    # Measured over 40 and 300 draws. One draw scatters by 1 % (dual) and 2 % (single), so that
    # these bounds are five standard errors or more; the seeds fix all noise but the tile's own.
    assert abs(dual / 0.0739 - 1) < 0.02
    assert abs(single / 0.1523 - 1) < 0.04


def test_overrides_replace_single_settings() -> None:
    problem = reference_problem(nbins=4, use_max_kw=True)
    assert problem.hypercube.dimension == 1 + 3 * 4
    assert reference_problem().fingerprint == reference_problem().fingerprint
    assert problem.fingerprint != reference_problem().fingerprint
