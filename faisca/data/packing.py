"""Training windows as a configuration wants them: stretches of all titles' tokens, or whole headlines, packed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from faisca.config import DataConfig
from faisca.data.windows import Rows, Windows


def training_windows(config: DataConfig, tokens: np.ndarray, end_of_text: int, say: Callable[[str], None]) -> Rows:
    """The windows of a stage's titles, whose ids are `tokens`, end-of-text after each; `say` takes what was packed."""
    if config.windows == "stream":
        return Windows(tokens, config.window, config.stride)
    packed = pack_headlines(tokens, config.window, end_of_text)
    say(packed.report)
    return packed


@dataclass(frozen=True)
class PackedHeadlines:
    """Training windows of whole headlines; what a window has too much is no target, as causal attention never sees it.

    Attention does see the earlier headlines of a window, as in a stretch: leaving them out would take a mask, and with
    it the fused kernels.
    """

    tokens: np.ndarray
    """[n, window + 1]: an end-of-text, headlines each with its own, and zeros"""
    ends: np.ndarray
    """targets in each row, int64 [n]"""
    report: str
    """one line: what was packed, and what is left over"""

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of these windows: int32 [B, T] each, targets -1 where nothing is learnt."""
        rows = self.tokens[indices].astype(np.int32)
        counted = np.arange(rows.shape[1] - 1) < self.ends[indices][:, None]
        return rows[:, :-1], np.where(counted, rows[:, 1:], -1)


def pack_headlines(tokens: np.ndarray, window: int, end_of_text: int) -> PackedHeadlines:
    """Headlines, longest first, each into the open window with the least room for it (Ding et al. 2024, best fit)."""
    ends = np.flatnonzero(tokens == end_of_text) + 1
    starts = np.concatenate([[0], ends[:-1]])
    sizes = np.minimum(ends - starts, window)
    rows: list[list[int]] = []
    open_rows: list[list[list[int]]] = [[] for _ in range(window + 1)]  # by the room that they have left
    rooms = 0  # bit r is set where a row with room r is open
    for title in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[title])
        fitting = rooms >> size
        room = size + (fitting & -fitting).bit_length() - 1 if fitting else window
        row: list[int] = open_rows[room].pop() if fitting else []
        if not row:
            rows.append(row)
        row.append(title)
        open_rows[room - size].append(row)
        rooms = (rooms | 1 << room - size) & ~(0 if open_rows[room] else 1 << room) & ~1
    packed, filled = np.zeros((len(rows), window + 1), tokens.dtype), np.zeros(len(rows), np.int64)
    packed[:, 0] = end_of_text
    for number, row in enumerate(rows):
        ids = np.concatenate([tokens[starts[title] : starts[title] + sizes[title]] for title in sorted(row)])
        packed[number, 1 : len(ids) + 1], filled[number] = ids, len(ids)
    cut, spare = int((ends - starts > window).sum()), 1 - filled.sum() / (len(rows) * window)
    report = f"{len(ends):,} headlines in {len(rows):,} windows, {spare:.1%} of them padding"
    return PackedHeadlines(packed, filled, report + f"; {cut:,} longer than data.window {window} were cut" * bool(cut))
