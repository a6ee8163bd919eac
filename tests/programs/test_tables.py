"""Tables whose cells hold names from anywhere."""

import pytest

from hf_blemo.programs.tables import mean_and_interval, mean_and_std, plus_minus, table


def test_a_name_is_one_cell_of_text():
    assert table(["a", "b"], [["without voice", "0.1 ± 0.2"]]).splitlines()[2] == "| without voice | 0.1 ± 0.2 |"
    rows = [["a|b\n<img src=x> `c` [d](e)", "\x1b[2J"]]
    assert table(["", "b"], rows, padded=False).splitlines()[2:] == [
        r"| a\|b &lt;img src=x> \`c\` \[d\](e) | \\x1b\[2J |"
    ]


def test_the_deviation_is_that_of_a_sample_and_a_dash_for_one_value():
    for values, std, decimals, text in (
        ([1.0, 3.0], 2**0.5, 4, "2.0000 ± 1.4142"),
        ([1.0, 2.0, 3.0], 1.0, 2, "2.00 ± 1.00"),
        ([2.0], None, 4, "2.0000 ± –"),
    ):
        found = mean_and_std(values)
        assert found["mean"] == 2.0 and found["std"] == (std and pytest.approx(std))
        assert plus_minus(found, decimals) == text


def test_the_interval_is_that_of_student_and_a_dash_for_one_value():
    for values, text in (
        # Quantiles 12.706, 4.303 and 2.262 of 1, 2 and 9 degrees of freedom.
        ([0.0, 2.0], "+1.0000 (-11.7062 to +13.7062)"),
        ([0.0, 3.0, 6.0], "+3.0000 (-4.4524 to +10.4524)"),
        ([-1.0, 1.0] * 5, "+0.0000 (-0.7541 to +0.7541)"),
        ([2.0], "+2.0000 (–)"),
    ):
        assert mean_and_interval(values) == text
