"""A mutation: one piece of source replaced by what a hasty port would have there."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutation:
    """A bug: in `file`, `old`, which occurs exactly once, becomes `new`; the tests of `rung` must fail.

    `rung` is the number of a rung ("05": parity_tests/test_05_*.py) or what pytest takes, such as
    "tests/test_streams.py" or "tests/test_streams.py::test_a_stream_is_fixed".
    """

    name: str
    file: str
    old: str
    new: str
    rung: str

    def apply(self, root: Path) -> None:
        """Change the copy of the code under `root`; LookupError where the source has changed since."""
        path = root / self.file
        source = path.read_text()
        found = source.count(self.old)
        if found != 1:
            raise LookupError(f"{self.name}: {self.old!r} occurs {found} times in {self.file}: adapt the mutation")
        path.write_text(source.replace(self.old, self.new))
        compile(path.read_text(), str(path), "exec")
