"""The settings: one list behind flags and configuration files."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wpo_optuna import DESampler
from wpo_optuna.errors import InvalidArgument
from wpo_optuna.study.command_line import add_settings, read_settings
from wpo_optuna.study.settings import DE_OPTIONS, StudySettings


def parse(*words: str) -> dict:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_settings(parser, StudySettings)
    return vars(parser.parse_args(list(words)))


def test_flags_that_are_not_given_leave_the_defaults() -> None:
    assert read_settings(StudySettings, parse(), None) == StudySettings()


def test_flags_prevail_over_the_configuration_file(tmp_path: Path) -> None:
    config = tmp_path / "study.yaml"
    config.write_text("sampler: cmaes\nn-trials: 7\npolish: false\n")
    settings = read_settings(StudySettings, parse("--sampler", "tpe"), config)
    assert (settings.sampler, settings.n_trials, settings.polish) == ("tpe", 7, False)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "sampler": st.sampled_from(["de", "cmaes", "tpe", "random", "qmc", "gradient"]),
            "engine": st.sampled_from(["expected", "montecarlo", "aihwkit", None]),
            "n_trials": st.integers(1, 10**6),
            "g_max": st.floats(0.1, 100),
            "f_lst": st.sampled_from(["1,none", "none", "1", "none,none,2.5"]),
            "t_steps": st.sampled_from(["1s,1y", "60", None]),
            "include": st.lists(st.text("abc*.", min_size=1), max_size=3).map(tuple),
            "symmetric": st.booleans(),
            "mutation": st.sampled_from(["0.5,1", "0.7"]),
        },
    )
)
def test_a_written_configuration_reads_back_to_the_same_settings(
    tmp_path_factory: pytest.TempPathFactory, values: dict
) -> None:
    if "mutation" in values:
        values["sampler"] = "de"
    settings = StudySettings(**values)
    path = tmp_path_factory.mktemp("config") / "settings.yaml"
    path.write_text(settings.to_yaml())
    assert read_settings(StudySettings, {}, path) == settings


def test_every_setting_that_takes_text_takes_a_url_or_a_path() -> None:
    words = ("--storage", "postgresql://h/n", "--output", "a/b", "--x-init", "sobol")
    settings = read_settings(StudySettings, parse(*words, "--tracking-uri", "none"))
    assert (settings.storage, settings.output) == ("postgresql://h/n", "a/b")
    assert settings.given == {"init": "sobol"}
    assert settings.tracking_uri is False


def test_every_setting_has_a_flag_with_help() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser, StudySettings)
    text = parser.format_help()
    for name, field in StudySettings.model_fields.items():
        assert "--" + name.replace("_", "-") in text
        assert str(field.description).split()[0] in text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("smapler: de\n", ["'smapler'", "did you mean 'sampler'?"]),
        ("zzz: 1\n", ["'zzz'", "known are"]),
        ("sampler: annealing\n", ["sampler = 'annealing'", "'de', 'cmaes'"]),
        ("n_trials: many\n", ["n_trials = 'many'", "integer"]),
        ("polish: 3\n", ["polish = 3", "bool"]),
        ("- a\n- b\n", ["mapping"]),
        ("a: [1\n", ["is not YAML"]),
    ],
)
def test_a_bad_configuration_file_is_refused_with_a_sentence_that_names_the_key(
    tmp_path: Path, content: str, told: list[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InvalidArgument) as error:
        read_settings(StudySettings, {}, path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    for piece in told:
        assert piece in message


def test_yaml_lists_of_numbers_are_accepted_where_flags_take_commas(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"f_lst": [1, None], "t_steps": [1, 60, "1h"]}))
    settings = read_settings(StudySettings, {}, path)
    assert (settings.f_lst, settings.t_steps) == ("1,none", "1,60,1h")


def test_the_samplers_documentation_has_its_own_defaults_beside_those_of_a_study() -> None:
    documented = " ".join(str(DESampler.__doc__).split())
    for name, of_a_study in DE_OPTIONS.items():
        own = inspect.signature(DESampler).parameters[name].default
        assert own != of_a_study
        assert f"``{name}={own}``" in documented
        assert f"``{name}={of_a_study}``" in documented
