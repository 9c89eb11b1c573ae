"""What others make of our files: MLX's loader, and mlx-lm's models.

`faisca port` compares with it what it wrote; nothing else imports mlx_lm.
"""

import logging
from functools import partial
from itertools import islice
from pathlib import Path

import mlx.core as mx
import numpy as np

from faisca.errors import FaiscaError
from faisca.porting.huggingface import MODEL_FILE
from faisca.system.tensors import Tensors
from faisca.text import in_one_line


class Exported:
    """A folder as mlx-lm loads it, in float32; it satisfies `faisca.porting.libraries.Reader`."""

    name = "mlx_lm"

    def __init__(self, folder: Path, adapter: Path | None) -> None:
        import mlx_lm

        logging.getLogger("transformers").setLevel(logging.ERROR)  # its tokenizers warn of texts beyond the context
        # the only code that is trusted is our own
        file = folder / MODEL_FILE.name
        trusted = file.is_file() and file.read_bytes() == MODEL_FILE.read_bytes()
        beside = None if adapter is None else str(adapter)
        self.model, self.tokenizer = mlx_lm.load(str(folder), adapter_path=beside, trust_remote_code=trusted)[:2]
        self.model.set_dtype(mx.float32)  # halves compute in halves otherwise: widened, they are compared exactly
        self.end_of_text_ids = sorted(self.tokenizer.eos_token_ids)

    def logits(self, ids: list[int]) -> np.ndarray:
        """T token ids -> float32 [T, V]."""
        with mx.stream(mx.cpu):
            return np.array(self.model(mx.array([ids]))[0].astype(mx.float32))

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The likeliest `count` tokens after `ids`, with the library's own generation and cache."""
        from mlx_lm.generate import generate_step

        tokens: list[int] = []
        for token, _ in islice(generate_step(mx.array(ids), self.model, max_tokens=count), count):
            tokens.append(int(token))
            if tokens[-1] in self.end_of_text_ids:
                break
        return tokens

    def encode(self, text: str) -> list[int]:
        """Token ids of ordinary text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        return str(self.tokenizer.decode(ids))


def open_exported(*, folder: Path, adapter: Path | None) -> Exported:
    """A Hugging Face folder as mlx-lm loads it, with its adapter of another; FaiscaError where it does not."""
    try:
        return Exported(folder, adapter)
    except Exception as error:  # over a folder that it does not expect, its loader trips in many ways
        raise FaiscaError(f"mlx_lm cannot load {folder}: {in_one_line(error)}") from error


def convert_tokenizer(*, folder: Path) -> str:
    """tokenizer.json of a folder that has SentencePiece's tokenizer.model alone; FaiscaError where that fails."""
    try:
        from mlx_lm.tokenizer_utils import load

        return str(load(folder)._tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # over a file that it does not expect, its converter trips in many ways
        raise FaiscaError(f"mlx_lm cannot convert {folder / 'tokenizer.model'}: {in_one_line(error)}") from error


def read_arrays(*, path: Path) -> Tensors:
    """Arrays in .safetensors or .npz: arrays by name."""
    try:
        arrays = mx.load(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise FaiscaError(f"{path} cannot be read ({in_one_line(error)}): check that it is whole") from error
    if not isinstance(arrays, dict):
        raise FaiscaError(f"{path} holds a single array: it should hold arrays by name")
    dtypes = {name: str(value.dtype).removeprefix("mlx.core.") for name, value in arrays.items()}
    return Tensors({name: value.shape for name, value in arrays.items()}, partial(_array, arrays), dtypes)


def _array(arrays: dict[str, mx.array], name: str) -> np.ndarray:
    array = arrays[name]
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
