"""Holds the Portuguese documents in step with the English ones: `python tools/translations.py [--update]`.

Under a heading the translation notes the hash of the English section that it was made from: `<!-- from HASH -->`.
A section must have the same code blocks, marks, links, pictures and tables as its original. Without an option every
difference is said, and the status is 1 where there is one; `--update` notes the hashes anew, once you have translated.
"""

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAIRS = {"README.md": "docs/pt/README.md", "docs/tutorial.md": "docs/pt/tutorial.md"}
"""originals and their translations"""
NOTE = re.compile(r"<!-- from ([0-9a-f]{12}|new) -->")
"""`new` for one that was just begun"""


@dataclass(frozen=True)
class Section:
    """A heading with what follows it down to the next."""

    heading: str
    body: str
    """without the note"""
    note: str | None

    @property
    def level(self) -> int:
        return len(self.heading) - len(self.heading.lstrip("#"))

    @property
    def hash(self) -> str:
        return hashlib.sha256(f"{self.heading}\n{self.body.strip()}".encode()).hexdigest()[:12]


def sections(text: str) -> list[Section]:
    """The document cut before its headings; a `#` in a code block is none."""
    parts, fence = [[""]], ""
    for line in text.splitlines():
        ticks = re.match(r"`{3,}", line)
        if ticks and not (fence and line.strip() != fence):
            fence = "" if fence else ticks[0]
        if re.match(r"#+ ", line) and not fence:
            parts.append([line])
        else:
            parts[-1].append(line)
    found = []
    for heading, *lines in parts if any(parts[0]) else parts[1:]:
        note = next((match[1] for line in lines if (match := NOTE.fullmatch(line))), None)
        found.append(Section(heading, "\n".join(line for line in lines if not NOTE.fullmatch(line)), note))
    return found


def shape(body: str, folder: str) -> dict[str, list[str]]:
    """What a translation leaves as it is, by its name in a message; links start in `folder`."""
    fenced = r"^`{3,}.*?\n.*?^`{3,}$"
    prose = re.sub(fenced, "", body, flags=re.DOTALL | re.MULTILINE)
    tables = [line for line in prose.splitlines() if line.startswith("|")]
    return {
        "code blocks": re.findall(fenced, body, re.DOTALL | re.MULTILINE),
        "marks": re.findall(r"^<!-- .* -->$", prose, re.MULTILINE),
        "pictures": targets(r"!\[", prose, folder),
        "links": targets(r"(?<!!)\[", prose, folder),
        "columns of tables": [str(line.count("|")) for line in tables],
        "numbers in tables": re.findall(r"\d+(?:\.\d+)?", "\n".join(tables).replace(",", ".")),
    }


def targets(opening: str, prose: str, folder: str) -> list[str]:
    """Where links or pictures lead, sorted, as paths in the repository; a translation counts as its original."""
    originals = {translation: original for original, translation in PAIRS.items()}
    found = []
    for target in re.findall(opening + r"[^\]]*\]\(([^)#]*)(?:#[^)]*)?\)", prose):
        path = target if re.match(r"\w+:", target) else os.path.normpath(os.path.join(folder, target))
        found.append(originals.get(path, path))
    return sorted(found)


def differences(original: str, translation: str, root: Path = ROOT) -> list[str]:
    """What is out of step, a line each; the two are named by their paths under `root`."""
    ours, theirs = (sections((root / name).read_text(encoding="utf-8")) for name in (original, translation))
    if [section.level for section in ours] != [section.level for section in theirs]:
        headings = "; ".join(" | ".join(section.heading for section in side) for side in (ours, theirs))
        return [f"{translation}: its headings are not those of {original}: {headings}"]
    said = []
    for one, other in zip(ours, theirs, strict=True):
        if other.note != one.hash:
            said.append(f"{translation}: {one.heading!r} of {original} has changed since it became {other.heading!r}")
        here, there = (
            shape(part.body, os.path.dirname(name)) for part, name in ((one, original), (other, translation))
        )
        said += [
            f"{translation}: {other.heading!r} has other {name} than its original"
            for name in here
            if here[name] != there[name]
        ]
    return said


def update(original: str, translation: str, root: Path = ROOT) -> None:
    """Note the hashes of the originals' sections: a note in each section, right under its heading."""
    ours, theirs = (sections((root / name).read_text(encoding="utf-8")) for name in (original, translation))
    text = "".join(
        f"{other.heading}\n<!-- from {one.hash} -->\n{other.body}\n" for one, other in zip(ours, theirs, strict=True)
    )
    (root / translation).write_text(text, encoding="utf-8")


def main(argv: list[str]) -> int:
    """Say what is out of step, after `--update` what still is."""
    if argv not in ([], ["--update"]):
        print(__doc__)
        return 2
    said = []
    for pair in PAIRS.items():
        if argv:
            update(*pair)
        said += differences(*pair)
    print("\n".join(said) or "in step")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
