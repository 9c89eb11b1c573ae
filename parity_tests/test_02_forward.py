"""Rung 2: the same hidden states after each block, and the same logits, as two independent oracles too."""

from typing import Any

import numpy as np
import pytest
from cases import GPT2, LLAMA, MIXTURE, OPTIONS, STRETCHED, Twin, make_case, option_id
from close import require_close
from reference import Reference

from faisca.backend import Sampling
from faisca.config import ModelConfig
from faisca.parity.cases import Case, Side
from faisca.parity.rungs import logits

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama 2": LLAMA | {"family": "Llama", "num_kv_heads": 0},
    "Llama 3": LLAMA | STRETCHED | {"family": "Llama"},
    "tied, with other heads": LLAMA | {"family": "Llama", "tie_embeddings": True, "head_dim": 10},
    "Mistral": LLAMA | {"family": "Mistral"},
    "Qwen2.5": LLAMA | {"family": "Qwen2", "attention_bias": True, "attention_output_bias": "off"},
    "Qwen3": LLAMA | {"family": "Qwen3", "qk_norm": True, "head_dim": 10},
    "Mixtral": LLAMA | MIXTURE | {"family": "Mixtral", "expert_dim": 0},
    "OLMoE": LLAMA
    | MIXTURE
    | {"family": "Olmoe", "qk_norm": True, "qk_norm_over": "all", "expert_dim": 0, "normalise_experts": False},
    "OLMoE, normalised": LLAMA
    | MIXTURE
    | {"family": "Olmoe", "qk_norm": True, "qk_norm_over": "all", "expert_dim": 0, "num_kv_heads": 0},
    "Qwen3-MoE": LLAMA
    | MIXTURE
    | {"family": "Qwen3Moe", "qk_norm": True, "expert_dim": 16, "normalise_experts": False},
}
UNUSED = np.zeros((4, 8), np.float32)
"""what greedy sampling draws nothing from"""


def states(twin: Twin, case: Case) -> dict[str, np.ndarray]:
    """Hidden states by where they were met."""
    found = twin.inside.hidden_states(case.make_model(twin.side), case.batch()[0])
    return {f"after block {i}": value for i, value in enumerate(found)}


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_hidden_states_and_logits_against_the_reference(twin: Twin, options: dict):
    case = make_case(**options)
    reference = Reference(case.model, case.parameters)
    expected = {f"after block {i}": value for i, value in enumerate(reference.hidden_states(case.batch()[0]))}
    require_close(expected, states(twin, case), 1e-5)
    require_close({"logits": reference.logits(case.batch()[0])}, logits(twin.side, case), 1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_hidden_states_and_logits_between_twins(yardstick: Side, other: Twin, options: dict):
    case = make_case(**options)
    require_close(states(Twin("torch", "cpu"), case), states(other, case), 1e-5)
    require_close(logits(yardstick, case), logits(other.side, case), 1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=option_id)
def test_torch_in_float64_against_the_reference(yardstick: Side, options: dict):
    case = make_case(**options)
    wide = {name: value.astype(np.float64) for name, value in case.parameters.items()}
    model = yardstick.backend.make_model(config=case.model, parameters=wide, runtime=yardstick.open())
    found = Twin("torch", "cpu").inside.hidden_states(model, case.batch()[0])
    expected = Reference(case.model, case.parameters).hidden_states(case.batch()[0])
    assert found[0].dtype == np.float64
    for one, two in zip(expected, found, strict=True):
        require_close({"hidden": one}, {"hidden": two}, 1e-10)


@pytest.mark.parametrize("options", [{}, GPT2, {"attention_bias": True}, {"tie_embeddings": True}], ids=option_id)
def test_logits_against_hugging_face(twin: Twin, options: dict):
    """`GPT2LMHeadModel`, which others wrote, with our weights."""
    transformers = pytest.importorskip("transformers", reason="transformers, the third oracle, is not installed")
    case = make_case(**options)
    config = case.model
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocabulary_size,
            n_positions=config.context,
            n_embd=config.dim,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.hidden_dim,
            activation_function={"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation],
            layer_norm_epsilon=config.norm_epsilon,
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    missing, expected = their_logits(model, hugging_face_weights(case), case)
    assert set(missing) <= {"lm_head.weight"} | {n for n in missing if n.endswith("attn.bias")}
    require_close({"logits": expected}, logits(twin.side, case), 1e-5)


def their_logits(model: Any, weights: dict[str, np.ndarray], case: Case) -> tuple[list[str], np.ndarray]:
    """Names of weights that a model of transformers' was not given, and its logits of the case's batch."""
    import torch

    values = {name: torch.tensor(value) for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(values, strict=False)
    assert not unexpected
    with torch.no_grad():
        return missing, model(torch.tensor(case.batch()[0].astype(np.int64))).logits.numpy()


def hugging_face_weights(case: Case) -> dict[str, np.ndarray]:
    """Our weights under GPT-2's names; its Conv1D holds matrices transposed."""
    ours, dim = case.parameters, case.model.dim
    theirs = {"transformer.wte.weight": ours["token_embedding.weight"]}
    theirs["transformer.wpe.weight"] = ours["positional_embedding.weight"]
    linear = {
        "attention.in_proj": "attn.c_attn",
        "attention.out_proj": "attn.c_proj",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    for i in range(case.model.num_layers):
        here, there = f"transformer_blocks.{i}", f"transformer.h.{i}"
        for kind in ("weight", "bias"):
            for norm, name in (("norm1", "ln_1"), ("norm2", "ln_2")):
                theirs[f"{there}.{name}.{kind}"] = ours[f"{here}.{norm}.{kind}"]
        for name, name_there in linear.items():
            weight = ours[f"{here}.{name}.weight"]
            theirs[f"{there}.{name_there}.weight"] = np.ascontiguousarray(weight.T)
            theirs[f"{there}.{name_there}.bias"] = ours.get(f"{here}.{name}.bias", np.zeros(len(weight), np.float32))
    assert theirs["transformer.h.0.attn.c_attn.weight"].shape == (dim, 3 * dim)
    for kind in ("weight", "bias"):
        theirs[f"transformer.ln_f.{kind}"] = ours[f"final_layer_norm.{kind}"]
    head = "token_embedding.weight" if case.model.tie_embeddings else "out_head.weight"
    return theirs | {"lm_head.weight": ours[head]}


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
def test_logits_against_hugging_faces_own_classes(twin: Twin, options: dict):
    """Llama 3, Qwen2.5, Qwen3 and mixtures as `transformers` computes them, with our weights."""
    transformers = pytest.importorskip("transformers", reason="transformers, the third oracle, is not installed")
    family, options = options["family"], {k: v for k, v in options.items() if k != "family"}
    case = make_case(**options)
    config = case.model
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_base}
    if config.rope_factor > 1:
        rope |= {"rope_type": "llama3", "factor": config.rope_factor}
        rope |= {"low_freq_factor": config.rope_low_frequency, "high_freq_factor": config.rope_high_frequency}
        rope |= {"original_max_position_embeddings": config.rope_original_context}
    theirs = getattr(transformers, f"{family}Config")(
        vocab_size=config.vocabulary_size,
        max_position_embeddings=config.context,
        hidden_size=config.dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_width,
        intermediate_size=config.hidden_dim,
        hidden_act="silu",
        rms_norm_eps=config.norm_epsilon,
        attention_bias=config.attention_bias,
        tie_word_embeddings=config.tie_embeddings,
        rope_parameters=rope,
        **their_experts(config),
    )
    model = getattr(transformers, f"{family}ForCausalLM")(theirs).eval()
    missing, expected = their_logits(model, llama_weights(case), case)
    assert missing == ["lm_head.weight"] * config.tie_embeddings
    require_close({"logits": expected}, logits(twin.side, case), 1e-5)


def their_experts(config: ModelConfig) -> dict[str, Any]:
    """What configurations of Mixtral, OLMoE and Qwen3-MoE call our options of experts."""
    if not config.num_experts:
        return {}
    return {
        "num_local_experts": config.num_experts,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "moe_intermediate_size": config.expert_width,
        "norm_topk_prob": config.normalise_experts,
    }


def llama_weights(case: Case) -> dict[str, np.ndarray]:
    """Our weights under Llama's names, which Qwen has too."""
    config, theirs = case.model, {}
    names = {"token_embedding": "model.embed_tokens", "final_layer_norm": "model.norm", "out_head": "lm_head"}
    inner = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "attention.out_proj": "self_attn.o_proj"}
    inner |= {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}
    inner |= {f"feed_forward.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    inner |= {"feed_forward.router": "mlp.gate"}
    for name, value in case.parameters.items():
        module, _, kind = name.rpartition(".")
        if module in names:
            theirs[f"{names[module]}.{kind}"] = value
            continue
        _, block, module = module.split(".", 2)
        there = f"model.layers.{block}"
        if module == "attention.in_proj":
            parts = np.split(value, np.cumsum([config.num_heads, config.kv_heads]) * config.head_width)
            theirs |= {f"{there}.self_attn.{n}_proj.{kind}": part for n, part in zip("qkv", parts, strict=True)}
        elif module in ("feed_forward.experts.gate", "feed_forward.experts.up"):
            key = f"{there}.mlp.experts.gate_up_proj"  # both in one stack, the gate first
            theirs[key] = np.concatenate([theirs[key], value], axis=1) if key in theirs else value
        elif module == "feed_forward.experts.down":
            theirs[f"{there}.mlp.experts.down_proj"] = value
        else:
            theirs[f"{there}.{inner[module]}.{kind}"] = value
    return theirs


def test_a_position_sees_only_what_came_before(twin: Twin):
    case = make_case()
    tokens = case.batch()[0]
    changed = tokens.copy()
    changed[:, 10:] = (changed[:, 10:] + 1) % case.model.vocabulary_size
    model = case.make_model(twin.side)
    one, two = (twin.side.backend.logits(model=model, tokens=t) for t in (tokens, changed))
    assert np.allclose(one[:, :10], two[:, :10], atol=1e-5)
    assert np.abs(one[:, 10:] - two[:, 10:]).max() > 0.1


def test_explicit_attention_computes_the_same(twin: Twin):
    """Scores, softmax and product one by one: whole windows, and position by position with a cache."""
    case, backend = make_case(**LLAMA), twin.side.backend
    model = case.make_model(twin.side, attention="explicit")
    tokens = case.batch()[0]
    expected = Reference(case.model, case.parameters).logits(tokens)
    require_close({"logits": expected}, {"logits": backend.logits(model=model, tokens=tokens)}, 1e-5)
    prompts, greedy = tokens[:, :5].tolist(), Sampling(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=8)
    written = [
        np.stack(
            list(
                backend.generate(
                    model=one, prompts=prompts, uniforms=UNUSED, sampling=greedy, end_of_text=(0,), log_probs=None
                )
            )
        )
        for one in (model, case.make_model(twin.side))
    ]
    assert (written[0] == written[1]).all()


def test_more_tokens_than_the_context_are_refused(twin: Twin):
    case = make_case()
    tokens = np.zeros((1, case.model.context + 1), np.int32)
    with pytest.raises(ValueError, match="33 positions do not fit the context of 32"):
        twin.side.backend.logits(model=case.make_model(twin.side), tokens=tokens)
