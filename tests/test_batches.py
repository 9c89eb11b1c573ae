"""Tokenising with its cache, and batches of windows."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import platformdirs
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faisca import streams
from faisca.data import token_cache
from faisca.data.byte_level import END_OF_TEXT
from faisca.data.token_cache import tokenise
from faisca.data.tokenizer import Tokenizer
from faisca.data.windows import Windows, evaluation_batches, steps_per_epoch, target_bytes, training_batch
from faisca.errors import FaiscaError

TITLES = [f"Título {i}: chuva em Lisboa 😀 {END_OF_TEXT}" for i in range(200)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TITLES, 300)


def expected(tokenizer: Tokenizer, titles: list[str]) -> list[int]:
    return [i for title in titles for i in [*tokenizer.encode(title), tokenizer.end_of_text]]


# --- tokenising ---


def test_each_title_is_followed_by_end_of_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = tokenise(pa.array(TITLES), tokenizer, cache=tmp_path)
    assert ids.dtype == np.uint16 and ids.tolist() == expected(tokenizer, TITLES)
    assert (ids == tokenizer.end_of_text).sum() == len(TITLES)
    assert "".join(tokenizer.decode(ids)) == "".join(TITLES)
    assert not ids.flags.writeable


def test_the_second_time_the_cache_is_mapped(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokenise(pa.array(TITLES), tokenizer, cache=tmp_path)
    monkeypatch.setattr(token_cache, "_encode_all", lambda *_: pytest.fail("tokenised again"))
    second = tokenise(pa.array(TITLES), tokenizer, cache=tmp_path)
    assert np.array_equal(first, second) and isinstance(second.base, np.memmap)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]
    sliced = pa.array(["fora", *TITLES, "fora"])[1:-1]
    joined = pa.chunked_array([TITLES[:7], TITLES[7:]]).combine_chunks()
    assert all(np.array_equal(tokenise(titles, tokenizer, cache=tmp_path), first) for titles in (sliced, joined))


def test_other_titles_or_another_tokenizer_have_a_file_of_their_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = Tokenizer.train(TITLES, 280)
    variants = [(["ab", "c"], tokenizer), (["a", "bc"], tokenizer), (["c", "ab"], tokenizer), (["ab", "c"], other)]
    for titles, used in variants:
        assert tokenise(pa.array(titles), used, cache=tmp_path).tolist() == expected(used, titles)
    assert len(list(tmp_path.iterdir())) == len(variants)


def test_no_titles_are_no_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for _ in range(2):
        assert tokenise(pa.array([], pa.string()), tokenizer, cache=tmp_path).shape == (0,)


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path: Path) -> None:
    large: Any = SimpleNamespace(
        vocabulary_size=70_000,
        fingerprint="00",
        end_of_text=69_999,
        encode_titles=lambda titles: np.array([65_536, 69_999] * len(titles)),
    )
    ids = tokenise(pa.array(["a", "b"]), large, cache=tmp_path)
    assert ids.dtype == np.uint32 and ids.tolist() == [65_536, 69_999] * 2
    large.vocabulary_size, large.fingerprint = 65_536, "01"
    large.encode_titles = lambda titles: np.array([65_534, 65_535])
    ids = tokenise(pa.array(["a"]), large, cache=tmp_path)
    assert ids.dtype == np.uint16 and ids.tolist() == [65_534, 65_535]


def test_progress_counts_titles(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "CHUNK", 90)
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        tokenise(pa.array(TITLES), tokenizer, cache=tmp_path, progress=lambda *counts: seen.append(counts))
    assert seen == [(90, 200), (180, 200), (200, 200)]  # and nothing where the cache has them


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lose_checksum(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-32])


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def replace_with(content: bytes) -> Any:
    return lambda path: path.write_bytes(content)


DAMAGES = [truncate, lose_checksum, flip_bit, *map(replace_with, (b"", b"\x93NUMPY", b"PK\x03\x04", b"x" * 500))]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again_and_said(
    tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    tokenise(pa.array(TITLES), tokenizer, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    intact = path.read_bytes()
    damage(path)
    with caplog.at_level(logging.WARNING):
        ids = tokenise(pa.array(TITLES), tokenizer, cache=tmp_path)
    assert ids.tolist() == expected(tokenizer, TITLES)
    assert path.read_bytes() == intact
    (message,) = caplog.messages
    assert message.startswith(f"token cache {path} is damaged (") and message.endswith("): tokenising again")


def test_a_write_that_fails_leaves_nothing_behind(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(file: Any, tokens: np.ndarray) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fill_disk)
    with pytest.raises(FaiscaError, match=r"cannot be written \(No space left on device\): set FAISCA_CACHE_DIR"):
        tokenise(pa.array(TITLES), tokenizer, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_folder_that_is_a_file_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FaiscaError, match=r"the token cache .* cannot be written"):
        tokenise(pa.array(TITLES), tokenizer, cache=tmp_path / "file")


def test_the_environment_names_the_cache_folder(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAISCA_CACHE_DIR", str(tmp_path / "named"))
    tokenise(pa.array(TITLES), tokenizer)
    monkeypatch.delenv("FAISCA_CACHE_DIR")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "user" / name))
    tokenise(pa.array(TITLES), tokenizer)
    assert len(list((tmp_path / "named").iterdir())) == len(list((tmp_path / "user" / "faisca").iterdir())) == 1


# --- training windows ---


@settings(max_examples=200, deadline=None)
@given(count=st.integers(2, 60), window=st.integers(1, 20), stride=st.integers(1, 25))
def test_windows_begin_every_stride_and_the_last_ends_at_the_end(count: int, window: int, stride: int) -> None:
    tokens = np.arange(count, dtype=np.uint16)
    if count <= window:
        with pytest.raises(
            FaiscaError, match=rf"data.window {window} needs {window + 1} tokens.* have {count}: .*--data"
        ):
            Windows(tokens, window, stride)
        return
    starts = list(range(0, count - window, stride))
    if starts[-1] + window != count - 1:
        starts.append(count - 1 - window)
    windows = Windows(tokens, window, stride)
    assert len(windows) == len(starts)
    inputs, targets = windows.batch(np.arange(len(windows)))
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.tolist() == [list(range(start, start + window)) for start in starts]
    assert np.array_equal(targets, inputs + 1) and targets[-1, -1] == count - 1


def small_windows() -> Windows:
    return Windows(np.arange(1, 103, dtype=np.uint16), window=5, stride=3)


def test_a_step_is_a_function_of_its_number() -> None:
    windows = small_windows()
    steps = [training_batch(windows, batch_size=4, seed=7, stage="sft", step=step) for step in range(20)]
    for step in (13, 2, 19, 2, 0):  # any order, as after a resume
        inputs, targets = training_batch(small_windows(), batch_size=4, seed=7, stage="sft", step=step)
        assert np.array_equal(inputs, steps[step][0]) and np.array_equal(targets, steps[step][1])


def test_an_epoch_takes_each_window_once_in_the_order_of_its_stream() -> None:
    windows = small_windows()
    assert len(windows) == 33 and steps_per_epoch(windows, 4) == 8
    for epoch in range(2):
        order = streams.permutation(7, "order of pretrain windows", 33, epoch)[:32]
        batch = [
            training_batch(windows, batch_size=4, seed=7, stage="pretrain", step=8 * epoch + step) for step in range(8)
        ]
        assert np.array_equal(np.concatenate([inputs for inputs, _ in batch]), windows.batch(order)[0])
    kinds = {
        "pretrain": (7, "pretrain", 0),
        "seed": (8, "pretrain", 0),
        "stage": (7, "sft", 0),
        "epoch": (7, "pretrain", 8),
    }
    firsts = {
        name: training_batch(windows, batch_size=4, seed=seed, stage=stage, step=step)[0].tobytes()
        for name, (seed, stage, step) in kinds.items()
    }
    assert len(set(firsts.values())) == len(kinds)


def test_the_batch_size_does_not_change_the_order() -> None:
    windows = small_windows()
    large, _ = training_batch(windows, batch_size=8, seed=1, stage="sft", step=0)
    small = [training_batch(windows, batch_size=4, seed=1, stage="sft", step=step)[0] for step in range(2)]
    assert np.array_equal(large, np.concatenate(small))


def test_a_batch_size_beyond_the_windows_is_an_error() -> None:
    assert steps_per_epoch(small_windows(), 33) == 1
    with pytest.raises(FaiscaError, match="batch_size 34 is more than the 33 training windows: use at most 33"):
        steps_per_epoch(small_windows(), 34)
    with pytest.raises(FaiscaError, match="batch_size 99"):
        training_batch(small_windows(), batch_size=99, seed=1, stage="sft", step=0)


# --- evaluation ---


@settings(max_examples=200, deadline=None)
@given(count=st.integers(0, 70), window=st.integers(1, 9), batch_size=st.integers(1, 4))
def test_evaluation_predicts_every_token_once(count: int, window: int, batch_size: int) -> None:
    tokens = np.arange(100, 100 + count, dtype=np.uint16)
    found = list(evaluation_batches(tokens, window=window, batch_size=batch_size))
    assert all(part.shape == (batch_size, window) and part.dtype == np.int32 for pair in found for part in pair)
    inputs = np.concatenate([inputs.ravel() for inputs, _ in found]) if found else np.empty(0, int)
    targets = np.concatenate([targets.ravel() for _, targets in found]) if found else np.empty(0, int)
    assert targets[targets >= 0].tolist() == list(range(101, 100 + count))
    assert np.array_equal(inputs[targets >= 0] + 1, targets[targets >= 0])
    assert not inputs[targets < 0].any() and set(targets[targets < 0]) <= {-1}
    assert len(inputs) - max(0, count - 1) < batch_size * window  # no batch without a target


def test_evaluation_can_stop_early() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    every = list(evaluation_batches(tokens, window=5, batch_size=3))
    for most, count in ((None, 7), (2, 2), (7, 7), (99, 7)):
        some = list(evaluation_batches(tokens, window=5, batch_size=3, most=most))
        assert len(some) == count and all(np.array_equal(a, b) for a, b in zip(some, every, strict=False))


def test_bytes_of_targets_are_those_of_the_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = tokenise(pa.array(TITLES), tokenizer, cache=tmp_path)
    lengths = tokenizer.bytes_per_token()
    counted = sum(target_bytes(targets, lengths) for _, targets in evaluation_batches(ids, window=7, batch_size=3))
    text = "".join(title + "\n" for title in TITLES).encode()
    assert counted == len(text) - lengths[ids[0]]
    assert target_bytes(np.full((2, 3), -1, np.int32), lengths) == 0
