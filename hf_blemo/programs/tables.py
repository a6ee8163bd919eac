"""Tables for the terminal and for Markdown files."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns padded to their width, the first one left-aligned, the others right-aligned."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|"
        + "|".join("-" * (width + 2) if not column else "-" * (width + 1) + ":" for column, width in enumerate(widths))
        + "|"
    )
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table as it is, for tables that grow row by row."""
    return "| " + " | ".join(cells) + " |"


def markdown_head(header: Sequence[str]) -> list[str]:
    """The two lines that begin such a table: the first column left-aligned, the others right-aligned."""
    return [markdown_row(header), "|---|" + "---:|" * (len(header) - 1)]


def plus_minus(entry: dict[str, float]) -> str:
    """`mean ± std` with four decimals each."""
    return f"{entry['mean']:.4f} ± {entry['std']:.4f}"
