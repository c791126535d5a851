"""Times after programming, read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpo_optuna.durations import format_duration, parse_durations
from wpo_optuna.errors import InvalidArgument


def test_units_from_seconds_to_years_of_365_days() -> None:
    assert parse_durations("1s,1min,1h,1d,30d,1y", "t_steps") == (
        1.0, 60.0, 3600.0, 86400.0, 30 * 86400.0, 365 * 86400.0,
    )  # fmt: skip


def test_numbers_alone_are_seconds_and_spaces_and_capitals_do_not_matter() -> None:
    assert parse_durations(" 0, .5 ,1e2, 2 Min,1.5H", "t") == (0.0, 0.5, 100.0, 120.0, 5400.0)


@given(
    st.lists(
        st.one_of(
            st.floats(min_value=0, max_value=1e12, allow_subnormal=False),
            st.integers(0, 100_000).map(lambda n: n * 60.0),
            st.integers(0, 1000).map(lambda n: n * 86400.0),
        ),
        min_size=1,
        max_size=6,
        unique=True,
    )
)
def test_formatted_durations_read_back_exactly(seconds: list[float]) -> None:
    times = tuple(sorted(seconds))
    assert parse_durations(",".join(map(format_duration, times)), "t") == times


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (1, "1s"), (90, "90s"), (3600, "1h"), (360 * 86400, "360d"), (31536000, "1y")],
)
def test_durations_are_written_in_the_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("text", ["", "1s,,1h", "1m", "1 month", "-1s", "s", "1h30min", "nan"])
def test_what_is_no_duration_is_refused_with_the_argument_and_the_entry(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"--t-steps = .* contains .* 1s,1min,1h,1d,30d,1y"):
        parse_durations(text, "--t-steps")


def test_infinite_times_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="'1e400s': this time is infinite"):
        parse_durations("1s,1e400s", "t")


@pytest.mark.parametrize("text", ["1h,1min", "60s,1min"])
def test_times_that_do_not_ascend_are_refused_and_sorted_ones_proposed(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"must ascend, each one once, e\.g\. 1min"):
        parse_durations(text, "t")
