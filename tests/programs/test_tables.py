"""Tables whose cells hold names from anywhere."""

from hf_blemo.programs.tables import table


def test_a_name_is_one_cell_of_text():
    assert table(["a", "b"], [["without voice", "0.1 ± 0.2"]]).splitlines()[2] == "| without voice | 0.1 ± 0.2 |"
    rows = [["a|b\n<img src=x> `c` [d](e)", "\x1b[2J"]]
    assert table(["", "b"], rows, padded=False).splitlines()[2:] == [
        r"| a\|b &lt;img src=x> \`c\` \[d\](e) | \\x1b\[2J |"
    ]
