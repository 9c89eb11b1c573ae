"""Rung 2: the same hidden states after each block, and the same logits, as two independent oracles too."""

import numpy as np
import pytest
from cases import GPT2, OPTIONS, Twin, make_case, option_id
from close import require_close
from reference import Reference

from faisca.backend import Sampling
from faisca.parity.cases import Case, Side
from faisca.parity.rungs import logits

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
    import torch

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
    values = {name: torch.tensor(value) for name, value in hugging_face_weights(case).items()}
    missing, unexpected = model.load_state_dict(values, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"} | {n for n in missing if n.endswith("attn.bias")}
    with torch.no_grad():
        expected = model(torch.tensor(case.batch()[0].astype(np.int64))).logits.numpy()
    require_close({"logits": expected}, logits(twin.side, case), 1e-5)


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
    case, backend = make_case(num_heads=4), twin.side.backend
    model = case.make_model(twin.side, attention="explicit")
    tokens = case.batch()[0]
    expected = Reference(case.model, case.parameters).logits(tokens)
    require_close({"logits": expected}, {"logits": backend.logits(model=model, tokens=tokens)}, 1e-5)
    prompts, greedy = tokens[:, :5].tolist(), Sampling(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=8)
    written = [
        np.stack(list(backend.generate(model=one, prompts=prompts, uniforms=UNUSED, sampling=greedy, end_of_text=0)))
        for one in (model, case.make_model(twin.side))
    ]
    assert (written[0] == written[1]).all()


def test_more_tokens_than_the_context_are_refused(twin: Twin):
    case = make_case()
    tokens = np.zeros((1, case.model.context + 1), np.int32)
    with pytest.raises(ValueError, match="33 positions do not fit the context of 32"):
        twin.side.backend.logits(model=case.make_model(twin.side), tokens=tokens)
