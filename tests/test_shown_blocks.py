"""Blocks of documents: found, run, and their outputs compared; each comparison can fail."""

import os
import signal
import subprocess
import time

import pytest
from shown_blocks import MARK, Block, difference, main, marked_blocks, run_block, with_outputs

EXAMPLE = f"""
```bash
exit 1   # not marked
```

{MARK}
```bash
faisca --help > help.txt
test -s help.txt
```

text {MARK} in a line is no mark

{MARK}
```python
import faisca
assert "usage: faisca" in open("help.txt").read()
```
"""


def test_marked_blocks_are_found():
    found = marked_blocks(EXAMPLE)
    assert [(block.line, block.language) for block in found] == [(7, "bash"), (15, "python")]
    assert found[0].code == "faisca --help > help.txt\ntest -s help.txt"


def test_marked_blocks_run_in_one_folder(tmp_path):
    statuses = [run_block(block.language, block.code, tmp_path).returncode for block in marked_blocks(EXAMPLE)]
    assert statuses == [0, 0] and [path.name for path in tmp_path.iterdir()] == ["help.txt"]


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("bash", "false\ntrue"),
        ("bash", "false | cat"),
        ("bash", "echo $no_such_variable"),
        ("bash", "faisca no-such-command"),
        ("python", "assert False"),
    ],
)
def test_a_block_that_fails_is_seen(tmp_path, language, code):
    assert run_block(language, code, tmp_path).returncode != 0


@pytest.mark.parametrize(
    "text", [MARK, f"{MARK}\n\n```bash\ntrue\n```", f"{MARK}\n```sh\ntrue\n```", f"{MARK}\n```bash\ntrue"]
)
def test_a_mark_without_a_block_is_an_error(text):
    with pytest.raises(AssertionError, match="line 1: "):
        marked_blocks(text)


# --- outputs ------------------------------------------------------------------------------------

SHOWN = f"{MARK}\n```bash\ntrue\n```\n\n<!-- output, but for `[0-9]+` `o +x` -->\n```text\nloss 3\n```\n"


def test_an_output_belongs_to_the_block_before_it():
    (block,) = marked_blocks(SHOWN)
    assert (block.line, block.shown, block.shown_line, block.varying) == (2, "loss 3", 7, ("[0-9]+", "o +x"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SHOWN.partition("\n\n")[2], "line 1: an output, but no block before it"),
        (SHOWN + SHOWN.partition("\n\n")[2], "line 10: an output, but no block before it"),
        (SHOWN.replace("text", "bash"), "line 6: .* has no text block"),
        (SHOWN.replace("but for", "except"), "line 6: .* is no mark of an output"),
    ],
)
def test_an_output_that_would_not_be_compared_is_an_error(text, said):
    with pytest.raises(AssertionError, match=said):
        marked_blocks(text)


@pytest.mark.parametrize(
    ("shown", "printed", "varying"),
    [
        ("a\nb", "a\nb\n", ()),
        ("a  \nb", "a\nb", ()),
        ("…\nb", "a\na\nb", ()),
        ("…\nb", "b", ()),
        ("a … c", "a b c", ()),
        ("loss 3.1", "loss 4.25", (r"[\d.]+",)),
        ("loss   3.1\n────", "loss  14.2\n──────", (r"[\d.]+",)),
        ("Governo anuncia", "Governo cai", ("(?<=Governo).*",)),
    ],
)
def test_outputs_agree(shown, printed, varying):
    assert difference(Block(1, "bash", "", shown, 1, varying), printed) == ""


@pytest.mark.parametrize(
    ("shown", "printed", "varying"),
    [
        ("a", "b", ()),
        ("a", "a\nb", ()),
        ("a\nb", "a", ()),
        ("a", "", ()),
        ("a b", "a  b", ()),
        ("…\nb", "c", ()),
        ("a … c", "a  c d", ()),
        ("a.c", "abc", ()),
        ("loss 3.1", "loss 4.25", ()),
        ("loss 3.1", "loss nan", (r"[\d.]+",)),
        ("loss 3.1", "gain 3.1", (r"[\d.]+",)),
        ("Governo anuncia", "Presidente anuncia", ("(?<=Governo).*",)),
    ],
)
def test_a_difference_is_seen_and_shown(shown, printed, varying):
    said = difference(Block(1, "bash", "", shown, 1, varying), printed)
    assert said.startswith("--- shown\n+++ printed\n")


def test_both_streams_are_printed_as_in_a_terminal(tmp_path):
    done = run_block("python", "import sys\nprint(1)\nprint(2, file=sys.stderr)\nprint(3)", tmp_path)
    assert done.stdout == "1\n2\n3\n"


def test_what_a_block_leaves_behind_is_ended(tmp_path):
    done = run_block("bash", "sleep 300 & echo $!", tmp_path)
    process = done.stdout.strip()
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", process], capture_output=True, text=True).stdout
        if not state or state.startswith("Z"):
            return
        time.sleep(0.1)
    os.kill(int(process), signal.SIGKILL)
    pytest.fail("it still ran")


def test_a_server_gets_a_free_port_and_the_document_its_own(tmp_path):
    code = "echo 8080 > port.txt; echo at :8080, not 18080"
    assert run_block("bash", code, tmp_path).stdout == "at :8080, not 18080\n"
    assert int((tmp_path / "port.txt").read_text()) not in (0, 8080)


def test_outputs_are_written_anew_where_they_differ(tmp_path, capsys):
    document = tmp_path / "x.md"
    document.write_text(
        SHOWN.replace("true", "echo loss 5; echo more") + "after\n" + SHOWN.replace("true", "echo loss 5")
    )
    assert main([str(document)]) == 0
    text = document.read_text()
    assert text.count("loss 5\nmore\n```\nafter") == 1 and text.endswith("loss 3\n```\n")
    assert with_outputs(text, {}) == text and "1 outputs" in capsys.readouterr().out
    document.write_text(SHOWN.replace("true", "exit 3"))
    assert main([str(document)]) == 1 and "line 2: status 3" in capsys.readouterr().err
