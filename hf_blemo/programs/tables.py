"""Tables for the terminal and for Markdown files."""

from collections.abc import Sequence

from hf_blemo.programs.markdown import text


def table(header: Sequence[str], rows: Sequence[Sequence[str]], padded: bool = True) -> str:
    """A Markdown table: the first column left-aligned, the others right-aligned.

    Args:
        header: names of the columns.
        rows: their cells, which are taken as text.
        padded: whether columns are padded to their width, for reading in a terminal.
    """
    header, rows = list(map(text, header)), [list(map(text, row)) for row in rows]
    widths = [max(map(len, column)) if padded else 1 for column in zip(header, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *others = zip(row, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def plus_minus(entry: dict[str, float]) -> str:
    """`mean ± std` with four decimals each."""
    return f"{entry['mean']:.4f} ± {entry['std']:.4f}"
