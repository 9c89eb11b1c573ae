"""What others make of our files, and we of theirs: torch's safe loader, and transformers' models.

`faisca port` compares with it what it wrote; nothing else imports transformers.
"""

import pickle
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from faisca.errors import FaiscaError
from faisca.system.tensors import Tensors
from faisca.text import in_one_line


class Exported:
    """A folder as transformers loads it, in float32 on the CPU; it satisfies `faisca.porting.libraries.Reader`."""

    name = "transformers"

    def __init__(self, folder: Path, adapter: Path | None) -> None:
        import transformers

        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )  # in evaluation mode already
        self.model, found = loaded
        if missing := sorted(found["missing_keys"]):  # it draws what it does not find, and only warns
            raise KeyError(f"{missing[0]} is missing")
        if adapter is not None:
            import peft

            self.name, self.model = "peft", peft.PeftModel.from_pretrained(self.model, str(adapter))
        said = (self.tokenizer.eos_token_id, self.model.config.eos_token_id, self.model.generation_config.eos_token_id)
        self.end_of_text_ids = sorted({-1 if stop is None else stop for ids in said for stop in _listed(ids)})

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> np.ndarray:
        """T token ids -> float32 [T, V]."""
        logits: np.ndarray = self.model(torch.tensor([ids])).logits[0].numpy()
        return logits

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The likeliest `count` tokens after `ids`, with the library's own generation and cache."""
        prompt = torch.tensor([ids])
        rows = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=count,
            pad_token_id=self.end_of_text_ids[-1],
        )
        return [int(token) for token in rows[0, len(ids) :]]

    def encode(self, text: str) -> list[int]:
        """Token ids of ordinary text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        return str(self.tokenizer.decode(ids))


def _listed(ids: Any) -> list[int | None]:
    return ids if isinstance(ids, list) else [ids]


def open_exported(*, folder: Path, adapter: Path | None) -> Exported:
    """A Hugging Face folder as transformers loads it, with PEFT's adapter of another; FaiscaError where it does not."""
    try:
        return Exported(folder, adapter)
    except Exception as error:  # over a folder that it does not expect, its loader trips in many ways
        raise FaiscaError(f"transformers cannot load {folder}: {in_one_line(error)}") from error


def convert_tokenizer(*, folder: Path) -> str:
    """tokenizer.json of a folder that has SentencePiece's tokenizer.model alone; FaiscaError where that fails."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        found = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return str(found.backend_tokenizer.to_str())
    except Exception as error:  # over a file that it does not expect, its converter trips in many ways
        raise FaiscaError(f"transformers cannot convert {folder / 'tokenizer.model'}: {in_one_line(error)}") from error


def read_arrays(*, path: Path) -> Tensors:
    """A state dict in .safetensors or in a pickle, of which nothing but tensors is taken: arrays by name."""
    try:
        tensors = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except pickle.UnpicklingError as error:
        raise FaiscaError(
            f"{path} is a pickle of more than tensors, which could run code: save a plain state dict, "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # in rubbish, the safe unpickler trips over anything
        raise FaiscaError(f"{path} cannot be read ({in_one_line(error)}): check that it is whole") from error
    if not isinstance(tensors, dict):
        raise FaiscaError(f"{path} holds a {type(tensors).__name__}: it should hold a state dict")
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise FaiscaError(f"{path}: {name} is a {type(value).__name__}: a plain state dict has tensors only")
    named = {str(name): tensor.detach() for name, tensor in tensors.items()}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in named.items()}
    return Tensors({name: tuple(tensor.shape) for name, tensor in named.items()}, partial(_array, named), dtypes)


def _unpickle(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)  # torch's own since 1.6: their numbers stay on disk until asked for
    with warnings.catch_warnings(action="ignore"):  # of pickles that torch did not write: the error says enough
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _array(tensors: dict[str, Tensor], name: str) -> np.ndarray:
    tensor = tensors[name]
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
