"""Porting: mixtures of experts, as Mixtral, OLMoE and Qwen3-MoE have them; all families: test_porting_families.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import small_sentencepiece as small
from small_families import FAMILIES, MIXTURES, family_folder, require_refusal
from small_models import TWINS, open_twin, read_lines
from small_ports import complaint, edit_json, same_model, small_run, small_tokenizer, torch, transformers

from faisca.cli import main
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.parameters import initial_parameters
from faisca.porting import libraries
from faisca.porting.formats import Portable, model_config
from faisca.porting.huggingface import config_json, layout_of
from faisca.porting.layouts import experts
from faisca.porting.port import port, read_source
from faisca.system.tensors import Tensors

pytest.importorskip("mlx_lm", reason="mlx_lm is missing")
pytestmark = pytest.mark.xdist_group("families")

MIXTURE = {"norm": "rms", "positions": "rope", "activation": "swiglu", "feed_forward_bias": False, "num_experts": 4}
KINDS = (("float32", "pickle"), ("bfloat16", "shards"), ("float16", "pickled shards"), ("bfloat16", "one file"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


# --- in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
@pytest.mark.parametrize("family", MIXTURES)
def test_experts_come_in_exactly_from_every_kind_of_file(tmp_path, tokenizer, family, dtype, kind):
    """As transformers' own class has them: gates above ups. A pickle has its stacks, other files the hub's names."""
    folder = family_folder(tmp_path / "in", family, tokenizer, dtype, kind)
    source = read_source(folder)
    assert source.dtype == dtype and f"a Hugging Face {family} folder" in source.found
    tensors = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for i in range(2):
        ours = f"transformer_blocks.{i}.feed_forward"
        gate, up = tensors[f"model.layers.{i}.mlp.experts.gate_up_proj"].chunk(2, dim=1)
        expected = {"experts.gate": gate, "experts.up": up, "router": tensors[f"model.layers.{i}.mlp.gate.weight"]}
        expected |= {"experts.down": tensors[f"model.layers.{i}.mlp.experts.down_proj"]}
        for name, tensor in expected.items():
            assert np.array_equal(source.parameters[f"{ours}.{name}.weight"], tensor.numpy()), name


def test_the_loss_that_balances_comes_in_and_goes_out(tmp_path, tokenizer):
    """Theirs is the weight of E · Σ f · P with f a share of tokens, and not of choices: as many times ours."""
    folder = family_folder(tmp_path / "in", "olmoe", tokenizer, router_aux_loss_coef=0.01)
    model = read_source(folder).model
    assert (model.balance_weight, model.router_z_weight) == (0.03, 0.001)
    routed = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

    theirs = float(load_balancing_loss_func((torch.tensor(routed),), 5, 3))
    twin = pytest.importorskip("faisca_torch.experts")
    ours = float(twin.router_loss([torch.tensor(routed)], model, 1.0)[1]["balance_loss"])
    assert theirs == pytest.approx(3 * ours, rel=1e-5)
    assert config_json(read_source(folder))["router_aux_loss_coef"] == 0.01


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_moe, as wide", "olmoe", "olmoe, normalised", "mixtral"])
def test_a_ported_family_is_normalised_as_it_says(tmp_path, tokenizer, family):
    source = read_source(family_folder(tmp_path / "in", family, tokenizer)).model
    assert source.normalise_experts == (family in ("mixtral", "olmoe, normalised", "qwen3_moe, as wide"))
    assert (source.hidden_dim, source.expert_dim) == (40, 16 if family == "qwen3_moe" else 0)


def test_olmoe_has_norms_of_all_heads(tmp_path, tokenizer):
    source = read_source(family_folder(tmp_path / "in", "olmoe", tokenizer))
    shapes = [source.parameters[f"transformer_blocks.0.attention.{n}_norm.weight"].shape for n in ("query", "key")]
    assert source.model.qk_norm_over == "all" and shapes == [(24,), (12,)]


def test_a_router_as_wide_as_it_is_high_is_not_turned(tmp_path, tokenizer):
    folder = family_folder(tmp_path / "in", "qwen3_moe", tokenizer, num_experts=24)
    theirs = safetensors.torch.load_file(folder / "model.safetensors")["model.layers.0.mlp.gate.weight"]
    found = read_source(folder).parameters["transformer_blocks.0.feed_forward.router.weight"]
    assert np.array_equal(found, theirs.numpy()) and not np.array_equal(found, theirs.numpy().T)


def restacked(folder: Path, by: str) -> None:
    """The folder's weights as transformers 5 computes with them, or as mlx-lm converts them."""
    if by == "transformers":
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, save_original_format=False)
        return
    from mlx_lm.convert import convert

    convert(str(folder), str(folder.with_name("converted")), dtype="float32")
    shutil.copy(folder.with_name("converted") / "model.safetensors", folder)


@pytest.mark.parametrize("by", ["transformers", "mlx_lm"])
@pytest.mark.parametrize("family", MIXTURES)
def test_stacks_of_both_libraries_come_in(tmp_path, tokenizer, family, by):
    folder = family_folder(tmp_path / "in", family, tokenizer)
    before = read_source(shutil.copytree(folder, tmp_path / "before"))
    base = json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_theta"]
    edit_json(folder / "config.json", num_experts=before.model.num_experts, rope_theta=base)  # which mlx-lm asks for
    restacked(folder, by)
    names = list(safetensors.torch.load_file(folder / "model.safetensors"))
    assert len([name for name in names if "experts" in name or "switch_mlp" in name]) == 2 * {"mlx_lm": 3}.get(by, 2)
    done = port(folder, tmp_path / "run", "faisca")
    same_model(before, done.source)
    assert done.answered_by == by and [row.library for row in done.comparisons] == ["faisca_torch", "faisca_mlx"]
    assert by == "transformers" or any("transformers does not answer" in note for note in done.notes)


def test_a_stack_is_read_once_for_all_of_its_experts():
    model = model_config({**MIXTURE, "vocabulary_size": 9, "dim": 8, "num_heads": 2, "num_layers": 1}, "test")
    name, reads = "model.layers.0.mlp.experts.gate_up_proj", list[str]()
    stack = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    theirs = Tensors({name: stack.shape}, lambda name: (reads.append(name), stack)[1], {name: "float32"})
    named = experts.named(theirs, model)
    found = [named[f"model.layers.0.block_sparse_moe.experts.{i}.w3.weight"] for i in range(4)]
    assert np.array_equal(np.stack(found), stack[:, 3:]) and reads == [name]


def test_mlx_lm_answers_alone_for_what_transformers_wrote(tmp_path, tokenizer, monkeypatch):
    """Its Qwen3-MoE wants `num_experts`, and transformers 5 writes `num_local_experts`."""
    folder = family_folder(tmp_path / "in", "qwen3_moe", tokenizer)
    assert "num_experts" not in json.loads((folder / "config.json").read_text())
    monkeypatch.setattr(libraries, "importable", lambda name: name != "transformers")
    assert port(folder, tmp_path / "run", "faisca").answered_by == "mlx_lm"


# --- out, and round trips -------------------------------------------------------------------------

OURS = {
    "mixtral": {"expert_dim": 16, "tie_embeddings": True, "balance_weight": 0.03, "dropout": 0.1},
    "olmoe": {"qk_norm": True, "qk_norm_over": "all", "normalise_experts": False, "experts_per_token": 3},
    "qwen3_moe": {"qk_norm": True, "head_dim": 6, "expert_dim": 8, "router_z_weight": 0.0, "tie_embeddings": True},
}


@pytest.mark.parametrize("family", OURS)
def test_a_mixture_of_ours_goes_out_and_comes_back_bit_by_bit(tmp_path, tokenizer, family):
    run = small_run(tmp_path / "run", tokenizer, **MIXTURE, **OURS[family], num_kv_heads=1, initial_range=0.2)
    done = port(run, tmp_path / "out", "hf")
    assert [row.library for row in done.comparisons] == ["transformers", "mlx_lm"]
    assert all(row.largest_logit_difference < 1e-4 and not row.unsettled for row in done.comparisons)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == family and config["architectures"] == [experts.CLASSES[family]]
    assert "4 experts each, of which a token goes through" in (tmp_path / "out" / "README.md").read_text()
    same_model(read_source(run), read_source(tmp_path / "out"))


@pytest.mark.parametrize("family", MIXTURES)
def test_one_way_through_every_format_in_halves(tmp_path, tokenizer, family):
    at = family_folder(tmp_path / "in", family, tokenizer, "bfloat16")
    first, theirs = read_source(at), safetensors.torch.load_file(at / "model.safetensors")
    for format, name in (("torch", "a.safetensors"), ("mlx", "b.safetensors"), ("faisca", "c"), ("hf", "d")):
        port(at, tmp_path / name, format, verify=False, dtype="auto" if format == "faisca" else "bfloat16")
        at = tmp_path / name
        same_model(first, read_source(at))
    ours = safetensors.torch.load_file(at / "model.safetensors")
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_half_is_verified(tmp_path, tokenizer):
    folder = family_folder(tmp_path / "in", "mixtral", tokenizer)
    done = port(folder, tmp_path / "out", "hf", dtype="bfloat16")
    assert [row.library for row in done.comparisons] == ["transformers", "mlx_lm"]


@pytest.mark.parametrize(("family", "style"), [("mixtral", "mistral"), ("olmoe", "unigram"), ("qwen3_moe", "llama 2")])
def test_tokenizers_of_other_kinds_travel(tmp_path, tokenizer, family, style):
    kind = {"vocab_size": small.TOKENS, "bos_token_id": 1, "eos_token_id": 2}
    folder = small.write(family_folder(tmp_path / "in", family, tokenizer, **kind), small.files(style))
    port(folder, tmp_path / "run", "faisca", verify=False)
    done = port(tmp_path / "run", tmp_path / "out", "hf")
    assert [(row.library, row.equal_texts) for row in done.comparisons] == [("transformers", 9), ("mlx_lm", 9)]
    same_model(read_source(folder), read_source(tmp_path / "out"))


@pytest.mark.parametrize("name", TWINS)
def test_a_ported_mixture_is_trained_on(tmp_path, tokenizer, name):
    open_twin(name)
    port(family_folder(tmp_path / "in", "olmoe", tokenizer), tmp_path / "run", "faisca", verify=False)
    common = ["--preset", "tiny", "--backend", name, "--device", "cpu"]
    steps = ["--sft.max-steps", "3", "--sft.batch-size", "4", "--sft.warmup-steps", "0"]
    assert main(["sft", "--from", str(tmp_path / "run"), "--out", str(tmp_path / "tuned"), *common, *steps]) == 0
    steps = ["--grpo.steps", "2", "--grpo.group-size", "4", "--grpo.minibatch-size", "4", "--grpo.max-new-tokens", "8"]
    assert main(["grpo", "--from", str(tmp_path / "tuned"), "--out", str(tmp_path / "better"), *common, *steps]) == 0
    losses = [line for line in read_lines(tmp_path / "tuned" / "metrics.jsonl") if "expert_load_max" in line]
    assert losses and all(line["dropped_share"] == 0 and 1 <= line["expert_load_max"] <= 5 / 3 for line in losses)
    before, after = (read_source(tmp_path / run).parameters for run in ("run", "better"))
    for part in ("router", "experts.gate", "experts.up", "experts.down"):
        key = f"transformer_blocks.1.feed_forward.{part}.weight"
        assert np.isfinite(after[key]).all() and not np.array_equal(before[key], after[key]), part
    port(tmp_path / "better", tmp_path / "out", "hf")


# --- what is refused, by name ---------------------------------------------------------------------

REFUSED = {
    "layers without experts": ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step 2 is refused"),
    "some layers without": ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers [0] is refused"),
    "nothing on weights": ("qwen3_moe", {"norm_topk_prob": None}, "has no norm_topk_prob"),
    "no number of experts": ("mixtral", {"num_local_experts": None}, "has no num_local_experts"),
    "two numbers": ("olmoe", {"num_local_experts": 7}, "num_experts 5 and num_local_experts 7 contradict"),
    "more experts than there are": ("mixtral", {"num_local_experts": 5}, "experts.4.w1.weight is missing"),
    "fewer": ("olmoe", {"num_experts": 4}, "mlp.experts.4.down_proj.weight is unknown"),
    "more than all for a token": ("olmoe", {"num_experts_per_tok": 6}, "experts_per_token 6 is more than"),
    "another width": ("qwen3_moe", {"moe_intermediate_size": 24}, "gate_proj.weight has shape [16, 24]"),
    "a width that transformers does not multiply": (
        "mixtral",
        {"intermediate_size": 36},
        "intermediate_size 36 is refused",
    ),
    "noise": ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise 0.1 is refused"),
    "clipped": ("olmoe", {"clip_qkv": 8.0}, "clip_qkv 8.0 is refused"),
    "a window": ("mixtral", {"sliding_window": 16}, "with max_position_embeddings 16 in place of 48"),
    "a wide head": ("mixtral", {"head_dim": 8}, "head_dim 8 is refused"),
    "scaling that mlx-lm leaves out": (
        "qwen3_moe",
        {"rope_parameters": {**FAMILIES["llama 3"][1]["rope_parameters"]}},
        "does not scale its rotation",
    ),
    "experts of a Llama": ("mixtral", {"model_type": "llama"}, "num_local_experts 4 is refused"),
    "Qwen2-MoE": ("qwen3_moe", {"model_type": "qwen2_moe"}, "model_type 'qwen2_moe' is refused"),
    "DeepSeek": ("qwen3_moe", {"model_type": "deepseek_v3"}, "model_type 'deepseek_v3' is refused"),
}


@pytest.mark.parametrize(("family", "change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_we_do_not_compute_is_refused_by_name(tmp_path, tokenizer, capsys, family, change, words):
    require_refusal(tmp_path, tokenizer, capsys, family, change, words)


HOMELESS = {
    "a shared expert": ({"shared_expert_dim": 9}, "model.shared_expert_dim 9"),
    "shares of all without norms": ({"normalise_experts": False}, "model.normalise_experts False without"),
    "a wide head": ({"head_dim": 10}, "model.head_dim 10"),
    "scaling that mlx-lm leaves out": ({"rope_factor": 4.0}, "model.rope_factor 4"),
    "biases": ({"attention_bias": True}, "model.attention_bias"),
    "a width that transformers lacks": ({"expert_dim": 12}, "model.expert_dim 12 (no multiple of 8)"),
    "another activation": ({"activation": "relu2"}, "model.activation relu2"),
    "a soft cap": ({"logit_soft_cap": 9.0}, "model.logit_soft_cap 9"),
    "bigrams": ({"bigram_rows": 30}, "model.bigram_rows 30"),
}


@pytest.mark.parametrize(("options", "words"), HOMELESS.values(), ids=HOMELESS)
def test_a_mixture_that_no_family_computes_does_not_go_out_but_to_weights(tmp_path, tokenizer, capsys, options, words):
    run = small_run(tmp_path / "run", tokenizer, **{**MIXTURE, **options})
    line = complaint(capsys, run, tmp_path / "out", "--to", "hf")
    assert f"a Mixtral, OLMoE or Qwen3-MoE has not {words}" in line and not (tmp_path / "out").exists()
    port(run, tmp_path / "x.npz", "mlx", verify=False)
    same_model(read_source(run), read_source(tmp_path / "x.npz"))


def test_random_mixtures_have_a_family_that_computes_them_or_are_refused(tmp_path, tokenizer):
    """The layout says what it lacks: what it says it has, both libraries compute."""
    draws, written = np.random.default_rng(0), set()
    choices = {
        **{"qk_norm": [True, False], "normalise_experts": [True, False], "head_dim": [0, 6], "rope_factor": [1.0, 4.0]},
        **{"attention_bias": [True, False], "attention_output_bias": ["auto", "off"], "num_kv_heads": [0, 1]},
        **{"tie_embeddings": [True, False], "expert_dim": [0, 8], "experts_per_token": [1, 4]},
    }
    for i in range(120):
        options = {name: values[draws.integers(len(values))] for name, values in choices.items()}
        options["qk_norm_over"] = "all" if options["qk_norm"] and draws.integers(2) else "head"
        sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 24, "context": 24, "vocabulary_size": 300}
        model = model_config({**MIXTURE, **sizes, **options}, "test")
        portable = Portable("faisca", "made here", model, initial_parameters(model, i), tokenizer, {})
        try:
            layout_of(portable)
        except FaiscaError:
            continue
        kind = (config_json(portable)["model_type"], model.attention_bias, model.rope_factor)
        if kind in written:
            continue
        written.add(kind)
        run = small_run(tmp_path / f"run{i}", tokenizer, **{**MIXTURE, **sizes, **options})
        port(run, tmp_path / f"out{i}", "hf")
    assert {family for family, *_ in written} == set(MIXTURES)
    assert ("olmoe", True, 4.0) in written or ("olmoe", True, 1.0) in written
