"""Porting: every direction, its verification, and what is refused. Downstream tools: test_porting_downstream.py."""

import json
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import faisca
from faisca.checkpoint import load_checkpoint
from faisca.cli import main
from faisca.config import Config
from faisca.errors import FaiscaError, VerificationError
from faisca.parameters import initial_parameters
from faisca.porting import folders, libraries
from faisca.porting import port as porting
from faisca.porting.formats import Portable, model_config
from faisca.porting.huggingface import config_json, needs_model_file, to_theirs
from faisca.porting.port import Port, port, read_source
from faisca.porting.verify import TEXTS
from faisca.tokenizer import Tokenizer

torch = pytest.importorskip("torch", reason="torch is missing")
transformers = pytest.importorskip("transformers", reason="transformers is missing")
pytest.importorskip("mlx_lm", reason="mlx_lm is missing")
pytestmark = pytest.mark.xdist_group("porting")

TARGETS = {"torch": "x.safetensors", "mlx": "y.safetensors", "hf": "z", "faisca": "runs/again"}
READERS = {
    "torch": ["faisca_torch"],
    "mlx": ["faisca_mlx"],
    "hf": ["transformers", "mlx_lm"],
    "faisca": ["faisca_torch", "faisca_mlx"],
}


@pytest.fixture
def ported(trained: Path, tmp_path: Path, request) -> Path:
    """The trained run, unverified, in the format that the test names."""
    target = tmp_path / TARGETS[request.param]
    port(trained, target, request.param, verify=False)
    return target


# --- every direction ------------------------------------------------------------------------------


@pytest.mark.parametrize("format", TARGETS)
def test_a_target_is_verified_by_its_own_libraries(trained, tmp_path, format):
    done = port(trained, tmp_path / TARGETS[format], format)
    assert [row.library for row in done.comparisons] == READERS[format]
    for row in done.comparisons:
        assert row.problem() == "" and row.largest_logit_difference < 1e-4
        assert row.tokens == row.equal_tokens > 0 and row.texts == row.equal_texts == len(TEXTS)
    assert (tmp_path / TARGETS[format]).exists() and not list(tmp_path.rglob(".porting*"))


def test_a_round_trip_through_every_format_is_bit_identical(trained, tmp_path):
    stops = [("torch", "a.safetensors"), ("mlx", "b.safetensors"), ("mlx", "c.npz"), ("hf", "d"), ("faisca", "e")]
    at = trained
    for format, name in stops:
        source = read_source(at)
        port(at, tmp_path / name, format, verify=False)
        at = tmp_path / name
        same_model(source, read_source(at))
    first, last = load_checkpoint(trained), load_checkpoint(at)
    assert {name: array.tobytes() for name, array in first.parameters.items()} == {
        name: array.tobytes() for name, array in last.parameters.items()
    }
    for key in ("model", "tokenizer", "stage", "step", "stages", "config", "seed"):
        assert first.state[key] == last.state[key], key
    assert first.tokenizer_json == last.tokenizer_json and last.state["finished"]


@pytest.mark.parametrize("ported", ["torch", "mlx", "hf"], indirect=True)
def test_the_source_format_is_detected_and_said(ported, tmp_path, capsys):
    words = {"x.safetensors": "a torch state dict", "y.safetensors": "MLX arrays", "z": "a Hugging Face GPT-2 folder"}
    assert main(["port", str(ported), str(tmp_path / "back"), "--to", "faisca", "--no-verify"]) == 0
    assert f"{ported}: {words[ported.name]}\n" in capsys.readouterr().out


def test_a_torch_file_is_a_state_dict_of_the_twin(trained, tmp_path):
    port(trained, tmp_path / "x.safetensors", "torch", verify=False)
    model = faisca.load(trained, backend="torch").model
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "x.safetensors"), strict=True)


def test_mlx_files_are_weights_of_the_twin(trained, tmp_path):
    model = faisca.load(trained, backend="mlx").model
    for name in ("x.safetensors", "x.npz"):
        port(trained, tmp_path / name, "mlx", verify=False)
        model.load_weights(str(tmp_path / name), strict=True)


def test_a_port_of_a_port_of_a_checkpoint_is_a_run(trained, tmp_path):
    port(trained, tmp_path / "x.npz", "mlx", verify=False)
    port(tmp_path / "x.npz", tmp_path / "back", "faisca")
    before, after = faisca.load(trained, backend="torch"), faisca.load(tmp_path / "back", backend="mlx")
    assert before.generate("Presidente", 3, temperature=0) == after.generate("Presidente", 3, temperature=0)


# --- Hugging Face ---------------------------------------------------------------------------------


def test_transformers_writes_what_faisca_writes(trained, tmp_path):
    port(trained, tmp_path / "hf", "hf", verify=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ids = tokenizer("<|endoftext|>Presidente", return_tensors="pt")
    rows = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    text = " ".join(tokenizer.decode(rows[0], skip_special_tokens=True).split())
    ours = faisca.load(trained, backend="torch").generate("Presidente", temperature=0, max_new_tokens=8)
    assert [text] == ours


def test_the_model_card_has_the_training_table(trained, tmp_path):
    port(trained, tmp_path / "hf", "hf", verify=False)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| validation loss (nats) |" in card and "--trust-remote-code" in card and "tiny on torch (cpu)" in card
    assert not {"{", "}"} & set(card.replace("**ids", "").replace("{prompt}", ""))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("gelu", ["gelu", "gelu_new"])
def test_gpt2_comes_in_and_goes_out_again(tmp_path, small_tokenizer, tied, gelu):
    folder = gpt2_folder(tmp_path / "in", small_tokenizer, tie_word_embeddings=tied, activation_function=gelu)
    done = port(folder, tmp_path / "run", "faisca")
    assert [row.library for row in done.comparisons] == READERS["faisca"]
    model = done.source.model
    assert (model.tie_embeddings, model.attention_bias) == (tied, True)
    assert model.activation == {"gelu": "gelu", "gelu_new": "gelu_tanh"}[gelu]
    again = port(tmp_path / "run", tmp_path / "out", "hf")
    assert [row.library for row in again.comparisons] == READERS["hf"]
    same_model(read_source(folder), read_source(tmp_path / "out"))
    assert (tmp_path / "out" / "faisca_gpt2.py").is_file() == (not (tied and gelu == "gelu_new"))


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_an_imported_gpt2_is_fine_tuned_and_reinforced(tmp_path, small_tokenizer, backend, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gpt2_folder(tmp_path / "gpt2", small_tokenizer)
    port(tmp_path / "gpt2", tmp_path / "run", "faisca", verify=False)
    common = ["--preset", "tiny", "--backend", backend, "--device", "cpu"]
    assert main(["sft", "--from", "run", "--out", "tuned", *common]) == 0
    assert main(["grpo", "--from", "tuned", "--out", "reinforced", *common]) == 0
    before, after = load_checkpoint(Path("run")), load_checkpoint(Path("reinforced"))
    assert after.state["model"] == before.state["model"]
    assert not np.array_equal(after.parameters["token_embedding.weight"], before.parameters["token_embedding.weight"])
    capsys.readouterr()
    assert main(["generate", "reinforced", "-n", "2", "--backend", backend]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_in_exactly(tmp_path, small_tokenizer, dtype):
    folder = gpt2_folder(tmp_path / "half", small_tokenizer, dtype=dtype)
    tensors = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    ours = read_source(folder).parameters["transformer_blocks.1.attention.in_proj.weight"]
    assert np.array_equal(ours, tensors["transformer.h.1.attn.c_attn.weight"].numpy().T)


def test_old_and_large_folders_come_in(tmp_path, small_tokenizer):
    folder = gpt2_folder(tmp_path / "one", small_tokenizer)
    whole = read_source(folder)
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    names = list(arrays)
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    buffers = {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    torch.save({k: torch.tensor(v) for k, v in arrays.items()} | buffers, pickled / "pytorch_model.bin")
    sharded = shutil.copytree(folder, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        (sharded / file).write_bytes(safetensors.numpy.save({name: arrays[name] for name in part}))
    weight_map = {name: file for file, part in parts.items() for name in part}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    same_model(whole, read_source(pickled))
    same_model(whole, read_source(sharded))


def test_a_checkpoint_of_the_gpt2_tokenizer_is_exported_with_its_tokenizer_json(tmp_path, gpt2):
    sizes = {"dim": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "context": 12}
    model = model_config(sizes | {"vocabulary_size": gpt2.vocabulary_size}, "test")
    parameters = {name: array / 4 for name, array in initial_parameters(model, 0).items()}
    run = tmp_path / "run"
    write = porting.write_run if hasattr(porting, "write_run") else None
    assert write is not None
    write(Portable("faisca", "made here", model, parameters, gpt2, {}), run)
    done = port(run, tmp_path / "hf", "hf")
    assert all(row.problem() == "" for row in done.comparisons)
    assert (tmp_path / "run" / "config.toml").is_file() and not (run / "tokenizer.json").exists()


# --- the original script --------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [4, 2])
def test_a_pt_file_of_the_original_script_computes_the_same(tmp_path, gpt2, heads):
    torch.manual_seed(1)
    original = Original(gpt2.vocabulary_size, 16, 8, heads).eval()
    torch.save(original.state_dict(), tmp_path / "model.pt")
    done = port(tmp_path / "model.pt", tmp_path / "run", "faisca", num_heads=None if heads == 4 else heads)
    assert done.source.model.num_heads == heads and "original script" in done.source.found
    assert any("GPT-2's tokenizer" in note for note in done.notes)
    ids = np.arange(32).reshape(2, 16) * 1500
    with torch.inference_mode():
        theirs = original(torch.tensor(ids)).numpy()
    ours = faisca.load(tmp_path / "run", backend="torch").logits(ids)
    assert np.abs(ours - theirs).max() < 1e-5


