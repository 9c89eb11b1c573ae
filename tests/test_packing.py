"""Windows of whole headlines: nothing lost, nothing twice, few windows, and targets on headlines alone."""

import numpy as np
import pytest

from faisca.config import Config, DataConfig
from faisca.data.packing import PackedHeadlines, pack_headlines, training_windows
from faisca.data.windows import Windows
from faisca.errors import FaiscaError

END = 7
WINDOW = 12


def stream(seed: int, titles: int = 300) -> tuple[np.ndarray, list[list[int]]]:
    """Titles of 1 to 12 tokens, the end-of-text included, one after another; and each by itself."""
    random = np.random.default_rng(seed)
    found = [[*random.integers(10, 99, random.integers(0, WINDOW)).tolist(), END] for _ in range(titles)]
    return np.array([token for title in found for token in title], np.uint16), found


def titles_of(inputs: np.ndarray, targets: np.ndarray) -> list[list[int]]:
    """What a window's targets say, cut after each end-of-text."""
    found: list[list[int]] = [[]]
    for token in targets[targets >= 0].tolist():
        found[-1].append(token)
        if token == END:
            found.append([])
    assert found.pop() == []
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_headline_is_a_target_once_and_whole(seed: int):
    tokens, titles = stream(seed)
    packed = pack_headlines(tokens, WINDOW, END)
    inputs, targets = packed.batch(np.arange(len(packed)))
    assert inputs.dtype == targets.dtype == np.int32 and inputs.shape == targets.shape == (len(packed), WINDOW)
    assert sorted(title for row in zip(inputs, targets, strict=True) for title in titles_of(*row)) == sorted(titles)
    assert (inputs[:, 0] == END).all()
    for row, wanted in zip(inputs, targets, strict=True):
        count = int((wanted >= 0).sum())
        assert (wanted[:count] >= 0).all() and (wanted[count:] == -1).all()
        assert row[1:count].tolist() == wanted[: count - 1].tolist()  # each input is the target before
        assert not row[count + 1 :].any()


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_leaves_little_room(seed: int):
    """No more than 11/9 of the fewest windows possible, and one (Johnson 1973)."""
    tokens, _ = stream(seed)
    assert len(pack_headlines(tokens, WINDOW, END)) <= 11 / 9 * np.ceil(len(tokens) / WINDOW) + 1


def test_best_fit_takes_the_window_with_the_least_room():
    """3 goes beside 9, where it just fits, so that 2 and 2 still fit beside 8: worst fit would need a third window."""
    sizes = [8, 2, 9, 3, 2]
    tokens = np.array([token for size in sizes for token in [*range(20, 19 + size), END]], np.uint16)
    packed = pack_headlines(tokens, WINDOW, END)
    assert sorted(packed.ends.tolist()) == [12, 12] and "2 windows, 0.0% of them padding" in packed.report


def test_a_longer_headline_is_cut_and_counted():
    tokens = np.array([*range(20, 40), END, 50, END], np.uint16)
    packed = pack_headlines(tokens, WINDOW, END)
    inputs, targets = packed.batch(np.arange(2))
    assert targets[0].tolist() == list(range(20, 32)) and inputs[0].tolist() == [END, *range(20, 31)]
    assert targets[1, :2].tolist() == [50, END] and (targets[1, 2:] == -1).all()
    assert packed.report.endswith("; 1 longer than data.window 12 were cut")


def test_the_configuration_chooses():
    tokens, _ = stream(0)
    said: list[str] = []
    data = DataConfig(window=WINDOW, stride=5)
    assert isinstance(training_windows(data, tokens, END, said.append), Windows) and not said
    data = DataConfig(window=WINDOW, stride=WINDOW, windows="headlines")
    assert isinstance(training_windows(data, tokens, END, said.append), PackedHeadlines)
    assert len(said) == 1 and said[0].startswith("300 headlines in ")


def test_a_stride_through_headlines_is_refused():
    with pytest.raises(FaiscaError, match=r"data.stride 32 cuts a stream.*add --data.stride 64"):
        Config(data=DataConfig(stride=32, windows="headlines"))
