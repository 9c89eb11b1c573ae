"""What commands print with: texts as they are, and tables that stay readable in a narrow terminal.

Where a table does not fit, it is told in words, with nothing cut.
"""

from typing import Any, Literal

from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from faisca.text import printable


class PlainConsole(Console):
    """A console on which a path or a headline stands as it is, and steers no terminal: no markup, no emoji."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """What becomes of every text that is printed, in a table too."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Leave the BrokenPipeError, which is being handled, to the program; rich would end it with status 1."""
        raise


def print_table(console: Console, table: Table, by: Literal["rows", "columns"] = "rows") -> None:
    """Print a table, or where the console is too narrow an entry for each row, or for each column but the first.

    Its cells are texts; the first column names the rows.
    """
    wide = console.options.update_width(10_000)
    if Measurement.get(console, wide, table).maximum <= console.width:
        console.print(table)
        return
    columns = [[str(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    names, *entries = [list(entry) for entry in zip(*columns, strict=True)] if by == "rows" else columns
    for heading, *cells in entries:
        console.print(heading, style="bold", soft_wrap=by == "rows")
        if by == "rows":
            pairs = ", ".join(f"{name} {cell}" for name, cell in zip(names[1:], cells, strict=True))
            console.print(Padding(pairs, (0, 0, 0, 2)))
        else:
            grid = Table.grid(padding=(0, 2))
            grid.add_column(overflow="fold")
            grid.add_column(justify="right", no_wrap=True)
            for name, cell in zip(names[1:], cells, strict=True):
                grid.add_row(name, cell)
            console.print(Padding(grid, (0, 0, 0, 2), expand=False))
