"""Rungs 2 to 7 on random architectures: any options together, other ones in each run.

The seed is printed in the summary of each run; `ARCHITECTURES_SEED=N` repeats one.
"""

import os
from typing import Any

import numpy as np
import pytest
from cases import PAIRED, TWINS, make_case
from close import require_close
from hypothesis import HealthCheck, assume, example, given, seed, settings
from hypothesis import strategies as st
from reference import Reference
from reference_experts import CLEAR, narrowest_choice
from test_04_gradients import reference_gradients, require_same
from test_05_optimizer import compare_moments

from faisca.backend import Sampling
from faisca.config import OptimizerConfig
from faisca.parity.cases import Case
from faisca.parity.rungs import gradients, learner_parameters, logits, policy_steps, train
from faisca.parity.sampling import agreement

SEED = int(os.environ.get("ARCHITECTURES_SEED") or int.from_bytes(os.urandom(3)))
PARTS, EXAMPLES = 4, 15
WAYS = (Sampling(0.0, 0, 1.0, 12), Sampling(0.8, 20, 0.9, 12))
EVERYTHING = {
    **{"norm": "rms", "positions": "rope", "activation": "swiglu", "qk_norm": True, "tie_embeddings": True},
    **{"num_heads": 6, "num_kv_heads": 2, "head_dim": 10, "attention_bias": True, "attention_output_bias": "off"},
    **{"rope_factor": 4.0, "rope_original_context": 32, "rope_base": 300.0, "feed_forward_bias": False},
}


@st.composite
def architectures(draw: Any) -> dict[str, Any]:
    """Options of ModelConfig that go together."""
    of = lambda *choices: draw(st.sampled_from(choices))  # noqa: E731
    groups, shared_by = of(1, 2, 3), of(1, 2, 4)
    options: dict[str, Any] = {"num_heads": groups * shared_by, "num_kv_heads": groups if shared_by > 1 else 0}
    options |= {"positions": of("learned", "rope"), "norm": of("layer", "rms"), "qk_norm": of(False, True)}
    options |= {"qk_norm_over": of("head", "all")} if options["qk_norm"] else {}
    options |= {"activation": of("gelu", "gelu_tanh", "swiglu", "relu2"), "tie_embeddings": of(False, True)}
    options |= {"attention_bias": of(False, True), "attention_output_bias": of("auto", "on", "off")}
    options |= {"feed_forward_bias": of(False, True), "norm_epsilon": of(1e-6, 1e-5, 1e-2)}
    options |= {"logit_soft_cap": of(0.0, 0.0, 3.0, 30.0), "bigram_rows": of(0, 0, 13)}
    options |= {"head_dim": of(4, 6, 10, 16), "dim": of(8, 15, 24, 36), "hidden_dim": of(7, 40)}
    options |= {"num_layers": of(1, 2, 3), "vocabulary_size": of(31, 101), "num_experts": of(0, 0, 2, 5)}
    if options["num_experts"]:
        options |= {"feed_forward_bias": False, "experts_per_token": of(1, 2), "expert_dim": of(0, 9)}
        options |= {"shared_expert_dim": of(0, 0, 5), "normalise_experts": of(True, False)}
    if options["positions"] == "rope":
        options |= {"rope_base": of(100.0, 10_000.0, 500_000.0), "rope_factor": of(1.0, 8.0)}
        options |= {"rope_original_context": of(16, 8192)}
    return options


@pytest.mark.parametrize("part", range(PARTS))
def test_random_architectures(part: int, record_property: Any):
    record_property("seed of the random architectures", SEED)

    @seed(SEED + part)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @example(options=EVERYTHING)
    @given(options=architectures())
    def climb(options: dict[str, Any]) -> None:
        case = make_case(rows=4, length=16, steps=1, **options)
        reference = Reference(case.model, case.parameters)
        reference.hidden_states(case.batch()[0])
        assume(narrowest_choice(reference.routed, case.model) > CLEAR)
        for twin in TWINS:
            compare_with_the_reference(twin, case)
        for twin in PAIRED:
            compare_twins(twin, case)

    climb()


def compare_with_the_reference(twin: Any, case: Case) -> None:
    """Logits, the loss and the gradient of every parameter."""
    inputs, targets = case.batch()
    reference = Reference(case.model, case.parameters)
    require_close({"logits": reference.logits(inputs)}, logits(twin.side, case), 1e-5)
    loss = twin.side.backend.evaluate(model=case.make_model(twin.side), inputs=inputs, targets=targets)
    assert loss == pytest.approx(reference.losses(inputs, targets).sum(), rel=1e-6)
    require_same(case, reference_gradients(case), gradients(twin.side, case), 1e-5)


def compare_twins(twin: Any, case: Case) -> None:
    """A step of AdamW and of Muon, clipped and decayed; GRPO's; and samples: with a cache, against rows without."""
    for optimizer in ("adamw", "muon"):
        compare_steps(twin, case, optimizer)
    require_close(policy_steps(TWINS[0].side, case), policy_steps(twin.side, case), 1e-4)
    for sampling in WAYS:
        outcome = agreement(TWINS[0].side, twin.side, case, sampling, rows=6)
        assert not outcome.wrong, (sampling, outcome.wrong)


def compare_steps(twin: Any, case: Case, optimizer: str) -> None:
    common = {"epsilon": 1e-4, "warmup_steps": 0, "clip_norm": 0.1}
    config, found = OptimizerConfig(optimizer=optimizer, schedule="constant", **common), []
    for side in (TWINS[0].side, twin.side):
        learner, _ = train(side, case, config, steps=1)
        weights = learner_parameters(side, learner)
        change = np.concatenate([(weights[name] - value).ravel() for name, value in case.parameters.items()])
        found.append((side.backend.get_optimizer_state(learner=learner), {"change of the weights": change}))
    (one_state, one_change), (two_state, two_change) = found
    if not (case.model.attention_bias and case.model.positions == "learned"):  # else keys' biases have only noise
        compare_moments(one_state, two_state)
    require_close(one_change, two_change, 1e-3, "norm")
