"""What the tests of porting share: small sources of every kind, and ways to spoil them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from faisca.cli import main
from faisca.data.tokenizer import Tokenizer
from faisca.parameters import initial_parameters
from faisca.porting.formats import Portable, model_config
from faisca.porting.run_folders import write_run

torch = pytest.importorskip("torch", reason="torch is missing")
transformers = pytest.importorskip("transformers", reason="transformers is missing")

TARGETS = {"torch": "x.safetensors", "mlx": "y.safetensors", "hf": "z", "faisca": "again"}
WORDS = "Governo anuncia novas medidas para os hospitais de Lisboa e do Porto, diz o ministro da Saúde".split()


def small_tokenizer(tokens: int = 300) -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))], tokens)


def small_run(folder: Path, tokenizer: Tokenizer, favourite: int | None = None, **model: object) -> Path:
    """A run folder with a model of initial values, or one that writes its `favourite` token whatever it reads."""
    sizes = {"dim": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 24, "context": 24}
    config = model_config({**sizes, "vocabulary_size": tokenizer.vocabulary_size, **model}, "test")
    parameters = initial_parameters(config, 0)
    if favourite is not None:
        parameters["final_layer_norm.weight"][:], parameters["final_layer_norm.bias"][:] = 0, 1
        parameters["out_head.weight"][:] = 10 * (np.arange(config.vocabulary_size) == favourite)[:, None]
    write_run(Portable("faisca", "made here", config, parameters, tokenizer, {}), folder)
    return folder


def complaint(capsys, *argv: object, status: int = 2) -> str:
    assert main(["port", *map(str, argv)]) == status
    printed = capsys.readouterr()
    said = without_progress(printed.err)
    assert printed.out == "" and said.startswith("faisca: ") and said.count("\n") == 1
    return said


def without_progress(errors: str) -> str:
    """Standard error of a port without what a slow machine prints every two seconds."""
    lines = errors.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"(verifying|writing tensors) +[\d,]+/", line))


def same_model(a: Portable, b: Portable) -> None:
    assert a.model == b.model
    assert list(a.parameters) == list(b.parameters) or sorted(a.parameters) == sorted(b.parameters)
    for name, array in a.parameters.items():
        assert array.dtype == b.parameters[name].dtype == np.float32
        assert array.tobytes() == b.parameters[name].tobytes(), name
    assert a.tokenizer.fingerprint == b.tokenizer.fingerprint


def gpt2_folder(folder: Path, tokenizer: Tokenizer, dtype="float32", **options) -> Path:
    """A small GPT-2 of transformers' own making, with random weights everywhere, biases and norms too."""
    sizes = {"vocab_size": tokenizer.vocabulary_size, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3}
    end = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **end, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.json_text(), encoding="utf-8")
    return folder


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_arrays(path: Path, **changes: np.ndarray | None) -> None:
    arrays = safetensors.numpy.load_file(path) | changes
    kept = {name: array for name, array in arrays.items() if array is not None}
    path.write_bytes(safetensors.numpy.save(kept, metadata={"format": "pt"}))


class OriginalBlock(torch.nn.Module):
    """A block as the original script has it, of torch's own modules, under its names."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(dim), torch.nn.LayerNorm(dim)
        self.attention = torch.nn.MultiheadAttention(dim, heads, bias=False, batch_first=True)
        layers = torch.nn.Linear(dim, 4 * dim), torch.nn.GELU(), torch.nn.Linear(4 * dim, dim)
        self.feed_forward = torch.nn.Module()
        self.feed_forward.layers = torch.nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, future = self.norm1(x), torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        x = x + self.attention(h, h, h, attn_mask=future, need_weights=False)[0]
        return x + self.feed_forward.layers(self.norm2(x))


class Original(torch.nn.Module):
    def __init__(self, vocabulary: int, context: int, dim: int, heads: int) -> None:
        super().__init__()
        self.token_embedding = torch.nn.Embedding(vocabulary, dim)
        self.positional_embedding = torch.nn.Embedding(context, dim)
        self.transformer_blocks = torch.nn.Sequential(*(OriginalBlock(dim, heads) for _ in range(2)))
        self.final_layer_norm = torch.nn.LayerNorm(dim)
        self.out_head = torch.nn.Linear(dim, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(ids) + self.positional_embedding.weight[: ids.shape[1]]
        return self.out_head(self.final_layer_norm(self.transformer_blocks(x)))
