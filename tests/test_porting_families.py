"""Porting: Llama and its kin, mixtures of experts too, in and out, in every dtype and kind of file; and refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
from small_families import FAMILIES, KINDS, LLAMA3, MIXTURES, family_folder, require_refusal
from small_ports import complaint, edit_json, same_model, small_run, small_tokenizer, torch, transformers

import faisca
from faisca.cli import main
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.parameters import initial_parameters
from faisca.porting.formats import Portable, model_config
from faisca.porting.huggingface import config_json, layout_of
from faisca.porting.libraries import open_exported
from faisca.porting.port import port, read_source
from faisca.porting.verify import TEXTS
from faisca.runs.checkpoint import load_checkpoint

pytest.importorskip("mlx_lm", reason="mlx_lm is missing")
pytestmark = pytest.mark.xdist_group("families")

WRITTEN = {"llama": "llama", "mistral": "llama", "qwen2": "llama", "qwen3": "qwen3"}
WRITTEN |= {family: family for family in MIXTURES}
"""the family that each goes out as, with a tokenizer of ours"""
DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


# --- in and out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_comes_in_and_goes_out_again(tmp_path, tokenizer, family):
    folder = family_folder(tmp_path / "in", family, tokenizer)
    done = port(folder, tmp_path / "run", "faisca")
    assert done.answered_by == "transformers"
    assert [row.library for row in done.comparisons] == ["faisca_torch", "faisca_mlx"]
    again = port(tmp_path / "run", tmp_path / "out", "hf")
    assert [row.library for row in again.comparisons] == ["transformers", "mlx_lm"]
    for row in (*done.comparisons, *again.comparisons):
        assert row.largest_logit_difference < 1e-4 and not row.unsettled and row.texts == row.equal_texts == len(TEXTS)
    same_model(read_source(folder), read_source(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == WRITTEN[family.split()[0].rstrip(",")] and "model_file" not in config
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in files and not {name for name in files if name.endswith(".py")}  # no glue
    theirs, ours = (safetensors.torch.load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert all(torch.equal(ours.pop(name), tensor) for name, tensor in theirs.items())
    assert family == "qwen2" or not ours
    assert not any(zeros.any() for zeros in ours.values())  # of Qwen2, which goes out as a Llama


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_in_every_kind_of_file_comes_in_exactly(tmp_path, tokenizer, dtype, kind):
    for family in ("llama 3", "qwen2", "qwen3", "mistral"):
        folder = family_folder(tmp_path / family, family, tokenizer, dtype, kind)
        assert (kind == "one file") == (folder / "model.safetensors").is_file()
        assert ("shards" in kind) == bool(list(folder.glob("*.index.json")))
        source = read_source(folder)
        assert source.dtype == dtype and dtype in source.found
        tensors = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        parts = [tensors[f"model.layers.1.self_attn.{part}_proj.weight"].numpy() for part in "qkv"]
        in_proj = source.parameters["transformer_blocks.1.attention.in_proj.weight"]
        assert in_proj.dtype == np.float32 and np.array_equal(in_proj, np.concatenate(parts))
        down = source.parameters["transformer_blocks.0.feed_forward.down.weight"]
        assert np.array_equal(down, tensors["model.layers.0.mlp.down_proj.weight"].numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_halves_go_out_as_they_came_in_bit_by_bit(tmp_path, tokenizer, dtype):
    folder = family_folder(tmp_path / "in", "mistral", tokenizer, dtype)
    for format, name in (("hf", "out"), ("torch", "a.safetensors"), ("mlx", "b.safetensors")):
        done = port(folder, tmp_path / name, format)
        assert done.dtype == dtype and all(row.largest_logit_difference < 1e-4 for row in done.comparisons)
        same_model(read_source(folder), read_source(tmp_path / name))
        assert read_source(tmp_path / name).dtype == dtype
    theirs, ours = (safetensors.torch.load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("target", ["out", "x.safetensors", "y.safetensors", "z.npz"])
def test_a_narrower_target_is_rounded_to_the_nearest_and_verified_as_such(tmp_path, tokenizer, dtype, target):
    folder = family_folder(tmp_path / "in", "llama", tokenizer)
    format = {"o": "hf", "x": "torch", "y": "mlx", "z": "mlx"}[target[0]]
    if dtype == "bfloat16" and target == "z.npz":
        with pytest.raises(FaiscaError, match="NumPy's format has none"):
            port(folder, tmp_path / target, format, dtype=dtype)
        return
    done = port(folder, tmp_path / target, format, dtype=dtype)
    assert done.dtype == dtype and done.answered_by == "transformers"
    assert all(row.largest_logit_difference < 1e-4 for row in done.comparisons)
    (moved,) = [float(note.split("up to ")[1].split(";")[0]) for note in done.notes if "rounding to" in note]
    assert 1e-4 < moved < 1
    before, after = read_source(folder), read_source(tmp_path / target)
    for name, array in before.parameters.items():
        expected = torch.tensor(array).to(getattr(torch, dtype)).float().numpy()
        assert np.array_equal(after.parameters[name], expected), name


def test_what_a_half_cannot_hold_is_refused(tmp_path, tokenizer, capsys):
    folder = family_folder(tmp_path / "in", "llama", tokenizer)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = 70_000
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    line = complaint(capsys, folder, tmp_path / "out", "--to", "hf", "--dtype", "float16", "--no-verify")
    assert "7e+04 is too large for float16" in line and "--dtype float32 or bfloat16" in line
    line = complaint(capsys, folder, tmp_path / "run", "--to", "faisca", "--dtype", "float16")
    assert "--dtype float16 does not go with --to faisca" in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_one_way_through_every_format(tmp_path, tokenizer):
    at = family_folder(tmp_path / "in", "qwen3", tokenizer)
    first = read_source(at)
    for format, name in (("torch", "a.safetensors"), ("mlx", "b.npz"), ("faisca", "c"), ("hf", "d"), ("faisca", "e")):
        port(at, tmp_path / name, format, verify=False)
        at = tmp_path / name
        same_model(first, read_source(at))


@pytest.mark.parametrize("family", ["llama 3", "qwen2"])
def test_the_base_of_the_rotation_stands_in_both_places(tmp_path, tokenizer, family):
    """transformers 5 reads one of them, mlx-lm the other, and each is silent about what it misses."""
    folder = family_folder(tmp_path / "in", family, tokenizer)
    config = config_json(read_source(folder))
    base = 500.0 if family == "llama 3" else 1e6
    assert config.get("rope_theta") == config["rope_parameters"]["rope_theta"] == base
    if family == "llama 3":
        assert config["rope_parameters"] == config.get("rope_scaling") == LLAMA3
    else:
        assert "rope_scaling" not in config


OLD = {
    "rope_theta alone": {"rope_theta": 500.0, "rope_scaling": None},
    "a scaling beside it": {
        "rope_theta": 500.0,
        "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
    },
    "the type's old name": {"rope_theta": 500.0, "rope_scaling": {"type": "default"}},
    "both places": {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "no base, as Llama's first": {},
}


@pytest.mark.parametrize("old", OLD)
def test_older_configurations_of_the_rotation_are_read(tmp_path, tokenizer, old):
    folder = family_folder(tmp_path / "in", "llama", tokenizer)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config | OLD[old]))
    done = port(folder, tmp_path / "run", "faisca")  # transformers reads the same
    model = done.source.model
    assert model.rope_base == (500 if OLD[old] else 10_000) and model.rope_factor == (4 if "beside" in old else 1)


def test_a_tied_head_is_known_by_the_weights_where_nothing_says_it(tmp_path, tokenizer):
    for family, is_tied in (("llama 3", True), ("llama", False)):
        folder = family_folder(tmp_path / family, family, tokenizer)
        edit_json(folder / "config.json", tie_word_embeddings=is_tied)
        config = json.loads((folder / "config.json").read_text())
        del config["tie_word_embeddings"]
        (folder / "config.json").write_text(json.dumps(config))
        assert read_source(folder).model.tie_embeddings == is_tied


def test_an_imported_llama_is_fine_tuned_and_its_files_travel(tmp_path, tokenizer, capsys):
    folder = family_folder(tmp_path / "in", "llama", tokenizer)
    beside = {"chat_template.jinja": b"{{ messages }}\n", "special_tokens_map.json": b'{"eos_token": "<|endoftext|>"}'}
    for name, content in beside.items():
        (folder / name).write_bytes(content)
    port(folder, tmp_path / "run", "faisca", verify=False)
    common = ["--preset", "tiny", "--backend", "torch", "--device", "cpu", "--sft.max-steps", "2"]
    assert main(["sft", "--from", str(tmp_path / "run"), "--out", str(tmp_path / "tuned"), *common]) == 0
    before, after = load_checkpoint(tmp_path / "run"), load_checkpoint(tmp_path / "tuned")
    name = "transformer_blocks.1.attention.in_proj.weight"
    assert before.state.model == after.state.model
    assert not np.array_equal(before.parameters[name], after.parameters[name])
    port(tmp_path / "tuned", tmp_path / "out", "hf")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in beside} == beside
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "tuned"), "-n", "1"]) == 0 and capsys.readouterr().out


def test_presets_of_today_go_out(tmp_path, tokenizer):
    """The same sizes in Llama's layout, as a run of faisca's own has them."""
    options = {"norm": "rms", "positions": "rope", "activation": "swiglu", "feed_forward_bias": False}
    run = small_run(tmp_path / "run", tokenizer, **options, num_kv_heads=1, initial_range=0.02, dropout=0.1)
    done = port(run, tmp_path / "out", "hf")
    assert [row.library for row in done.comparisons] == ["transformers", "mlx_lm"]
    same_model(read_source(run), read_source(tmp_path / "out"))
    assert "A Llama-style decoder" in (tmp_path / "out" / "README.md").read_text()


# --- a tokenizer that is not ours -----------------------------------------------------------------


@pytest.fixture
def chatty(tmp_path) -> Path:
    """A folder as SmolLM2's: special tokens first, digits apart, two ends of text, a chat template."""
    import tokenizers

    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    digits, byte_level = tokenizers.pre_tokenizers.Digits(individual_digits=True), tokenizers.pre_tokenizers.ByteLevel
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level(add_prefix_space=False)])
    engine.decoder = tokenizers.decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = byte_level.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=310, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator(["Governo anuncia novas medidas para 2024"] * 3, trainer)
    folder, ours = tmp_path / "chatty", small_tokenizer(engine.get_vocab_size())
    family_folder(folder, "llama", ours, bos_token_id=1, eos_token_id=2, vocab_size=engine.get_vocab_size())
    engine.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"})
    )
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    edit_json(folder / "generation_config.json", eos_token_id=[2, 0])
    return folder


def test_a_tokenizer_of_another_kind_comes_in_and_goes_out_as_it_is(chatty, tmp_path):
    done = port(chatty, tmp_path / "run", "faisca")
    assert done.source.tokenizer.kind == "json" and done.source.tokenizer.end_of_text == 2
    again = port(tmp_path / "run", tmp_path / "out", "hf")
    assert [list(row.end_of_text_ids) for row in again.comparisons] == [[0, 2], [0, 2]]
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (chatty / name).read_bytes(), name
    same_model(read_source(chatty), read_source(tmp_path / "out"))
    assert faisca.load(tmp_path / "run", backend="torch").generate("Governo", temperature=0, max_new_tokens=3)
    reader = open_exported("transformers", tmp_path / "out")
    ours = read_source(tmp_path / "run").tokenizer
    for text in (*TEXTS, "<|im_end|> 2024"):
        assert ours.encode(text) == reader.encode(text) and ours.decode(ours.encode(text)) == text
    titles = ["Governo 2024", "<|im_end|>"]
    expected = [i for title in titles for i in [*ours.encode(title), 2]]
    assert ours.encode_titles(titles).tolist() == expected
    assert ours.bytes_per_token()[ours.encode("ação")].sum() == 6


def test_qwen2_goes_out_as_such_where_its_tokenizer_is_read_as_it_is(chatty, tmp_path):
    """transformers reads every tokenizer of a qwen2 as one that composes characters (NFC), as Qwen's own does."""
    tokens = json.loads((chatty / "config.json").read_text())["vocab_size"]
    family_folder(tmp_path / "in", "qwen2", small_tokenizer(), vocab_size=tokens)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(chatty / file, tmp_path / "in" / file)
    edit_json(tmp_path / "in" / "config.json", eos_token_id=2)
    edit_json(tmp_path / "in" / "generation_config.json", eos_token_id=2)
    for normalizer, family in (({"type": "NFC"}, "qwen2"), (None, "llama")):
        edit_json(tmp_path / "in" / "tokenizer.json", normalizer=normalizer)
        done = port(tmp_path / "in", tmp_path / family, "hf")
        assert [row.library for row in done.comparisons] == ["transformers", "mlx_lm"]
        assert json.loads((tmp_path / family / "config.json").read_text())["model_type"] == family
        same_model(read_source(tmp_path / "in"), read_source(tmp_path / family))


def test_an_end_of_text_that_only_the_configuration_names_travels(chatty, tmp_path):
    (chatty / "tokenizer_config.json").unlink()
    (chatty / "generation_config.json").unlink()
    port(chatty, tmp_path / "run", "faisca")
    assert read_source(tmp_path / "run").tokenizer.end_of_text == 2
    port(tmp_path / "run", tmp_path / "x.safetensors", "torch")
    assert read_source(tmp_path / "x.safetensors").tokenizer.end_of_text == 2
    port(tmp_path / "x.safetensors", tmp_path / "out", "hf")


BAD_TOKENIZERS = {
    "no end": (
        lambda f: (
            [edit_json(f / n, eos_token_id=None) for n in ("config.json", "generation_config.json")]
            + [(f / "tokenizer_config.json").unlink()]
        ),
        "nothing says which token ends a text",
    ),
    "an unknown end": (lambda f: edit_json(f / "tokenizer_config.json", eos_token="<nope>"), "eos_token '<nope>'"),
    "two ends that differ": (lambda f: edit_json(f / "config.json", eos_token_id=1), "eos_token_id 1 is not"),
    "an ordinary end": (lambda f: edit_json(f / "tokenizer_config.json", eos_token="a"), "is none of its added tokens"),
    "a broken companion": (lambda f: (f / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is no JSON"),
    "a companion that is a list": (lambda f: (f / "tokenizer_config.json").write_text("[]"), "holds no JSON object"),
    "another decoder": (
        lambda f: edit_json(f / "tokenizer.json", decoder={"type": "Fuse"}),
        "does not give text back: 'A b'",
    ),
}


@pytest.mark.parametrize(("spoil", "words"), BAD_TOKENIZERS.values(), ids=BAD_TOKENIZERS)
def test_a_tokenizer_that_does_not_fit_is_refused(chatty, tmp_path, capsys, spoil, words):
    spoil(chatty)
    assert words in complaint(capsys, chatty, tmp_path / "run", "--to", "faisca")


def test_a_padded_vocabulary_comes_in(tmp_path, tokenizer):
    """As Qwen's: more rows than tokens, and a multiple of 64; any other number is a wrong tokenizer."""
    folder = family_folder(tmp_path / "in", "qwen2", tokenizer, vocab_size=320)
    port(folder, tmp_path / "run", "faisca")
    assert load_checkpoint(tmp_path / "run").state.model.vocabulary_size == 320


# --- what is refused, by name ---------------------------------------------------------------------

REFUSED = {
    "another family": ("llama", {"model_type": "gemma"}, "model_type 'gemma' is refused: what comes in is gpt2, llama"),
    "a list for a family": ("llama", {"model_type": ["llama"]}, "model_type ['llama'] is refused"),
    "a window": ("mistral", {"sliding_window": 16}, "with max_position_embeddings 16 in place of 48"),
    "Qwen's window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "sliding_window 8 is refused"),
    "sliding layers": ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types 'sliding"),
    "linear scaling": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
    "dynamic scaling": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
    "YaRN": ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is refused"),
    "LongRoPE": ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type 'longrope' is refused"),
    "two bases": ("llama", {"rope_theta": 9.0}, "rope_theta 9.0 and rope_parameters.rope_theta 300.0 contradict"),
    "two scalings": ("llama", {"rope_scaling": LLAMA3}, "contradict each other"),
    "a scaling that lacks a number": (
        "llama",
        {"rope_parameters": {k: v for k, v in LLAMA3.items() if k != "factor"}},
        "has no factor",
    ),
    "a scaling with another number": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "mscale": 2.0}},
        "rope_parameters.mscale is refused",
    ),
    "part of a head turned": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is refused"),
    "part of a head, inside": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.25}},
        "rope_parameters.partial_rotary_factor 0.25",
    ),
    "neighbours turned": ("llama", {"rope_interleaved": True}, "rope_interleaved True is refused"),
    "another gate": ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu' is refused"),
    "slices": ("llama", {"pretraining_tp": 2}, "pretraining_tp 2 is refused"),
    "quantised": ("llama", {"quantization_config": {"bits": 4}}, "quantised: port the folder it was made from"),
    "quantised by mlx-lm": ("llama", {"quantization": {"bits": 4}}, "quantised: port the folder it was made from"),
    "capped scores": ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is refused"),
    "capped logits": ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is refused"),
    "scaled residuals": ("llama", {"residual_multiplier": 0.2}, "residual_multiplier 0.2 is refused"),
    "scaled logits": ("llama", {"logits_scaling": 8.0}, "logits_scaling 8.0 is refused"),
    "experts": ("llama", {"num_local_experts": 8}, "num_local_experts 8 is refused"),
    "layers without rotation": ("llama", {"no_rope_layers": [1, 0]}, "no_rope_layers [1, 0] is refused"),
    "heads that do not divide": ("llama", {"num_key_value_heads": 3}, "num_kv_heads 3 does not divide"),
    "no epsilon": ("llama", {"rms_norm_eps": None}, "has no rms_norm_eps"),
    "no base": ("qwen2", {"rope_parameters": None}, "has no rope_theta"),
    "no width of heads": ("qwen3", {"head_dim": None}, "has no head_dim"),
    "a wide head of Qwen2": ("qwen2", {"head_dim": 8}, "head_dim 8 is refused"),
    "more layers": ("llama", {"num_hidden_layers": 3}, "weight model.layers.2"),
    "a bias that is missing": ("llama", {"attention_bias": True}, "self_attn.q_proj.bias is missing"),
    "biases that are not named": ("llama with biases", {"mlp_bias": False}, "_proj.bias is unknown"),
    "more heads": ("llama", {"num_key_value_heads": 4}, "self_attn.k_proj.weight has shape [12, 24]"),
    "a head that is missing": ("llama 3", {"tie_word_embeddings": False}, "lm_head.weight is missing"),
    "a head that differs": ("llama", {"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens"),
    "a text for a number": ("llama", {"num_attention_heads": "4"}, "num_heads '4'"),
}


@pytest.mark.parametrize(("family", "change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_we_do_not_compute_is_refused_by_name(tmp_path, tokenizer, capsys, family, change, words):
    require_refusal(tmp_path, tokenizer, capsys, family, change, words)


def test_quantised_weights_are_refused_even_where_nothing_says_it(tmp_path, tokenizer, capsys):
    folder = family_folder(tmp_path / "bad", "llama", tokenizer)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    line = complaint(capsys, folder, tmp_path / "run", "--to", "faisca")
    assert "model.norm.weight is int8" in line and "from the folder it was made from" in line
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "F8_E4M3" in complaint(capsys, folder, tmp_path / "run", "--to", "faisca")


def test_a_key_that_nobody_knows_is_said(tmp_path, tokenizer, capsys):
    folder = family_folder(tmp_path / "in", "llama", tokenizer)
    plain = port(folder, tmp_path / "plain", "faisca", verify=False)
    assert not [note for note in plain.notes if "nothing is known" in note]  # of all that transformers writes
    edit_json(folder / "config.json", wings=2)
    assert main(["port", str(folder), str(tmp_path / "run"), "--to", "faisca", "--no-verify"]) == 0
    assert "nothing is known here of wings" in capsys.readouterr().out


LLAMA = {"norm": "rms", "positions": "rope", "activation": "swiglu", "feed_forward_bias": False}
HOMELESS = {
    "squares": ({"activation": "relu2"}, "a GPT-2 has not model.activation relu2"),
    "GPT-2 with rotation": ({"positions": "rope"}, "a GPT-2 has not model.positions rope"),
    "GPT-2 with groups": ({"num_kv_heads": 1}, "a GPT-2 has not model.num_kv_heads 1"),
    "Llama with means": ({**LLAMA, "norm": "layer"}, "a Llama or Qwen has not model.norm layer"),
    "Llama without a gate": ({**LLAMA, "activation": "gelu"}, "a Llama or Qwen has not model.activation gelu"),
    "an output's bias alone": ({**LLAMA, "attention_output_bias": "on"}, "attention_output_bias without"),
    "Llama with another width": ({**LLAMA, "num_heads": 3, "head_dim": 8}, "model.head_dim 8"),
    "a soft cap": ({**LLAMA, "logit_soft_cap": 30.0}, "model.logit_soft_cap 30"),
    "bigrams": ({**LLAMA, "bigram_rows": 30}, "a Llama or Qwen has not model.bigram_rows 30"),
    "GPT-2 with bigrams": ({"bigram_rows": 30}, "a GPT-2 has not model.bigram_rows 30"),
    "all heads' norm without experts": ({**LLAMA, "qk_norm": True, "qk_norm_over": "all"}, "model.qk_norm_over all"),
    "Qwen3 with biases": ({**LLAMA, "qk_norm": True, "attention_bias": True}, "attention_bias with model.qk_norm"),
}


@pytest.mark.parametrize(("options", "words"), HOMELESS.values(), ids=HOMELESS)
def test_a_model_that_no_family_computes_does_not_go_out_but_to_weights(tmp_path, tokenizer, capsys, options, words):
    run = small_run(tmp_path / "run", tokenizer, **options)
    line = complaint(capsys, run, tmp_path / "out", "--to", "hf")
    assert words in line and "--to torch, mlx or faisca" in line and not (tmp_path / "out").exists()
    port(run, tmp_path / "x.npz", "mlx")
    same_model(read_source(run), read_source(tmp_path / "x.npz"))


def test_random_models_have_a_family_that_computes_them_or_are_refused(tmp_path, tokenizer):
    """Each layout says what it lacks: what it says it has, both libraries compute."""
    draws = np.random.default_rng(0)
    choices = {
        **{"attention_bias": [True, False], "attention_output_bias": ["auto", "on", "off"], "qk_norm": [True, False]},
        **{
            "feed_forward_bias": [True, False],
            "num_kv_heads": [0, 1],
            "head_dim": [0, 6],
            "tie_embeddings": [True, False],
        },
    }
    written = set()
    for i in range(60):
        options = {name: values[draws.integers(len(values))] for name, values in choices.items()}
        sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 24, "context": 24, "vocabulary_size": 300}
        model = model_config({**LLAMA, **sizes, **options}, "test")
        portable = Portable("faisca", "made here", model, initial_parameters(model, i), tokenizer, {})
        try:
            layout_of(portable)
        except FaiscaError:
            continue
        family = config_json(portable)["model_type"]
        kind = (family, model.attention_bias + model.output_bias)
        if kind in written:
            continue
        written.add(kind)
        run = small_run(tmp_path / f"run{i}", tokenizer, **{**LLAMA, **sizes, **options})
        port(run, tmp_path / f"out{i}", "hf")
        shutil.rmtree(run)
    assert {family for family, _ in written} == {"llama", "qwen3"}
