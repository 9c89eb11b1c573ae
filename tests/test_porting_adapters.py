"""Adapters travel: ours, PEFT's and mlx-lm's, each loaded by its own library on the base that it belongs to."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_families import family_folder
from small_ports import complaint, edit_json, gpt2_folder, small_tokenizer, torch, transformers

from faisca.cli import main
from faisca.config import AdaptedModel, Adapter, adapter_of
from faisca.lora import split, with_adapter
from faisca.parameters import in_adapter, parameter_shapes
from faisca.porting.adapters import port_adapter
from faisca.porting.port import read_source
from faisca.porting.run_folders import write_run
from faisca.runs.checkpoint import load_checkpoint
from faisca.streams import generator

peft = pytest.importorskip("peft", reason="peft is missing")
pytest.importorskip("mlx_lm", reason="mlx_lm is missing")

SOME = Adapter(3, 4.5, 0.25, ("query", "value", "output", "down"))
EVERY = Adapter(2, 16.0, 0.0, ("query", "key", "value", "output", "gate", "up", "down"))
LEAVES = {"query": "q_proj", "value": "v_proj", "output": "o_proj", "down": "down_proj"}


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    return family_folder(tmp_path_factory.mktemp("base") / "llama", "llama", tokenizer)


def adapted_run(folder: Path, base: Path, adapter: Adapter) -> AdaptedModel:
    """A run with an adapter of random numbers on a base, and its model."""
    given = read_source(base)
    model = with_adapter(given.model, adapter)
    shapes = {name: shape for name, shape in parameter_shapes(model).items() if in_adapter(name)}
    arrays = {n: 0.2 * generator(0, n).standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    write_run(given, folder, model, arrays)
    return model


def adapter_arrays(run: Path) -> dict[str, np.ndarray]:
    return dict(split(load_checkpoint(run).parameters)[1])


def same_arrays(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys() and one
    for name, array in one.items():
        assert array.dtype == two[name].dtype == np.float32 and np.array_equal(array, two[name]), name


def verified(done) -> None:
    """Its own library found the same logits, and wrote the same tokens."""
    assert done.comparisons
    for comparison in done.comparisons:
        assert comparison.largest_logit_difference < 1e-4 and comparison.equal_tokens == comparison.tokens > 0


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", ["llama", "llama 3", "llama with biases", "qwen3"])
def test_from_a_run_to_peft_to_mlx_lm_and_back_nothing_changes(family, dora, tmp_path, tokenizer):
    base = family_folder(tmp_path / "base", family, tokenizer)
    some = replace(SOME, dora=dora)
    adapted_run(tmp_path / "run", base, some)
    for source, target, format in (("run", "peft", "peft"), ("peft", "mlx", "mlx-lm"), ("mlx", "again", "faisca")):
        verified(port_adapter(tmp_path / source, tmp_path / target, format, base))
    same_arrays(adapter_arrays(tmp_path / "run"), adapter_arrays(tmp_path / "again"))
    assert adapter_of(load_checkpoint(tmp_path / "again").state.model) == some
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["use_dora"]) == (3, 4.5, 0.25, dora)
    assert config["target_modules"] == sorted(LEAVES[target] for target in SOME.targets)
    parameters = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())["lora_parameters"]
    assert (parameters["rank"], parameters["scale"], parameters["dropout"]) == (3, 1.5, 0.25)
    assert parameters["keys"] == ["mlp.down_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"]


def test_it_changes_what_the_base_says(tmp_path, base):
    """Else a library that leaves the adapter out would be taken for one that has it."""
    from faisca.porting.readers import TwinReader

    model, given = adapted_run(tmp_path / "run", base, SOME), read_source(base)
    row = given.tokenizer.encode("Governo anuncia medidas")
    readers = [
        TwinReader("torch", model, load_checkpoint(tmp_path / "run").parameters, given.tokenizer),
        TwinReader("torch", given.model, given.parameters, given.tokenizer),
    ]
    apart = np.abs(readers[0].logits(row) - readers[1].logits(row)).max()
    assert apart > 0.1


def peft_adapter(folder: Path, base: Path, **options: object) -> Path:
    """An adapter of PEFT's own making, with numbers everywhere."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False} | options
    torch.manual_seed(1)
    peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_one_of_pefts_making_comes_in_and_goes_to_mlx_lm(dora, tmp_path, base):
    theirs = peft_adapter(tmp_path / "peft", base, use_dora=dora)
    verified(port_adapter(theirs, tmp_path / "run", "faisca", base))
    verified(port_adapter(theirs, tmp_path / "mlx", "mlx-lm", base))
    assert adapter_of(load_checkpoint(tmp_path / "run").state.model) == Adapter(4, 6.0, 0.0, ("query", "up"), dora)
    verified(port_adapter(tmp_path / "mlx", tmp_path / "again", "peft", base))


def mlx_adapter(folder: Path, base: Path, num_layers: int = -1, dora: bool = False) -> Path:
    """An adapter of mlx-lm's own making: as its trainer saves it, with numbers everywhere."""
    import mlx.core as mx
    import mlx_lm
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import save_config

    model = mlx_lm.load(str(base))[0]
    model.freeze()
    parameters = {"rank": 4, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.k_proj", "mlp.gate_proj"]}
    linear_to_lora_layers(model, num_layers, parameters, use_dora=dora)
    mx.random.seed(0)
    arrays = {name: 0.1 * mx.random.normal(array.shape) for name, array in tree_flatten(model.trainable_parameters())}
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), arrays)
    config = {"fine_tune_type": "dora" if dora else "lora", "num_layers": num_layers, "lora_parameters": parameters}
    save_config(config, folder / "adapter_config.json")
    return folder


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_one_of_mlx_lms_making_comes_in_and_goes_to_peft(dora, tmp_path, base):
    theirs = mlx_adapter(tmp_path / "mlx", base, dora=dora)
    verified(port_adapter(theirs, tmp_path / "run", "faisca", base))
    verified(port_adapter(theirs, tmp_path / "peft", "peft", base))
    assert adapter_of(load_checkpoint(tmp_path / "run").state.model) == Adapter(4, 80.0, 0.0, ("key", "gate"), dora)


def test_the_base_may_be_a_run_and_the_command_says_what_it_did(tmp_path, base, capsys):
    assert main(["port", str(base), str(tmp_path / "base"), "--to", "faisca"]) == 0
    adapted_run(tmp_path / "run", base, EVERY)
    capsys.readouterr()
    argv = ["port", str(tmp_path / "run"), str(tmp_path / "peft"), "--to", "peft", "--base", str(tmp_path / "base")]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "rank 2, alpha 16" in said and "verified" in said and "peft" in said
    assert main(["merge", str(tmp_path / "run")]) == 0
    assert "with its adapter added" in capsys.readouterr().out
    merged = load_checkpoint(tmp_path / "run-merged")
    assert adapter_of(merged.state.model) is None and not any(map(in_adapter, merged.parameters))


REFUSED = {
    "another scale": ({"use_rslora": True}, "use_rslora"),
    "other ranks": ({"rank_pattern": {"up_proj": 2}}, "rank_pattern"),
    "other scales": ({"alpha_pattern": {"up_proj": 2}}, "alpha_pattern"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "biases": ({"bias": "all"}, "bias"),
    "some layers": ({"layers_to_transform": [1]}, "layers_to_transform"),
    "the head": ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_ours_does_not_have_is_refused_by_name(name, tmp_path, base, capsys):
    options, words = REFUSED[name]
    folder = peft_adapter(tmp_path / "peft", base, **options)
    capsys.readouterr()
    assert words in complaint(capsys, folder, tmp_path / "run", "--to", "faisca", "--base", base)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"r": 5}, "has shape"),
        ({"lora_alpha": "many"}, "lora_alpha 'many' is not a number"),
        ({"r": 0}, "r 0 is not a number above 0"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change, words, tmp_path, base, capsys):
    folder = peft_adapter(tmp_path / "peft", base)
    edit_json(folder / "adapter_config.json", **change)
    capsys.readouterr()
    assert words in complaint(capsys, folder, tmp_path / "run", "--to", "faisca", "--base", base)


def test_some_layers_of_mlx_lms_are_refused(tmp_path, base, capsys):
    folder = mlx_adapter(tmp_path / "mlx", base, num_layers=1)
    assert "model.layers.0.self_attn.k_proj.lora_a is missing" in complaint(
        capsys, folder, tmp_path / "run", "--to", "faisca", "--base", base
    )


@pytest.mark.parametrize("change", [{"fine_tune_type": "lokr"}, {"fine_tune_type": "full"}])
def test_other_kinds_of_mlx_lms_are_refused(change, tmp_path, base, capsys):
    folder = mlx_adapter(tmp_path / "mlx", base)
    edit_json(folder / "adapter_config.json", **change)
    assert "fine_tune_type" in complaint(capsys, folder, tmp_path / "run", "--to", "faisca", "--base", base)


def test_another_base_is_refused(tmp_path, tokenizer, base, capsys):
    """Of the same shape, but with other weights."""
    adapted_run(tmp_path / "run", base, SOME)
    other = family_folder(tmp_path / "other", "llama", tokenizer)
    weights = transformers.AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    with torch.no_grad():
        weights.model.norm.weight.mul_(1.001)
    weights.save_pretrained(other)
    capsys.readouterr()
    line = complaint(capsys, tmp_path / "run", tmp_path / "peft", "--to", "peft", "--base", other)
    assert "is not the model that the adapter" in line and not (tmp_path / "peft").exists()


def test_what_is_asked_in_vain_is_said(tmp_path, base, capsys):
    adapted_run(tmp_path / "run", base, SOME)
    assert "--base" in complaint(capsys, tmp_path / "run", tmp_path / "peft", "--to", "peft")
    assert "is no adapter" in complaint(capsys, base, tmp_path / "x", "--to", "faisca", "--base", base)
    assert "this is no checkpoint" in complaint(capsys, base, tmp_path / "x", "--to", "peft", "--base", base)
    assert main(["port", str(base), str(tmp_path / "bare"), "--to", "faisca"]) == 0
    capsys.readouterr()
    assert "has no adapter" in complaint(capsys, tmp_path / "bare", tmp_path / "x", "--to", "peft", "--base", base)
    folder = peft_adapter(tmp_path / "peft", base)
    capsys.readouterr()
    assert "not to hf" in complaint(capsys, folder, tmp_path / "x", "--to", "hf", "--base", base)
    assert main(["merge", str(tmp_path / "nothing")]) == 2


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_matrices_that_others_have_in_another_way_are_refused(family, tmp_path, tokenizer, capsys):
    if family == "gpt2":
        base, words = gpt2_folder(tmp_path / "base", tokenizer), "GPT-2's"
        adapter = Adapter(2, 2.0, 0.0, ("query", "up"))
    else:
        base, words = family_folder(tmp_path / "base", family, tokenizer), "of experts"
        adapter = Adapter(2, 2.0, 0.0, ("query", "experts"))
    adapted_run(tmp_path / "run", base, adapter)
    capsys.readouterr()
    assert words in complaint(capsys, tmp_path / "run", tmp_path / "peft", "--to", "peft", "--base", base)


def test_a_damaged_file_is_refused(tmp_path, base, capsys):
    folder = peft_adapter(tmp_path / "peft", base)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    capsys.readouterr()
    assert "cannot be read" in complaint(capsys, folder, tmp_path / "run", "--to", "faisca", "--base", base)
    shutil.rmtree(folder)
    assert "is no checkpoint" in complaint(capsys, folder, tmp_path / "run", "--to", "peft", "--base", base)
