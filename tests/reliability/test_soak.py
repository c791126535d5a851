"""A study of four workers in rough weather, see the experiment."""

from __future__ import annotations

import pytest

from experiments import soak


@pytest.mark.slow
def test_a_study_in_rough_weather_is_that_of_calm_weather(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert soak.main(["--minutes", "0", "--samplers", "de"]) == 0, capsys.readouterr().out
