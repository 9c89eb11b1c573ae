"""Porting: every direction, what comes in, and what other tools make of it. Refusals: test_porting_refusals.py."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from small_ports import TARGETS, Original, gpt2_folder, same_model, small_run, small_tokenizer, torch, transformers

import faisca
from faisca.cli import main
from faisca.data.tokenizer import Tokenizer
from faisca.porting.libraries import open_exported
from faisca.porting.port import port, read_source
from faisca.porting.verify import TEXTS
from faisca.runs.checkpoint import load_checkpoint

pytest.importorskip("mlx_lm", reason="mlx_lm is missing")
pytestmark = pytest.mark.xdist_group("porting")

READERS = {
    "torch": ["faisca_torch"],
    "mlx": ["faisca_mlx"],
    "hf": ["transformers", "mlx_lm"],
    "faisca": ["faisca_torch", "faisca_mlx"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all three stages; its matrices are wide enough to be quantised."""
    folder = tmp_path_factory.mktemp("porting") / "trained"
    options = ["--preset", "tiny", "--model.dim", "64", "--backend", "torch", "--device", "cpu"]
    assert main(["run", *options, "--pretrain.max-steps", "30", "--pretrain.epochs", "3", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    """The run as a Hugging Face folder."""
    port(trained, trained.parent / "exported", "hf", verify=False)
    return trained.parent / "exported"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


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
    for key in ("model", "tokenizer", "stage", "step", "stages", "config", "hold_out_seed"):
        assert getattr(first.state, key) == getattr(last.state, key), key
    assert first.tokenizer_files.items() <= last.tokenizer_files.items() and last.state.finished


@pytest.mark.parametrize(
    ("format", "words"),
    [("torch", "a torch state dict"), ("mlx", "MLX arrays"), ("hf", "a Hugging Face gpt2 folder (float32)")],
)
def test_the_source_format_is_detected_and_said(tmp_path, tokenizer, capsys, format, words):
    source = tmp_path / TARGETS[format]
    port(small_run(tmp_path / "run", tokenizer), source, format, verify=False)
    assert main(["port", str(source), str(tmp_path / "back"), "--to", "faisca", "--no-verify"]) == 0
    assert f"{source}: {words}\n" in capsys.readouterr().out


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


def test_transformers_writes_what_faisca_writes(trained, exported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    ids = tokenizer("<|endoftext|>Presidente", return_tensors="pt")
    rows = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    text = " ".join(tokenizer.decode(rows[0], skip_special_tokens=True).split())
    ours = faisca.load(trained, backend="torch").generate("Presidente", temperature=0, max_new_tokens=8)
    assert [text] == ours


def test_the_model_card_has_the_training_table(exported):
    card = (exported / "README.md").read_text()
    assert "| validation loss (nats) |" in card and "--trust-remote-code" in card and "tiny on torch (cpu)" in card
    assert "{" not in card and "}" not in card


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("gelu", ["gelu", "gelu_new"])
def test_gpt2_comes_in_and_goes_out_again(tmp_path, tokenizer, tied, gelu):
    folder = gpt2_folder(tmp_path / "in", tokenizer, tie_word_embeddings=tied, activation_function=gelu)
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
def test_an_imported_gpt2_is_fine_tuned_and_reinforced(tmp_path, tokenizer, backend, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gpt2_folder(tmp_path / "gpt2", tokenizer)
    port(tmp_path / "gpt2", tmp_path / "run", "faisca", verify=False)
    common = ["--preset", "tiny", "--backend", backend, "--device", "cpu"]
    assert main(["sft", "--from", "run", "--out", "tuned", *common]) == 0
    assert main(["grpo", "--from", "tuned", "--out", "reinforced", *common]) == 0
    before, after = load_checkpoint(Path("run")), load_checkpoint(Path("reinforced"))
    assert after.state.model == before.state.model
    assert not np.array_equal(after.parameters["token_embedding.weight"], before.parameters["token_embedding.weight"])
    capsys.readouterr()
    assert main(["generate", "reinforced", "-n", "2", "--backend", backend]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_in_exactly(tmp_path, tokenizer, dtype):
    folder = gpt2_folder(tmp_path / "half", tokenizer, dtype=dtype)
    tensors = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    ours = read_source(folder).parameters["transformer_blocks.1.attention.in_proj.weight"]
    assert np.array_equal(ours, tensors["transformer.h.1.attn.c_attn.weight"].numpy().T)


def test_old_and_large_folders_come_in(tmp_path, tokenizer):
    folder = gpt2_folder(tmp_path / "one", tokenizer)
    whole = read_source(folder)
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    names = list(arrays)
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    buffers = {"h.0.attn.bias": torch.ones(1, 1, 32, 32, dtype=torch.bool), "h.0.attn.masked_bias": torch.tensor(-1e4)}
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
    run = small_run(tmp_path / "run", gpt2)
    assert not (run / "tokenizer.json").exists()
    done = port(run, tmp_path / "hf", "hf")
    assert [row.problem() for row in done.comparisons] == ["", ""]
    same_model(read_source(run), read_source(tmp_path / "hf"))


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


# --- downstream: mlx-lm as its users call it ------------------------------------------------------


def mlx_lm(*argv: object) -> str:
    """Output of `python -m mlx_lm ARGV`."""
    command = [sys.executable, "-m", "mlx_lm", *map(str, argv)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def quantised(exported: Path) -> Path:
    """The folder in 4 bits."""
    target = exported.parent / "quantised"
    said = mlx_lm("convert", "--hf-path", exported, "--mlx-path", target, "-q", "--trust-remote-code")
    (width,) = re.findall(r"([\d.]+) bits per weight", said)
    assert 4 < float(width) < 8
    return target


def test_mlx_lm_generates_what_faisca_writes(trained, exported):
    prompt = ["--prompt", "<|endoftext|>Presidente", "--temp", "0", "--max-tokens", "8"]
    said = mlx_lm("generate", "--model", exported, "--trust-remote-code", *prompt)
    (ours,) = faisca.load(trained, backend="mlx").generate("Presidente", temperature=0, max_new_tokens=8)
    text = " ".join(said.split("=" * 10)[1].split())
    assert text and text == ours.removeprefix("Presidente").lstrip()  # mlx-lm drops a space at the start


@pytest.fixture(scope="module")
def bits():
    """The script benchmarks/bits.py as a module."""
    path = Path(__file__).parent.parent / "benchmarks" / "bits.py"
    spec = importlib.util.spec_from_file_location("bits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_four_bits_cost_little(bits, exported, quantised, capsys, monkeypatch):
    monkeypatch.setattr(bits, "TITLES", 40)
    assert bits.main([str(exported), str(quantised)]) == 0
    measured = json.loads(capsys.readouterr().out)
    plain, small = measured[str(exported)], measured[str(quantised)]
    assert plain != small and abs(small - plain) < 0.03  # measured: +0.008


def test_bits_per_byte_are_those_of_the_summary(bits, trained, exported):
    """Another definition of the same: windows of a packed text there, titles one by one here."""
    stages = json.loads((trained / "summary.json").read_text())["stages"]
    ours = bits.bits_per_byte(open_exported("transformers", exported), bits.validation_titles(60), 32)
    assert ours == pytest.approx(stages[-1]["bits_per_byte_after"], rel=0.01)  # measured: 0.0014


@pytest.fixture(scope="module")
def server(quantised: Path) -> Iterator[str]:
    """The address of an mlx_lm server of the folder in 4 bits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port_number = free.getsockname()[1]
    options = ["--model", str(quantised), "--trust-remote-code", "--host", "127.0.0.1", "--port", str(port_number)]
    with (quantised.parent / "server.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "mlx_lm", "server", *options], stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port_number}"
        try:
            for _ in range(600):
                assert process.poll() is None, (quantised.parent / "server.log").read_text()
                if answers(address):
                    break
                time.sleep(0.2)
            yield address
        finally:
            process.kill()
            process.wait()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
    except OSError:
        return False


def complete(address: str, **request: object) -> dict:
    body = json.dumps({"prompt": "<|endoftext|>Presidente", "temperature": 0} | request).encode()
    question = urllib.request.Request(f"{address}/v1/completions", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(question, timeout=60))


def test_the_server_answers_a_completion(server, quantised):
    said = complete(server, max_tokens=6)
    assert said["object"] == "text_completion" and said["usage"]["completion_tokens"] <= 6
    reader = open_exported("mlx_lm", quantised)
    ids = [reader.end_of_text_ids[0], *reader.encode("Presidente")]
    assert said["usage"]["prompt_tokens"] == len(ids)
    text = reader.decode([token for token in reader.greedy(ids, 6) if token != ids[0]])
    assert text and said["choices"][0]["text"] == text.lstrip()


def test_the_server_stops_where_the_context_ends(server):
    """mlx-lm itself would read beyond the positional table, silently."""
    said = complete(server, max_tokens=100)
    usage = said["usage"]
    assert said["choices"][0]["finish_reason"] == "stop" and usage["total_tokens"] <= 32 + 2
