"""Documents' blocks that run, and what they print: found, run, compared, and with this script shown anew.

A bash or python block with `<!-- tested -->` on the line before it runs. A `text` block after it with
`<!-- output -->` on the line before shows what it prints, standard error included: line by line the same, where

    `…`                             stands for any text in a line, and alone in one for any lines, or none
    <!-- output, but for `A` `B` -->  what these regular expressions match may be something else, on both sides

`python tests/shown_blocks.py docs/tutorial.md` runs a document and puts what is printed where it does not agree.
"""

import contextlib
import difflib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MARK = "<!-- tested -->"
OUTPUT = re.compile(r"<!-- output(?:, but for((?: `[^`]+`)+))? -->")
TIMEOUT = 600
"""seconds for one block"""
RUNNERS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
PORT = "8080"
"""which documents show for a server; a free one stands in for it when they run"""
ANY = "…"


@dataclass(frozen=True)
class Block:
    """A block that runs; `line` is that of its fence, counted from 1."""

    line: int
    language: str
    code: str
    shown: str | None = None
    """what the document says that it prints"""
    shown_line: int = 0
    varying: tuple[str, ...] = ()


def marked_blocks(text: str) -> list[Block]:
    """Each marked block with its output; a mark without its block, or an output of nothing, is an error."""
    blocks: list[Block] = []
    for number, line in enumerate(lines := text.splitlines(), 1):
        output = OUTPUT.fullmatch(line.strip())
        if line.strip() == MARK:
            language, code = _fenced(lines, number, ("bash", "python"))
            blocks.append(Block(number + 1, language, code))
        elif output:
            _, shown = _fenced(lines, number, ("text",))
            assert blocks and blocks[-1].shown is None, f"line {number}: an output, but no block before it"
            varying = tuple(re.findall(r"`([^`]+)`", output[1] or ""))
            blocks[-1] = Block(blocks[-1].line, blocks[-1].language, blocks[-1].code, shown, number + 1, varying)
        else:
            assert not line.startswith("<!-- output"), f"line {number}: {line} is no mark of an output"
    return blocks


def _fenced(lines: list[str], number: int, languages: tuple[str, ...]) -> tuple[str, str]:
    """Language and text of the block whose fence follows line `number`."""
    mark, wanted = lines[number - 1].strip(), " or ".join(languages)
    fence = re.fullmatch(r"(`{3,})(\w+)", lines[number].strip()) if number < len(lines) else None
    assert fence and fence[2] in languages, f"line {number}: {mark} has no {wanted} block on the next line"
    closing = next((i for i in range(number + 1, len(lines)) if lines[i].strip() == fence[1]), None)
    assert closing, f"line {number}: the block never ends"
    return fence[2], "\n".join(lines[number + 1 : closing])


def run_block(language: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What it prints, both streams in `stdout`, as in a terminal; processes that it leaves behind are ended."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}
    port = _free_port()
    command = [*RUNNERS[language], re.sub(rf"\b{PORT}\b", port, code)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=printed, stderr=printed, start_new_session=True
        )
        try:
            status = process.wait(TIMEOUT)
        finally:
            _end_group(process)
        printed.seek(0)
        return subprocess.CompletedProcess(command, status, printed.read().replace(port, PORT))


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it left nothing behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def difference(block: Block, printed: str) -> str:
    """How what was printed differs from what is shown: empty where it does not."""
    shown, found = (_comparable(text, block.varying) for text in (block.shown or "", printed))
    pattern = "".join("(?:.*\n)*" if line == ANY else _pattern(line) + "\n" for line in shown)
    if re.fullmatch(pattern, "".join(line + "\n" for line in found)):
        return ""
    return "\n".join(difflib.unified_diff(shown, found, "shown", "printed", lineterm="", n=1))


def _comparable(text: str, varying: tuple[str, ...]) -> list[str]:
    """Lines without what varies; where something does, columns may move, so runs of spaces and dashes are one."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    for expression in varying:
        lines = [re.sub(expression, "◇", line) for line in lines]
    return [re.sub(r"(?<=─)─+", "", re.sub(r" {2,}", " ", line)) for line in lines] if varying else lines


def _pattern(line: str) -> str:
    return ".+".join(map(re.escape, line.split(ANY)))


def with_outputs(text: str, printed: dict[int, str]) -> str:
    """The document with outputs in place of those whose fence is at the line."""
    lines = text.splitlines(keepends=True)
    for line in sorted(printed, reverse=True):
        closing = next(i for i in range(line, len(lines)) if lines[i].startswith("```"))
        lines[line:closing] = [row.rstrip() + "\n" for row in printed[line].strip("\n").splitlines()]
    return "".join(lines)


def main(argv: list[str]) -> int:
    """Run documents, and write what their blocks print where it is not what they show."""
    for document in map(Path, argv):
        text, printed = document.read_text(encoding="utf-8"), {}
        with tempfile.TemporaryDirectory() as folder:
            for block in marked_blocks(text):
                done = run_block(block.language, block.code, Path(folder))
                if done.returncode:
                    print(f"{document}, line {block.line}: status {done.returncode}\n{done.stdout}", file=sys.stderr)
                    return 1
                if block.shown is not None and difference(block, done.stdout):
                    printed[block.shown_line] = done.stdout
        document.write_text(with_outputs(text, printed), encoding="utf-8")
        print(f"{document}: {len(printed)} outputs written anew")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
