"""Tables for the terminal and for Markdown files."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns padded to their width, the first one left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *others = zip(row, widths, strict=True)
        return markdown_row([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table as it is, for tables that grow row by row."""
    return "| " + " | ".join(cells) + " |"


def markdown_head(header: Sequence[str]) -> list[str]:
    """The two lines that begin such a table: the first column left-aligned, the others right-aligned."""
    return [markdown_row(header), "|---|" + "---:|" * (len(header) - 1)]


def plus_minus(entry: dict[str, float]) -> str:
    """`mean ± std` with four decimals each."""
    return f"{entry['mean']:.4f} ± {entry['std']:.4f}"
