"""What is said of other libraries' errors: whole, or cut where it shows."""

import pytest

from faisca.text import in_one_line, shortened


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Received 28 parameters not in model: \na,\nb"), "Received 28 parameters not in model: a, b"),
        (ValueError(""), "ValueError"),
        (KeyError("n_ctx"), "KeyError 'n_ctx'"),
        (RuntimeError("\x1b[2Jred"), "[2Jred"),
        (ValueError("x" * 300), "x" * 300),
        (ValueError("x" * 301), "x" * 299 + "…"),
    ],
)
def test_an_error_in_one_line(error, said):
    assert in_one_line(error) == said


def test_what_is_cut_shows_it():
    assert [shortened(text, 4) for text in ("", "abcd", "abcde")] == ["", "abcd", "abc…"]
