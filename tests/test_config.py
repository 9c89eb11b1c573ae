"""Configuration files: presets, layers, round trips, and what a broken file is answered with."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from faisca.config import Config, GRPOConfig, ModelConfig, TrainConfig
from faisca.config.files import (
    PRESETS,
    config_from_dict,
    config_text,
    config_to_dict,
    layered_sections,
    load_preset,
    preset_names,
    preset_summary,
    read_sections,
    sections_of,
    write_config,
)
from faisca.errors import FaiscaError

ODD = Config(
    preset="mine",
    model=ModelConfig(dropout=0, norm_epsilon=1e-7, tie_embeddings=True),
    grpo=GRPOConfig(prompts=("Alerta ", "", 'aspas "e" \\barra\n', "emoji 🔥"), kl_weight=1 / 3),
)


def write(folder: Path, text: str | bytes, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read_config(path: Path, base: Config | None = None) -> Config:
    return Config(**read_sections(path, None if base is None else sections_of(base)))


def complaint(path: Path, base: Config | None = None) -> str:
    with pytest.raises(FaiscaError) as caught:
        read_config(path, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_presets_are_there_and_say_what_they_are_for():
    assert preset_names() == ["apple", "faisca", "modern", "moe", "spark", "tiny"]
    for name in preset_names():
        assert load_preset(name).preset == name
        assert 20 < len(preset_summary(name)) <= 67  # fits in 80 columns of help


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_experts": 2, "experts_per_token": 3, "feed_forward_bias": False}, "try --model.experts-per-token 2"),
        ({"num_experts": 4}, "add --model.no-feed-forward-bias"),
        ({"expert_dim": 9}, "add --model.num-experts 8"),
        ({"qk_norm_over": "all"}, "model.qk_norm_over all means nothing without model.qk_norm: add --model.qk-norm"),
        ({"normalise_experts": False}, "model.normalise_experts False means nothing without experts"),
    ],
)
def test_options_of_experts_that_do_not_go_together(options, words):
    with pytest.raises(FaiscaError, match=words):
        Config(model=ModelConfig(**options))


def test_spark_is_the_dataclass_defaults():
    assert load_preset("spark") == Config()


def test_faisca_has_the_numbers_of_the_original():
    config = load_preset("faisca")
    model, data, pretrain, sft, grpo, sample = (
        *(config.model, config.data, config.pretrain),
        *(config.sft, config.grpo, config.sample),
    )
    assert (model.context, model.dim, model.num_layers, model.num_heads, model.hidden_dim) == (
        256,
        128,
        4,
        4,
        512,
    )
    assert (model.dropout, model.attention_dropout, model.activation, model.tie_embeddings) == (
        0.1,
        0.1,
        "gelu",
        False,
    )
    assert (config.tokenizer.kind, model.attention_bias, model.norm_epsilon) == ("gpt2", False, 1e-5)
    assert (data.source, data.language, data.window, data.stride) == ("hub", "pt", 256, 64)
    for stage in (pretrain, sft):
        assert (stage.batch_size, stage.learning_rate, stage.schedule, stage.warmup_steps) == (
            64,
            3e-4,
            "constant",
            0,
        )
        assert (stage.weight_decay, stage.decay, stage.clip_norm, stage.evaluation_batches) == (
            0.1,
            "all",
            0.0,
            5,
        )
        assert (stage.beta1, stage.beta2, stage.epsilon, stage.max_steps) == (0.9, 0.999, 1e-8, 0)
        assert stage.micro_batch_size == 16
    assert (pretrain.max_titles, pretrain.max_validation_titles, pretrain.url_contains) == (30_000, 6_000, "")
    assert (sft.max_titles, sft.max_validation_titles, sft.url_contains) == (20_000, 4_000, ".pt/")
    assert (pretrain.epochs, pretrain.evaluate_every, sft.epochs, sft.evaluate_every) == (10, 20, 5, 5)
    assert (grpo.prompts, grpo.steps, grpo.epochs, grpo.group_size) == (("Alerta",), 18, 4, 24)
    assert (grpo.max_new_tokens, grpo.minibatch_size, grpo.temperature, grpo.top_k) == (80, 12, 0.8, 0)
    assert (grpo.learning_rate, grpo.schedule, grpo.weight_decay, grpo.clip_norm) == (
        1e-5,
        "constant",
        0.0,
        1.0,
    )
    assert (grpo.clip_low, grpo.clip_high, grpo.kl_weight, grpo.reward) == (0.2, 0.2, 0.02, ("football",))
    assert (grpo.loss, grpo.scale_rewards, grpo.objective, grpo.importance) == (
        "grpo",
        "group",
        "clip",
        "token",
    )
    assert (sample.prompt, sample.max_new_tokens, sample.temperature, sample.top_k) == (
        "Presidente",
        60,
        0.5,
        30,
    )
    assert config.run.seed == 1337


def test_apple_differs_from_faisca_only_where_it_says():
    apple, faisca = config_to_dict(load_preset("apple")), config_to_dict(load_preset("faisca"))
    differing = {
        f"{section}.{name}"
        for section in faisca
        if section != "preset"
        for name in faisca[section]
        if apple[section][name] != faisca[section][name]
    }
    assert differing == {
        *("model.num_heads", "model.attention_dropout"),
        *("pretrain.schedule", "pretrain.warmup_steps", "sft.schedule", "sft.warmup_steps"),
    }
    assert load_preset("apple").model.head_width == 64


def test_tiny_is_tiny():
    tiny = load_preset("tiny")
    assert tiny.model.dim == 32 and tiny.model.num_layers == 2 and tiny.sample.counted == 8
    assert max(tiny.pretrain.max_steps, tiny.sft.max_steps, tiny.grpo.steps) <= 10
    assert min(tiny.pretrain.max_steps, tiny.sft.max_steps) > 0  # 0 would run all epochs


@pytest.mark.parametrize("config", [*map(load_preset, preset_names()), ODD], ids=lambda config: config.preset)
def test_what_is_written_is_read_back(config, tmp_path):
    path = tmp_path / "config.toml"
    write_config(config, path)
    base = dataclasses.replace(Config(), pretrain=TrainConfig(epochs=77, batch_size=6))
    assert read_config(path, base) == config  # the file is complete: nothing of the base is left
    assert config_from_dict(config_to_dict(config)) == config
    assert path.read_text(encoding="utf-8").startswith(f'preset = "{config.preset}"\n')


def test_the_text_states_every_option():
    values = tomllib.loads(config_text(Config()))
    for section in dataclasses.fields(Config):
        if section.name != "preset":
            options = {option.name for option in dataclasses.fields(getattr(Config(), section.name))}
            assert set(values[section.name]) == options


def test_what_a_file_leaves_out_comes_from_its_preset_or_the_base(tmp_path):
    path = write(tmp_path, 'preset = "tiny"\n[pretrain]\nepochs = 9\n')
    assert read_config(path) == dataclasses.replace(
        load_preset("tiny"), pretrain=dataclasses.replace(load_preset("tiny").pretrain, epochs=9)
    )
    unnamed = write(tmp_path, "[model]\nnum_layers = 3\n")
    assert read_config(unnamed).preset == "spark"
    assert read_config(unnamed, load_preset("tiny")).model.dim == 32
    assert read_config(unnamed, load_preset("tiny")).model.num_layers == 3


def test_toml_spellings(tmp_path):
    path = write(tmp_path, b'\xef\xbb\xbf[model]\r\ndropout = 0\r\n[grpo]\r\nprompts = ["a", "\xc3\xa7"]\r\n')
    config = read_config(path)
    assert config.grpo.prompts == ("a", "ç")
    assert type(config.model.dropout) is float


def test_rules_between_values_wait_for_the_last_layer(tmp_path):
    path = write(tmp_path, "[data]\nwindow = 128\n")
    sections = layered_sections(None, path)
    assert sections["data"].window == 128
    sections["model"] = dataclasses.replace(sections["model"], context=128)
    assert Config(**sections).model.context == 128
    assert "data.window 128 is larger than model.context 64" in complaint(path)


def test_a_preset_and_a_file_of_another_disagree(tmp_path):
    path = write(tmp_path, 'preset = "tiny"')
    assert layered_sections("tiny", path)["model"].dim == 32
    with pytest.raises(FaiscaError, match=r"--preset spark disagrees with .*tiny"):
        layered_sections("spark", path)


HOSTILE = {
    "[pretrain]\nepocs = 3": "pretrain.epocs is unknown: did you mean epochs?",
    "[model]\nnum-layers = 3": "model.num-layers is unknown: did you mean num_layers?",
    "[model]\nqqq = 3": "model.qqq is unknown: choose among context, dim, ",
    "[pretrian]\nepochs = 3": "section pretrian is unknown: did you mean pretrain?",
    "seed = 3": "section seed is unknown: did you mean run.seed?",
    "title = 3": "section title is unknown: choose among model, tokenizer, ",
    "model = 3": "model 3 is not a section: write [model]",
    "[[model]]\ndim = 64": "is not a section",
    "[model]\ndim = 'x'": "model.dim 'x' is not a whole number",
    "[model]\ndim = 64.0": "model.dim 64.0 is not a whole number",
    "[model]\ndim = true": "model.dim True is not a whole number",
    "[model]\ndim = 0": "model.dim 0 is out of range: use a number at least 1",
    "[model]\ndim = 2024-01-01": "model.dim datetime.date(2024, 1, 1) is not a whole number",
    "[model]\ntie_embeddings = 1": "model.tie_embeddings 1 is not true or false",
    "[model]\nactivation = 'relu'": "model.activation 'relu' is unknown: choose gelu, gelu_tanh",
    "[grpo]\nreward_weights = ['a']": "grpo.reward_weights ('a',) is not a list of numbers",
    "[grpo]\nreward_weights = [inf]": "has a number that is not finite",
    "[grpo]\nreward_weights = [1, 2]": "grpo.reward_weights has 2 numbers for 1 rewards: give one each",
    "[grpo]\nreward = []": "grpo.reward is empty: name at least one, such as football",
    "[grpo]\nprompts = ['a', 3]": "is not a list of texts",
    "[grpo]\ntemperature = 0": "grpo.temperature 0.0 is out of range",
    "[grpo]\nmicro_batch_size = 5": "grpo.minibatch_size 12 is not a multiple of grpo.micro_batch_size",
    "[grpo]\nbaseline = 'none'": "grpo.scale_rewards group divides by a deviation from a mean, and",
    "[grpo]\nobjective = 'gmpo'\nimportance = 'sequence'": "grpo.importance sequence means nothing with",
    "[grpo]\nimportance = 'sequence'\nobjective = 'reinforce'": "with grpo.objective reinforce: use token",
    "[grpo]\ndelta = 2\nobjective = 'cispo'": "grpo.delta 2 means nothing with grpo.objective cispo: leave it out",
    "[grpo]\ndelta = 1.2": "grpo.delta 1.2 is not above 1 + grpo.clip_high 1.2: choose a larger one",
    "[grpo]\nentropy_weight = -1": "grpo.entropy_weight -1.0 is out of range",
    "[grpo]\nrollout_correction_cap = 0": "grpo.rollout_correction_cap 0.0 is out of range",
    "[pretrain]\nlearning_rate = nan": "pretrain.learning_rate nan is not a finite number",
    "[pretrain]\nlearning_rate = 1" + "0" * 400: "pretrain.learning_rate inf is not a finite number",
    "[run]\nseed = " + "9" * 5000: "holds a value that cannot be read",
    "x = " + "[" * 5000: "holds a value that cannot be read",
    "[run]\nstages = ['sft', 'pretrain']": "run.stages sft,pretrain",
    "preset = 'fasica'": "preset 'fasica' is unknown: did you mean faisca?",
    "preset = '../presets/spark'": "is unknown",
    "preset = 3": "preset 3 is not a text",
    "[model\ndim = 3": "is not valid TOML: ",
    "[model]\ndim =": "is not valid TOML: ",
    "[model]\ndim = 1\ndim = 2\n": "line 3",
    b"[model]\n\xff\xfe": "is not a text in UTF-8 (at byte 8)",
}


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: str(text[:30]))
def test_a_hostile_file_is_answered_in_one_line(text, tmp_path):
    assert HOSTILE[text] in complaint(write(tmp_path, text))


def test_a_complaint_about_a_file_names_it(tmp_path):
    assert complaint(write(tmp_path, "[model]\ndim = 0", "here.toml")).startswith(f"{tmp_path / 'here.toml'}: ")
    assert "No such file" in complaint(tmp_path / "nowhere.toml")
    assert "name a TOML file" in complaint(tmp_path)


def test_a_preset_takes_its_name_from_its_file():
    for path in PRESETS.glob("*.toml"):
        assert "preset" not in tomllib.loads(path.read_text(encoding="utf-8"))


def test_config_from_dict_refuses_unknown_names():
    with pytest.raises(FaiscaError, match=r"run\.sed is unknown: did you mean seed"):
        config_from_dict({"run": {"sed": 3}})


GONE = "model.residual_scales = {}\ndata.windows = {}\npretrain.batch_ramp_steps = {}\nsft.batch_ramp_steps = {}\n"
OFF = ("false", '"stream"', "0", "0")


def test_options_that_went_are_read_where_they_are_off(tmp_path):
    assert read_config(write(tmp_path, GONE.format(*OFF)), ODD) == ODD
    values = config_to_dict(ODD)
    values["model"] |= {"residual_scales": False}
    assert config_from_dict(values) == ODD


@pytest.mark.parametrize(
    ("place", "value", "option"),
    [
        (0, "true", "model.residual_scales True"),
        (0, "0", "model.residual_scales 0"),
        (1, '"headlines"', "data.windows 'headlines'"),
        (2, "200", "pretrain.batch_ramp_steps 200"),
        (3, "1", "sft.batch_ramp_steps 1"),
    ],
)
def test_options_that_went_are_refused_by_name_where_they_are_on(tmp_path, place, value, option):
    values = [*OFF[:place], value, *OFF[place + 1 :]]
    said = complaint(write(tmp_path, GONE.format(*values)))
    assert said.endswith(f"{option}: it was removed: train anew without it, or use an earlier version")
