"""Whether a port changed anything: source and target answer the same questions, each through its own library.

Logits on texts and on a row of random tokens as long as the context; the likeliest tokens after
some texts; the end-of-text id; ids of hostile texts. A comparison of arrays would miss what goes
wrong between arrays and answers: a transposed square matrix, another GELU, another epsilon. Where
a format's own libraries are missing, one of our twins answers, and that is said.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from faisca.backend import Sampling, choose_backend, load_backend
from faisca.backends import BACKENDS
from faisca.config import Config, ModelConfig, RunConfig
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.parameters import Parameters
from faisca.porting.folders import write_view
from faisca.porting.formats import Portable
from faisca.porting.libraries import REMEDIES, Reader, missing_package, open_exported, read_arrays, require
from faisca.porting.weight_files import canonical_names
from faisca.streams import generator
from faisca.training.generate import complete
from faisca.training.setup import Setup

LIMIT = 1e-4
"""largest difference of float32 logits of ordinary size"""
ORDINARY_SIZE = 32.0
"""rounding grows with the numbers: for logits of 100, as GPT-2's, the limit is 3e-4"""
NEW_TOKENS = 16
PROMPTS = 4
"""of the texts, those that are continued: enough to use a cache, few enough for a large model"""
LIBRARIES = {
    "faisca": tuple(BACKENDS),
    **{name: (name,) for name in BACKENDS},
    "hf": tuple(row.reader for row in BACKENDS.values()),
}
"""who reads a format"""
TEXTS = (
    "Presidente da República visita o Porto",
    "Benfica vence Sporting por 3-1 e é campeão",
    "",
    "   \t\r\n espaços  no\u00a0meio\u200b e no fim   ",
    "<|endoftext|>não é<|endoftext|> o fim",
    "ação AÇÃO açao c\u0327a\u0303o 'S 'll d'água",
    "👩‍👩‍👧‍👦🇵🇹 𝔘𝔫𝔦 \u202eعربى\u202c 漢字かな",
    "\x00\x01\x7f\ufeff\ufffd\U0010ffff",
    "0123456789" * 5 + "€$%&!?…—“”«»" + "\n" * 5,
)


@dataclass(frozen=True)
class Comparison:
    """One library's answers beside the source's: a row of the table."""

    library: str
    largest_logit_difference: float
    logit_limit: float
    equal_tokens: int
    tokens: int
    ties: int
    """prompts at which the likeliest two tokens were closer than the limit, and another one won"""
    end_of_text_ids: Sequence[int]
    end_of_text: int
    equal_texts: int
    texts: int

    def problem(self) -> str:
        """The first thing that does not hold; empty where all does."""
        if not self.largest_logit_difference < self.logit_limit:  # also where it is not a number
            return f"logits differ by {self.largest_logit_difference:.2g}, the limit is {self.logit_limit:.2g}"
        if self.equal_tokens != self.tokens:
            return f"{self.tokens - self.equal_tokens} of {self.tokens} greedy tokens differ"
        if list(self.end_of_text_ids) != [self.end_of_text]:
            return f"end of text is {self.end_of_text_ids} instead of {self.end_of_text}"
        if self.equal_texts != self.texts:
            return f"{self.texts - self.equal_texts} of {self.texts} texts have other tokens"
        return ""


class TwinReader:
    """One of our twins, on the CPU in float32; it satisfies `Reader`."""

    def __init__(self, twin: str, model: ModelConfig, parameters: Parameters, tokenizer: Tokenizer) -> None:
        self.name, self.tokenizer = f"faisca_{twin}", tokenizer
        self.end_of_text_ids = [tokenizer.end_of_text]
        backend, run = load_backend(twin), RunConfig(device="cpu", dtype="float32", compile="off")
        self.setup = Setup(Config(run=run), backend, backend.open_runtime(config=run), tokenizer, model)
        self.model = self.setup.make_model(parameters)

    def logits(self, ids: list[int]) -> np.ndarray:
        """T token ids -> float32 [T, V]."""
        logits: np.ndarray = self.setup.backend.logits(model=self.model, tokens=np.array([ids]))[0]
        return logits

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The likeliest `count` tokens after `ids`."""
        likeliest = Sampling(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=count)
        no_draws = np.zeros((1, count), np.float32)
        return next(complete(self.setup, self.model, [ids], likeliest, no_draws))

    def encode(self, text: str) -> list[int]:
        """Token ids of ordinary text."""
        return self.tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(ids)


def source_reader(portable: Portable, path: Path) -> tuple[Reader, list[str]]:
    """The source through a library that it belongs to, else through one of our twins; and why others do not answer."""
    notes: list[str] = []
    for library in LIBRARIES["hf"] if portable.format == "hf" else ():
        try:
            return _open_source(library, portable, path), notes
        except FaiscaError as error:
            notes.append(f"{library} does not answer for the source: {error}")
    return TwinReader(_twin(portable.format), portable.model, portable.parameters, portable.tokenizer), notes


def target_readers(
    format: str, path: Path, read: Callable[[Path], Portable]
) -> tuple[list[Callable[[], Reader]], list[str]]:
    """How to open the target with each library that is installed, and what to say of the others."""
    missing = {library: package for library in LIBRARIES[format] if (package := missing_package(library))}
    present = [library for library in LIBRARIES[format] if library not in missing] or [_twin(format)]
    said = [
        f"not checked with {library}: {package} is not installed ({REMEDIES[library]})"
        for library, package in missing.items()
    ]
    return [partial(_open, library, format, path, read) for library in present], said


def compare(source: Reader, target: Reader, model: ModelConfig, tokenizer: Tokenizer) -> Comparison:
    """Ask both the same; see the module's docstring."""
    count = min(NEW_TOKENS, model.context // 2)
    end_of_text = tokenizer.end_of_text
    prompts = [[end_of_text, *tokenizer.encode(text)][: model.context - count] for text in TEXTS]
    difference, size = 0.0, 0.0
    for row in [*prompts, _random_row(model)]:
        ours, theirs = source.logits(row), target.logits(row)
        size = max(size, float(np.abs(ours).max()))
        apart = np.abs(ours - theirs).max() if ours.shape == theirs.shape else np.inf
        difference = float(np.maximum(difference, apart))  # keeps NaN
    limit = LIMIT * max(1.0, size / ORDINARY_SIZE)
    equal, tokens, ties = _compare_greedy(source, target, prompts[:PROMPTS], count, limit)
    return Comparison(
        library=target.name,
        largest_logit_difference=difference,
        logit_limit=limit,
        equal_tokens=equal,
        tokens=tokens,
        ties=ties,
        end_of_text_ids=list(target.end_of_text_ids),
        end_of_text=end_of_text,
        equal_texts=sum(_same_text(tokenizer, target, text) for text in TEXTS),
        texts=len(TEXTS),
    )


def _open(library: str, format: str, path: Path, read: Callable[[Path], Portable]) -> Reader:
    if library not in BACKENDS:
        return open_exported(library, path)
    portable = read(path)
    parameters = portable.parameters
    if library == format:  # the arrays as the library itself reads them
        parameters = canonical_names(read_arrays(library, path))
    return TwinReader(library, portable.model, parameters, portable.tokenizer)


def _open_source(library: str, portable: Portable, path: Path) -> Reader:
    require(library)
    if library == "transformers":
        return open_exported(library, path)
    with tempfile.TemporaryDirectory() as folder:
        view = Path(folder) / path.resolve().name
        write_view(portable, path, view)
        return open_exported(library, view)


def _twin(format: str) -> str:
    """The twin of a format where it is installed, else any that is; a FaiscaError where none is."""
    for name in (format, choose_backend("auto")[0], *BACKENDS):
        if name in BACKENDS and missing_package(name) is None:
            return name
    remedies = " or ".join(row.remedy for row in BACKENDS.values())
    raise FaiscaError(
        f"nothing here can compute what a model says, to verify it: {remedies}, "
        "or leave the port unverified with --no-verify"
    )


def _compare_greedy(
    source: Reader, target: Reader, prompts: list[list[int]], count: int, limit: float
) -> tuple[int, int, int]:
    """How many tokens are equal, of how many, and how many prompts end early at a tie."""
    equal = tokens = ties = 0
    for prompt in prompts:
        ours, theirs = source.greedy(prompt, count), target.greedy(prompt, count)
        pairs = list(zip(ours, theirs, strict=False))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        tie = same < len(pairs) and _is_tie(source, [*prompt, *ours[:same]], pairs[same], limit)
        equal, ties = equal + same, ties + tie
        tokens += same if tie else max(len(ours), len(theirs))
    return equal, tokens, ties


def _is_tie(source: Reader, ids: list[int], pair: tuple[int, int], limit: float) -> bool:
    last = source.logits(ids)[-1]
    return bool(abs(last[pair[0]] - last[pair[1]]) < limit)


def _same_text(tokenizer: Tokenizer, target: Reader, text: str) -> bool:
    ids = tokenizer.encode(text)
    return target.encode(text) == ids and target.decode(ids) == tokenizer.decode(ids)


def _random_row(model: ModelConfig) -> list[int]:
    """Random tokens at every position: no row of the positional table goes unseen."""
    draws = generator(0, "tokens that faisca port compares")
    return [int(token) for token in draws.integers(model.vocabulary_size, size=model.context)]
