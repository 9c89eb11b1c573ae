"""Rung 3: every loss, whole and in chunks of any size, with targets left out."""

import numpy as np
import pytest
from cases import GPT2, OTHER_LOSS, TWINS, Twin, make_case, option_id
from close import require_close
from reference import Reference, log_softmax

from faisca.parity.cases import Side
from faisca.parity.rungs import log_probabilities, losses

CHUNKS = [1, 7, 16, 37, 38, 1000]
N, D, V = 37, 12, 53


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states, head and targets; every third target is left out, and token 0 is a target."""
    random = np.random.default_rng(seed)
    targets = random.integers(V, size=N)
    targets[::3], targets[1] = -1, 0
    return random.standard_normal((N, D)).astype(np.float32), random.standard_normal((V, D)).astype(np.float32), targets


@pytest.mark.parametrize("chunk", CHUNKS)
def test_cross_entropy_and_its_gradients(either: Twin, chunk: int):
    hidden, head, targets = inputs()
    log_p = log_softmax(hidden.astype(np.float64) @ head.T.astype(np.float64))
    valid = targets >= 0
    d_logits = np.exp(log_p)
    d_logits[np.arange(N), np.maximum(targets, 0)] -= 1
    d_logits *= valid[:, None]
    expected = {"loss": -log_p[np.arange(N), targets][valid].sum(), "d hidden": d_logits @ head}
    expected["d head"] = d_logits.T @ hidden
    found = dict(zip(expected, either.inside.cross_entropy(hidden, head, targets, chunk), strict=True))
    require_close(expected, found, 1e-6)


@pytest.mark.parametrize("bonus", [0.0, 0.7], ids=["", "entropies"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_log_probabilities_and_their_gradients(
    twin: Twin, chunk: int, temperature: float, keep: bool, bonus: float, monkeypatch: pytest.MonkeyPatch
):
    """With exponentials that are kept for the gradient, and with those that are computed again; of entropies, too."""
    monkeypatch.setattr(f"faisca_{twin.name}.log_probs.KEPT_EXPONENTIALS", 2**26 if keep else 0)
    hidden, head, targets = inputs()
    targets, upstream = np.maximum(targets, 0), np.linspace(-1, 2, N).astype(np.float32)
    log_p = log_softmax(hidden.astype(np.float64) @ head.T.astype(np.float64) / temperature)
    d_logits = -np.exp(log_p)
    d_logits[np.arange(N), targets] += 1
    d_logits *= upstream[:, None] / temperature
    entropy, bonuses = -(np.exp(log_p) * log_p).sum(1), bonus * np.linspace(1, -1, N).astype(np.float32)
    d_logits -= bonuses[:, None] / temperature * np.exp(log_p) * (log_p + entropy[:, None])
    expected = {
        "log p": log_p[np.arange(N), targets],
        "entropy": entropy,
        "d hidden": d_logits @ head,
        "d head": d_logits.T @ hidden,
    }
    more = (bonuses,) if bonus else ()
    values = twin.inside.log_probs(hidden, head, targets, temperature, chunk, upstream, *more)
    require_close(expected, dict(zip(expected, values, strict=True)), 2e-6)


def test_every_chunk_size_gives_the_same_loss(either: Twin):
    """With gradients and without; 10**6 is one chunk of all rows."""
    hidden, head, targets = inputs()
    chunks = [*CHUNKS, 64, 10**6]
    values = [either.inside.cross_entropy(hidden, head, targets, chunk)[0] for chunk in chunks]
    values += [either.inside.loss(hidden, head, targets, chunk) for chunk in chunks]
    require_close({"losses": np.full(len(values), values[0])}, {"losses": np.array(values)}, 1e-6)


def test_fused_gradients_over_the_originals_vocabulary(yardstick: Side):
    """MLX's fallback on the CPU adds 50,257 exponentials otherwise: 8e-7 measured, 4e-8 where they are in blocks."""
    twins = [Twin("torch", "cpu"), *(twin for twin in [*TWINS, *OTHER_LOSS] if twin.name == "mlx")]
    random = np.random.default_rng(0)
    hidden, head = (random.standard_normal((rows, 32)).astype(np.float32) for rows in (48, 50_257))
    targets = random.integers(50_257, size=48)
    targets[::3] = -1
    found = [
        dict(zip(("loss", "hidden", "head"), twin.inside.cross_entropy(hidden, head / 6, targets, 16), strict=True))
        for twin in twins
    ]
    for other in found[1:]:
        require_close(found[0], other, 2e-6)


def test_logits_far_from_zero_overflow_nowhere(either: Twin):
    """Adding 1000 to all logits of a place changes no log-probability."""
    hidden, head, targets = inputs()
    hidden, head = np.append(hidden, np.ones((N, 1), np.float32), 1), np.append(head, np.zeros((V, 1), np.float32), 1)
    shifted = np.append(head[:, :-1], np.full((V, 1), 1000, np.float32), 1)
    plain, far = (either.inside.cross_entropy(hidden, weight, targets, 16)[0] for weight in (head, shifted))
    assert far == pytest.approx(plain, rel=1e-4)
    one, two = (
        either.inside.log_probs(hidden, weight, np.maximum(targets, 0), 1.0, 16, np.ones(N, np.float32))[0]
        for weight in (head, shifted)
    )
    assert np.abs(one - two).max() < 1e-3


def test_uniform_logits_give_the_logarithm_of_the_vocabulary(twin: Twin):
    hidden, _, targets = inputs()
    log_p, entropy, *_ = twin.inside.log_probs(
        hidden, np.zeros((V, D), np.float32), np.maximum(targets, 0), 0.7, 16, np.ones(N, np.float32)
    )
    require_close(
        {"log p": np.full(N, -np.log(V)), "entropy": np.full(N, np.log(V))}, {"log p": log_p, "entropy": entropy}, 1e-6
    )


def test_all_targets_left_out_is_zero(either: Twin):
    hidden, head, targets = inputs()
    loss, d_hidden, d_head = either.inside.cross_entropy(hidden, head, np.full_like(targets, -1), 16)
    assert loss == 0 and not d_hidden.any() and not d_head.any()


@pytest.mark.parametrize("options", [{}, GPT2], ids=option_id)
@pytest.mark.parametrize("chunk", [5, 10_000])
def test_evaluation_and_token_log_probs_against_the_reference(either: Twin, options: dict, chunk: int):
    case = make_case(**options)
    reference, (tokens, targets) = Reference(case.model, case.parameters), case.batch()
    targets = targets.copy()
    targets[0, :7] = -1
    model = case.make_model(either.side, loss_chunk=chunk)
    total = either.side.backend.evaluate(model=model, inputs=tokens, targets=targets)
    assert total == pytest.approx(reference.losses(tokens, targets).sum(), rel=1e-6)
    found = either.side.backend.token_log_probs(model=model, tokens=tokens, temperature=0.8, places=None)
    assert found.shape == (case.rows, case.length - 1) and found.dtype == np.float32
    require_close({"log p": reference.token_log_probs(tokens, 0.8)}, {"log p": found}, 2e-6)


@pytest.mark.parametrize("options", [{}, GPT2], ids=option_id)
def test_between_twins(yardstick: Side, other: Twin, options: dict):
    case = make_case(**options)
    require_close(losses(yardstick, case), losses(other.side, case), 1e-6)
    require_close(log_probabilities(yardstick, case), log_probabilities(other.side, case), 2e-6)
