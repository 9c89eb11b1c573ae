"""The table of a benchmark, for a terminal of any width and as Markdown, and the lines around it."""

from rich import box
from rich.console import Console
from rich.table import Table

from faisca.bench.results import Row, format_value

TITLE_WIDTH = 24
"""columns that titles are given where cells are stacked; longer ones wrap"""


def print_table(table: list[Row], columns: list[str], console: Console) -> None:
    """A line a measure; where that is too wide, two, and columns in as many tables as it takes."""
    base = columns[0]
    whole = _table(table, columns, base, stacked=False)
    if _fits(whole, console):
        console.print(whole)
    else:
        for group in _groups(table, columns, console):
            console.print(_table(_measured_in(table, group), group, base, stacked=True))
            console.print()
    console.print("\n".join(_notes(table, columns)))


def markdown_table(table: list[Row], columns: list[str]) -> str:
    """The same table and notes as Markdown, to paste into an issue."""
    lines = [["", *columns], ["---"] + ["---:"] * len(columns)]
    lines += [[_title(row), *(" ".join(_cell(row, name, columns[0])) for name in columns)] for row in table]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", *_notes(table, columns)])


def _table(table: list[Row], columns: list[str], base: str, *, stacked: bool) -> Table:
    printed = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    printed.add_column("", max_width=TITLE_WIDTH if stacked else None, no_wrap=not stacked)
    for name in columns:
        printed.add_column(name.replace(" ", "\n") if stacked else name, justify="right", no_wrap=True)
    for row in table:
        printed.add_row(_title(row), *(("\n" if stacked else " ").join(_cell(row, name, base)) for name in columns))
    return printed


def _groups(table: list[Row], columns: list[str], console: Console) -> list[list[str]]:
    """The columns in order, in the largest groups that fit, or one by one."""
    for size in range(len(columns), 0, -1):
        groups = [columns[i : i + size] for i in range(0, len(columns), size)]
        if all(_fits(_table(table, group, columns[0], stacked=True), console) for group in groups):
            return groups
    return [[name] for name in columns]


def _fits(table: Table, console: Console) -> bool:
    return console.measure(table, options=console.options.update_width(10_000)).maximum <= console.width


def _measured_in(table: list[Row], columns: list[str]) -> list[Row]:
    return [row for row in table if not row.values.keys().isdisjoint(columns)]


def _title(row: Row) -> str:
    return f"{row.title} (tokens/s)" if row.unit == "tokens/s" else row.title


def _cell(row: Row, column: str, base: str) -> list[str]:
    """The value, and what is said of it: its spread, and how many times better than the base it is."""
    if column not in row.values:
        return ["–"]
    spread = [f"±{100 * row.spreads[column]:.0f}%"] if column in row.spreads else []
    ratio = row.ratio(column, base) if column != base and row.unit != "%" else None
    times = [f"{ratio:{'.2f' if ratio >= 0.1 else '.3f'}}×"] if ratio else []
    said = " ".join(spread + times)
    return [format_value(row.values[column], row.unit), *([said] if said else [])]


def _notes(table: list[Row], columns: list[str]) -> list[str]:
    notes = ["± half the range of the rounds"] if any(row.spreads for row in table) else []
    if len(columns) > 1:
        notes.append(f"× times better (faster, or smaller) than {columns[0]}")
    for row in table:
        if row.unit == "%" and max(row.values.values()) > 100:
            notes.append(
                f"{row.title}: over 100 % cannot be; what it compares was timed at two moments, and the "
                "machine's speed changed between them: measure again while nothing else runs"
            )
    return notes
