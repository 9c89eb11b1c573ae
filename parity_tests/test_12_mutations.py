"""The ladder can fail: bugs in a copy of the code are caught, a sample at each commit in CI, all with --full."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bugs import all_bugs
from bugs.mutation import Mutation
from cases import PAIRED
from mutations import PACKAGES, ROOT, Verdict, as_markdown, choose, commit, files_of, judge, main, run_target, sample

MUTATIONS = all_bugs()
SAMPLE = sample(MUTATIONS, commit())
CATCHES = """
def test_it():
    assert 1 + 1 == {}
"""


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_still_applies(mutation: Mutation, tmp_path: Path):
    """The source that it changes is there exactly once, what it makes of it compiles, and its tests exist."""
    (tmp_path / mutation.file).parent.mkdir(parents=True)
    shutil.copy(ROOT / mutation.file, tmp_path / mutation.file)
    mutation.apply(tmp_path)
    assert (tmp_path / mutation.file).read_text() != (ROOT / mutation.file).read_text()
    files = files_of(mutation.rung, ROOT)
    assert files, f"there is no rung {mutation.rung}"
    for path, _, test in (file.partition("::") for file in files):
        assert f"def {test.partition('[')[0]}" in (ROOT / path).read_text(), f"{path} has no {test}"


def test_there_are_enough_and_no_two_are_the_same():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 100
    assert len({(mutation.file, mutation.old, mutation.new) for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.skipif(not PAIRED, reason="mutations of one twin show against the other, and only one is installed")
@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(m, marks=[pytest.mark.xdist_group(m.rung), *([] if m in SAMPLE else [pytest.mark.full])])
        for m in MUTATIONS
    ],
    ids=lambda mutation: mutation.name,
)
def test_the_ladder_catches(mutation: Mutation):
    found = judge(mutation)
    assert found.outcome == "caught", found.why


def test_another_commit_applies_others():
    samples = [sample(MUTATIONS, f"{number:040x}") for number in range(3000)]
    assert {mutation for chosen in samples for mutation in chosen} == set(MUTATIONS)
    assert samples[0] == sample(MUTATIONS, f"{0:040x}") != samples[1] and len(set(samples[0])) == len(SAMPLE)
    assert choose([], sampled=True) == SAMPLE


# --- what counts as caught: small projects in place of the code ---------------------------------


def project(root: Path, test: str, package: str = "") -> Path:
    """Packages of the code's names, the core with this source, and one test."""
    for name in PACKAGES:
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text(package if name == "faisca" else "")
    (root / "test_small.py").write_text(test)
    return root


@pytest.mark.parametrize(
    ("test", "outcome", "why"),
    [
        (CATCHES.format(2), "passed", "1 passed"),
        (CATCHES.format(3), "failed", "test_small::test_it"),
        ("import pytest\ndef test_it():\n    with pytest.raises(ValueError):\n        int(1)\n", "failed", "::test_it"),
        ("import faisca\n" + CATCHES.format(3), "error", "does not begin: collection failure"),
        ("def test_it():\n    undefined\n", "error", "crashes: NameError"),
        ("def test_it(no_such_fixture):\n    assert False\n", "error", "does not begin"),
        ("def test_it(:\n", "error", "does not begin: collection failure"),
        ("import pytest\ndef test_it():\n    pytest.skip('not here')\n", "error", "no test ran"),
        ("import os\ndef test_it():\n    os._exit(1)\n", "error", "pytest did not run"),
        ("def other():\n    pass\n", "error", "no test ran"),
    ],
    ids="passes fails raises-nothing not-importable crashes no-fixture no-syntax skipped dies empty".split(),
)
def test_only_an_assertion_of_a_test_counts(tmp_path: Path, test: str, outcome: str, why: str):
    root = project(tmp_path, test, package="raise ImportError('broken')" if "import faisca" in test else "")
    found = run_target(root, "test_small.py")
    assert (found.outcome, why in found.why) == (outcome, True), found


def test_what_hangs_is_ended_with_all_that_it_started(tmp_path: Path):
    program = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', '{}'])\n"
    waits = "open('started', 'w').write(str(__import__('os').getpid())); __import__('time').sleep(600)"
    root = project(tmp_path, "def test_it():\n    " + program.replace("\n", "\n    ").format(waits.replace("'", '"')))
    began = time.monotonic()
    found = run_target(root, "test_small.py", limit=5)
    assert found.outcome == "error" and "hangs" in found.why and time.monotonic() - began < 60
    child = int((root / "started").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # its end takes a moment
            os.kill(child, 0)
            time.sleep(0.05)


def test_code_from_elsewhere_is_an_error(tmp_path: Path):
    root = project(tmp_path, CATCHES.format(3))
    shutil.rmtree(root / "faisca_torch")
    assert run_target(root, "test_small.py").outcome == "error"


def test_a_target_that_is_red_without_the_mutation_catches_nothing(monkeypatch: pytest.MonkeyPatch):
    mutation = Mutation("any", "faisca/streams.py", "a", "b", "tests/test_streams.py")
    verdicts = {"untouched": Verdict("failed", "test_x"), "mutated": Verdict("failed", "test_x")}
    monkeypatch.setattr("mutations.untouched", lambda target: verdicts["untouched"])
    monkeypatch.setattr("mutations.try_target", lambda target, mutation: verdicts["mutated"])
    assert judge(mutation) == Verdict("error", "tests/test_streams.py does not pass without the mutation: test_x")
    verdicts["untouched"] = Verdict("passed", "3 passed")
    assert judge(mutation) == Verdict("caught", "test_x")
    verdicts["mutated"] = Verdict("passed", "3 passed")
    assert judge(mutation).outcome == "MISSED"
    verdicts["mutated"] = Verdict("error", "hangs")
    assert judge(mutation).outcome == "error"


def test_the_command_says_what_was_missed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    first, second, *_ = MUTATIONS
    monkeypatch.setattr("mutations.untouched", lambda target: Verdict("passed", "9 passed"))
    monkeypatch.setattr("mutations.judge", lambda m: Verdict("caught" if m == first else "MISSED", "a|b"))
    assert main([first.name]) == 0
    assert "1 of 1 mutations caught" in capsys.readouterr().out
    assert main([first.name, second.name, "--markdown", "-j", "2"]) == 1
    printed = capsys.readouterr().out
    assert as_markdown([(second, Verdict("MISSED", "a|b"))]).splitlines()[-1] in printed
    assert printed.endswith("1 of 2 mutations caught\n") and "a\\|b" in printed
    with pytest.raises(SystemExit, match="no mutation is called 'no such'"):
        main(["no such"])


def test_the_command_runs_from_anywhere(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, ROOT / "parity_tests" / "mutations.py", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "--markdown" in done.stdout
