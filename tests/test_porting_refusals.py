"""Porting: what is refused, and a comparison that can fail. Sound ports: test_porting.py."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_ports import (
    TARGETS,
    Original,
    complaint,
    edit_arrays,
    edit_json,
    gpt2_folder,
    small_run,
    small_tokenizer,
    torch,
)

from faisca.cli import main
from faisca.config import Config
from faisca.porting import folders, libraries, readers, verify
from faisca.porting.formats import Portable
from faisca.porting.huggingface import config_json, needs_model_file, to_theirs
from faisca.porting.port import port, read_source

pytest.importorskip("mlx_lm", reason="mlx_lm is missing")
pytestmark = pytest.mark.xdist_group("refusals")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, a run, and `gpt2`, a folder that transformers wrote."""
    folder = tmp_path_factory.mktemp("sources")
    small_run(folder / "run", small_tokenizer())
    gpt2_folder(folder / "gpt2", small_tokenizer())
    return folder


@pytest.fixture
def run(sources: Path) -> Path:
    return sources / "run"


@pytest.fixture
def bad(sources: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be spoilt."""
    return shutil.copytree(sources / "gpt2", tmp_path / "bad")


@pytest.fixture
def weights(run: Path, tmp_path: Path) -> Path:
    """A torch state dict of the run."""
    port(run, tmp_path / "x.safetensors", "torch", verify=False)
    return tmp_path / "x.safetensors"


# --- a comparison that can fail -------------------------------------------------------------------


def one_matrix_is_not_transposed(portable: Portable) -> dict[str, np.ndarray]:
    theirs = dict(to_theirs(portable))
    name = "transformer.h.0.attn.c_proj.weight"  # square: its shape tells nobody
    return theirs | {name: np.ascontiguousarray(theirs[name].T)}


BROKEN = {
    "a matrix": ("to_theirs", one_matrix_is_not_transposed, "logits differ"),
    "the GELU": ("config_json", lambda *p: config_json(*p) | {"activation_function": "gelu_new"}, "logits differ"),
    "a NaN": (
        "to_theirs",
        lambda p: dict(to_theirs(p)) | {"transformer.ln_f.bias": np.full(16, np.nan, np.float32)},
        "nan",
    ),
    "end of text": ("_generation_config", lambda p: {"eos_token_id": 3}, "end of text is"),
    "tokenizer": ("_tokenizer_config", lambda p: {"tokenizer_class": "PreTrainedTokenizerFast"}, "end of text is"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_target_that_differs_is_an_error_and_is_removed(run, tmp_path, monkeypatch, capsys, broken):
    name, function, words = BROKEN[broken]
    monkeypatch.setattr(folders, name, function)
    line = complaint(capsys, run, tmp_path / "hf", "--to", "hf", status=1)
    assert words in line and "transformers" in line and "removed" in line
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_its_library_cannot_load_is_an_error_and_is_removed(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders, "config_json", lambda *p: config_json(*p) | {"model_type": "no such"})
    line = complaint(capsys, run, tmp_path / "hf", "--to", "hf", status=1)
    assert "transformers cannot load" in line and "removed" in line
    assert list(tmp_path.iterdir()) == []


def test_texts_with_other_tokens_are_an_error(run, tmp_path, monkeypatch, capsys):
    class Lowercase(readers.TwinReader):
        def encode(self, text: str) -> list[int]:
            return super().encode(text.lower())

    monkeypatch.setattr(readers, "TwinReader", Lowercase)
    assert "texts have other tokens" in complaint(capsys, run, tmp_path / "again", "--to", "faisca", status=1)
    assert list(tmp_path.iterdir()) == []


def test_other_greedy_tokens_are_an_error_but_for_ties(run, tmp_path, monkeypatch, capsys):
    greedy = readers.TwinReader.greedy

    def second_differs(self, ids, count):
        tokens = greedy(self, ids, count)
        return [tokens[0], tokens[1] - 1, *tokens[2:]] if self.name == "faisca_mlx" else tokens

    monkeypatch.setattr(readers.TwinReader, "greedy", second_differs)
    assert "greedy tokens differ" in complaint(capsys, run, tmp_path / "x.npz", "--to", "mlx", status=1)
    monkeypatch.setattr(verify, "_is_tie", lambda source, ids, pair, limit: len(pair) == 2)
    (row,) = port(run, tmp_path / "x.npz", "mlx").comparisons
    assert row.ties == verify.PROMPTS and row.tokens == row.equal_tokens == row.ties


def test_no_verify_is_loud(run, tmp_path, capsys):
    assert main(["port", str(run), str(tmp_path / "x.npz"), "--to", "mlx", "--no-verify", "--json"]) == 0
    printed = capsys.readouterr()
    assert "NOT VERIFIED" in printed.err
    said = json.loads(printed.out)
    assert said["verified"] is False and said["comparisons"] == []


def test_json_says_what_was_compared(run, tmp_path, capsys):
    assert main(["port", str(run), str(tmp_path / "x.npz"), "--to", "mlx", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (
        said["verified"] and said["source"]["format"] == "faisca" and said["comparisons"][0]["library"] == "faisca_mlx"
    )


def test_one_library_of_two_is_enough_and_the_other_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "importable", lambda name: name != "mlx_lm")
    done = port(run, tmp_path / "hf", "hf")
    assert [row.library for row in done.comparisons] == ["transformers"]
    assert any("not checked with mlx_lm" in note for note in done.notes)


# --- bad input: one line, and nothing written -----------------------------------------------------

IN_PROJ = "transformer.h.0.attn.c_attn.weight"
ONES = {"lm_head.weight": np.ones((300, 24), np.float32)}
BAD_FOLDERS = {
    "a wrong shape": (
        lambda f: edit_arrays(f / "model.safetensors", **{IN_PROJ: np.zeros((24, 71), np.float32)}),
        "h.0.attn.c_attn.weight has shape [24, 71], but config.json asks for [24, 72]",
    ),
    "a missing key": (
        lambda f: edit_arrays(f / "model.safetensors", **{"transformer.ln_f.bias": None}),
        "weight ln_f.bias is missing",
    ),
    "an extra key": (
        lambda f: edit_arrays(f / "model.safetensors", extra=np.zeros(3, np.float32)),
        "weight extra is unknown",
    ),
    "an integer weight": (
        lambda f: edit_arrays(f / "model.safetensors", **{IN_PROJ: np.zeros((24, 72), np.int32)}),
        f"{IN_PROJ} is int32",
    ),
    "more layers": (lambda f: edit_json(f / "config.json", n_layer=3), "weight h.2."),
    "fewer layers": (lambda f: edit_json(f / "config.json", n_layer=1), "weight h.1."),
    "another width": (lambda f: edit_json(f / "config.json", n_embd=48), "config.json asks for"),
    "heads that do not divide": (lambda f: edit_json(f / "config.json", n_head=5), "num_heads 5"),
    "a text for a number": (lambda f: edit_json(f / "config.json", n_head="3"), "num_heads '3'"),
    "another architecture": (
        lambda f: edit_json(f / "config.json", model_type="phi3"),
        "model_type 'phi3' is refused: what comes in is gpt2, llama",
    ),
    "another activation": (lambda f: edit_json(f / "config.json", activation_function="relu"), "'relu'"),
    "unscaled attention": (lambda f: edit_json(f / "config.json", scale_attn_weights=False), "scale_attn_weights"),
    "no head": (lambda f: edit_json(f / "config.json", tie_word_embeddings=False), "lm_head.weight is missing"),
    "another end of text": (lambda f: edit_json(f / "config.json", eos_token_id=7), "eos_token_id 7"),
    "another tied head": (
        lambda f: edit_arrays(f / "model.safetensors", **ONES),
        "lm_head.weight differs from wte.weight",
    ),
    "biases that are denied": (lambda f: edit_json(f / "config.json", attention_bias=False), "is not zero"),
    "a broken config": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json: name the model's with --tokenizer"),
    "truncated weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        "model.safetensors cannot be read",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors cannot be read"),
}


@pytest.mark.parametrize(("spoil", "words"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_bad_folder_is_refused(bad, tmp_path, capsys, spoil, words):
    spoil(bad)
    assert words in complaint(capsys, bad, tmp_path / "run", "--to", "faisca")
    assert list(tmp_path.iterdir()) == [bad]


@pytest.mark.parametrize("tokens", [290, 310])
def test_a_tokenizer_of_another_size_is_refused(bad, tmp_path, capsys, tokens):
    (bad / "tokenizer.json").write_text(small_tokenizer(tokens).json_text(), encoding="utf-8")
    line = complaint(capsys, bad, tmp_path / "run", "--to", "faisca")
    assert f"{tokens} tokens" in line and "token_embedding.weight has 300 rows" in line
    assert list(tmp_path.iterdir()) == [bad]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layers": 3}, "missing transformer_blocks.2."),
        ({"hidden_dim": 96}, "feed_forward.up.weight has shape"),
        ({"vocabulary_size": 299}, "token_embedding.weight has shape"),
        ({"wings": 2}, "model.wings is unknown"),
        ({"num_heads": 0}, "model.num_heads 0"),
    ],
)
def test_a_description_that_contradicts_the_weights_is_refused(weights, tmp_path, capsys, change, words):
    sidecar = tmp_path / "x.safetensors.json"
    model = json.loads(sidecar.read_text())["model"]
    edit_json(sidecar, model=model | change)
    assert words in complaint(capsys, weights, tmp_path / "run", "--to", "faisca")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("training", [{"stage": "../../up"}, {"step": "x"}, {"stages": [{"stage": 3}]}, {"config": 1}])
def test_a_strangers_description_of_the_training_is_checked(weights, tmp_path, capsys, training):
    edit_json(tmp_path / "x.safetensors.json", training=training)
    assert f"training.{next(iter(training))}" in complaint(capsys, weights, tmp_path / "run", "--to", "faisca")
    assert not (tmp_path / "run").exists()


class Attack:
    """What a pickle can do to its reader."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin"])
def test_code_in_a_pickle_is_not_run(tmp_path, capsys, name):
    marker, file = tmp_path / "marker", tmp_path / name
    torch.save({"token_embedding.weight": Attack(marker)}, file)
    assert "could run code" in complaint(capsys, file, tmp_path / "run", "--to", "faisca")
    file.write_bytes(pickle.dumps(Attack(marker)))
    complaint(capsys, file, tmp_path / "run", "--to", "faisca")
    assert not marker.exists() and list(tmp_path.iterdir()) == [file]
    pickle.loads(file.read_bytes())
    assert marker.exists()  # the trap was a real one


def test_code_in_an_npz_is_not_run(tmp_path, capsys):
    marker, file = tmp_path / "marker", tmp_path / "weights.npz"
    np.savez(file, **{"token_embedding.weight": np.array([Attack(marker)], dtype=object)})
    assert "cannot be read" in complaint(capsys, file, tmp_path / "run", "--to", "faisca")
    assert not marker.exists()


def test_code_in_a_folder_is_not_run(bad, tmp_path, monkeypatch, capsys):
    """A stranger's model_file is no reason to trust it, where mlx_lm has to read the source."""
    marker = tmp_path / "marker"
    (bad / "faisca_gpt2.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    edit_json(bad / "config.json", model_file="faisca_gpt2.py")
    monkeypatch.setattr(libraries, "importable", lambda name: name != "transformers")
    assert main(["port", str(bad), str(tmp_path / "run"), "--to", "faisca"]) == 0
    assert "verified: mlx_lm answered for the source" in capsys.readouterr().out  # with a file of ours
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "no matrix token_embedding.weight"),
        ({"token_embedding.weight": "text"}, "token_embedding.weight is a str"),
        ([1, 2], "holds a list"),
    ],
)
def test_a_pt_file_that_is_no_state_dict_is_refused(tmp_path, capsys, content, words):
    torch.save(content, tmp_path / "model.pt")
    assert words in complaint(capsys, tmp_path / "model.pt", tmp_path / "run", "--to", "faisca")


def test_a_small_vocabulary_without_a_description_is_refused(tmp_path, gpt2, capsys):
    torch.save(Original(300, 16, 8, 4).state_dict(), tmp_path / "model.pt")
    line = complaint(capsys, tmp_path / "model.pt", tmp_path / "run", "--to", "faisca")
    assert "50257 tokens" in line and "300 rows" in line


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.npz", "weights.pt"])
def test_rubbish_is_refused(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"rubbish" * 9)
    line = complaint(capsys, tmp_path / name, tmp_path / "run", "--to", "faisca")
    assert name in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["missing", "notes.txt"])
def test_a_source_that_is_none_is_refused(tmp_path, capsys, name):
    (tmp_path / "notes.txt").write_text("notes")
    assert name in complaint(capsys, tmp_path / name, tmp_path / "run", "--to", "faisca")


def test_what_is_no_hub_id_is_not_asked_of_the_hub(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("faisca.porting.port.fetch", lambda id: pytest.fail(f"{id} was asked of the hub"))
    (tmp_path / "runs").mkdir()
    for no_id in ("runs/missing", "rnu", "gpt2.safetensors", "a/b/c"):
        assert "hf download" not in complaint(capsys, no_id, "run", "--to", "faisca")


@pytest.mark.parametrize("weights", ["adapter_model", "adapters"])
def test_an_adapter_is_no_model_and_its_base_is_asked_for(tmp_path, capsys, weights):
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / f"{weights}.safetensors").touch()
    line = complaint(capsys, folder, tmp_path / "run", "--to", "faisca")
    assert "an adapter is nothing without the model" in line and "--base" in line


def test_a_source_beside_runs_names_them(sources, tmp_path, capsys):
    line = complaint(capsys, sources / "rnu", tmp_path / "run", "--to", "faisca")
    assert "rnu does not exist" in line and f"nearby: {sources / 'run'}" in line


# --- a tokenizer for what has none ----------------------------------------------------------------


def test_a_named_tokenizer_goes_with_a_file_that_has_no_description(weights, run, tmp_path, monkeypatch, capsys):
    """Offline, as a user has it: no GPT-2 vocabulary is to be had."""
    (tmp_path / "x.safetensors.json").unlink()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setattr("tiktoken.load.read_file", lambda path: (_ for _ in ()).throw(OSError("no network")))
    line = complaint(capsys, weights, tmp_path / "back", "--to", "faisca")
    assert "TIKTOKEN_CACHE_DIR" in line and "--tokenizer" in line and "--tokenizer.kind" not in line
    named = ["--tokenizer", str(run / "tokenizer.json"), "--num-heads", "2"]
    assert main(["port", str(weights), str(tmp_path / "back"), "--to", "faisca", *named]) == 0
    assert f"with {run / 'tokenizer.json'} and 2 heads" in capsys.readouterr().out
    same = [read_source(path) for path in (run, tmp_path / "back")]
    assert same[0].tokenizer.fingerprint == same[1].tokenizer.fingerprint
    other = tmp_path / "other.json"
    other.write_text(small_tokenizer(290).json_text(), encoding="utf-8")
    line = complaint(capsys, weights, tmp_path / "again", "--to", "faisca", "--tokenizer", other)
    assert "290 tokens" in line and "--tokenizer FILE" in line


def test_a_named_tokenizer_goes_with_a_folder_that_has_none(bad, tmp_path):
    (bad / "tokenizer.json").rename(tmp_path / "mine.json")
    assert port(bad, tmp_path / "run", "faisca", tokenizer=tmp_path / "mine.json").answered_by == "transformers"


def test_a_named_tokenizer_does_not_go_with_a_source_that_has_its_own(weights, run, bad, tmp_path, capsys):
    for source in (weights, run, bad):
        line = complaint(capsys, source, tmp_path / "t", "--to", "faisca", "--tokenizer", run / "tokenizer.json")
        assert "--tokenizer does not go with" in line
    assert "--num-heads does not go with" in complaint(
        capsys, weights, tmp_path / "t", "--to", "faisca", "--num-heads", 2
    )
    for name in ("nowhere.json", "."):
        (bad / "tokenizer.json").unlink(missing_ok=True)
        assert "cannot be read" in complaint(capsys, bad, tmp_path / "t", "--to", "faisca", "--tokenizer", name)


@pytest.mark.parametrize("format", TARGETS)
def test_an_existing_target_stays_as_it_is(run, tmp_path, capsys, format):
    target = tmp_path / TARGETS[format]
    target.parent.mkdir(exist_ok=True)
    target.write_text("mine")
    assert "already exists" in complaint(capsys, run, target, "--to", format)
    assert target.read_text() == "mine"


def test_a_weights_file_has_to_be_called_one(run, tmp_path, capsys):
    for format, name in (("torch", "x.pt"), ("torch", "x.npz"), ("mlx", "x"), ("mlx", "x.pt")):
        assert ".safetensors" in complaint(capsys, run, tmp_path / name, "--to", format)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_not_ported(run, tmp_path, capsys):
    run = shutil.copytree(run, tmp_path / "run")
    for weights in run.glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-4])
    assert "no good checkpoint" in complaint(capsys, run, tmp_path / "hf", "--to", "hf")
    assert not (tmp_path / "hf").exists()


def test_a_model_file_only_where_mlx_lm_needs_one():
    plain = replace(Config().model, tie_embeddings=True, activation="gelu_tanh")
    portable = Portable("faisca", "made here", plain, {}, small_tokenizer(), {})
    assert not needs_model_file(portable)
    for change in ({"tie_embeddings": False}, {"activation": "gelu"}, {"hidden_dim": 100}):
        assert needs_model_file(replace(portable, model=replace(plain, **change)))
