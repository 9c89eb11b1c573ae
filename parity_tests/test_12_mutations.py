"""The ladder can fail: porting bugs in a copy of the twins are caught, a few in CI, all with --full."""

import shutil
from pathlib import Path

import pytest
from bugs.mutation import Mutation
from cases import PAIRED
from mutations import FEW, MUTATIONS, ROOT, verdict


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_still_applies(mutation: Mutation, tmp_path: Path):
    """The source that it changes is there exactly once, and what it makes of it compiles."""
    (tmp_path / mutation.file).parent.mkdir(parents=True)
    shutil.copy(ROOT / mutation.file, tmp_path / mutation.file)
    mutation.apply(tmp_path)
    assert (tmp_path / mutation.file).read_text() != (ROOT / mutation.file).read_text()


def test_there_are_enough_and_no_two_are_the_same():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 20
    assert set(FEW) <= {mutation.name for mutation in MUTATIONS}


@pytest.mark.skipif(not PAIRED, reason="mutations of one twin show against the other, and only one is installed")
@pytest.mark.parametrize(
    "mutation",
    [pytest.param(m, marks=[] if m.name in FEW else [pytest.mark.full]) for m in MUTATIONS],
    ids=lambda mutation: mutation.name,
)
def test_the_ladder_catches(mutation: Mutation):
    caught, why = verdict(mutation, mutation.rung)
    assert caught, why
