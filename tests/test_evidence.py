"""docs/mlx.md and docs/parity.md say what is proven where: the tests and the workflow's steps that they name exist."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
STEPS = {step.get("name") for step in WORKFLOW["jobs"]["metal"]["steps"]}
DOCUMENTS = ("mlx.md", "parity.md")
NOTHING = ("", "–")


def evidence(document: str) -> list[list[str]]:
    """The cells of each row of the table behind `<!-- evidence -->`: claim, here, hosted Metal, nobody."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- evidence -->\n((?:\|.*\n)+)", text)
    head, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert head[1:] == ["here, on the CPU", "hosted Metal, once someone runs it", "nobody has measured"]
    assert set(rule) == {"---"} and {len(row) for row in rows} == {4}
    return rows


ROWS = [(document, row) for document in DOCUMENTS for row in evidence(document)]


def exists(test: str) -> bool:
    """Whether FILE or FILE::FUNCTION is a test of ours."""
    path, _, function = test.partition("::")
    if not (ROOT / path).is_file():
        return False
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")}
    return function in names if function else bool(names)


def test_there_is_evidence_to_check() -> None:
    assert all(len(evidence(document)) > 12 for document in DOCUMENTS)


@pytest.mark.parametrize(("document", "row"), ROWS, ids=[f"{document}: {row[0][:40]}" for document, row in ROWS])
def test_what_a_row_names_exists(document: str, row: list[str]) -> None:
    claim, here, hosted, nobody = row
    assert claim and any(cell not in NOTHING for cell in (here, hosted, nobody))
    tests = re.findall(r"`((?:tests|parity_tests)/[^`]*)`", here)
    assert tests or here in NOTHING
    assert [test for test in tests if not exists(test)] == []
    steps = re.findall(r"\*([^*]+)\*", hosted)
    assert steps or hosted in NOTHING
    assert [step for step in steps if step not in STEPS] == []


@pytest.mark.parametrize(
    "test",
    [
        "tests/test_absent.py",
        "tests/test_evidence.py::test_absent",
        "tests/conftest.py",
        "tests/test_evidence.py::exists",
    ],
)
def test_the_check_can_fail(test: str) -> None:
    assert not exists(test)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_nobody_has_run_the_workflow_and_the_documents_say_so(document: str) -> None:
    """Whoever runs it changes these words, and this test."""
    assert re.search(r"\*\*nobody has run (that workflow )?yet\*\*", (ROOT / "docs" / document).read_text())
