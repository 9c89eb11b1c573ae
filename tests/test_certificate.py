"""The parts of the certificate without a twin: what is compared and how, what is given to both sides, what is tried."""

from dataclasses import replace

import numpy as np
import pytest

from faisca.backend import Runtime, Sampling
from faisca.certificate.alternatives import alternatives
from faisca.certificate.certify import Certificate
from faisca.certificate.compare import SENSITIVITY_TIMES, TOLERANCES, Finding, compare, judge_alone
from faisca.certificate.observe import Observation, safe_ratio
from faisca.certificate.rollout import misses
from faisca.certificate.work import ENOUGH_TOKENS, LAST_PLACE, Work, nudged, uneven
from faisca.config import GRPOConfig, ModelConfig, RunConfig
from faisca.config.files import load_preset
from faisca.parameters import initial_parameters
from faisca.training.preflight import stage_work

MODEL = ModelConfig(context=16, dim=8, num_layers=1, num_heads=2, hidden_dim=8, vocabulary_size=50)
WEIGHTS = uneven(initial_parameters(MODEL, 0), 0)
CPU = Runtime("torch", "cpu", "float32", False)


def observed(kind: str, **arrays: list[float]) -> Observation:
    return Observation(kind, "step", {name: np.array(values, np.float32) for name, values in arrays.items()})


def distance(kind: str, expected: list[float], found: list[float]) -> float:
    ((finding),) = compare(observed(kind, x=expected), observed(kind, x=found))
    return finding.distance


def test_distances_are_in_the_measure_of_their_kind():
    assert distance("gradient", [3.0, 4.0], [3.0, 4.5]) == pytest.approx(0.1)
    assert distance("log-probabilities", [-2.0, -4.0], [-2.0, -4.4]) == pytest.approx(0.1)
    assert distance("loss", [4.0], [4.4]) == pytest.approx(0.1)
    assert distance("loss", [0.0], [0.1]) == pytest.approx(0.1)  # nats, where there is no scale
    assert distance("gradient", [0.0], [0.0]) == 0


def test_what_is_not_finite_or_of_another_shape_is_infinitely_far():
    for found in ([np.nan, 1.0], [np.inf, 1.0], [1.0]):
        assert distance("gradient", [1.0, 1.0], found) == np.inf
    (finding,) = judge_alone(observed("rollout", x=[np.nan]))
    assert finding.distance == np.inf and not finding.passes("float32")


def test_weights_are_compared_by_how_they_were_moved():
    before = {"x": np.array([1.0, 1.0], np.float32)}
    left, right, still = (
        replace(observed("weights", x=x), before=before) for x in ([1.1, 1.0], [1.0, 1.1], [1.0, 1.0])
    )
    assert next(compare(left, left)).distance == 0
    assert next(compare(left, right)).distance == pytest.approx(2**0.5, rel=1e-3)
    assert next(compare(left, still)).distance == pytest.approx(1, rel=1e-3)


def test_a_small_gradient_is_measured_against_all_of_them():
    expected, found = observed("gradient", big=[1e4], small=[1.0]), observed("gradient", big=[1e4], small=[1.5])
    assert [f.distance for f in compare(expected, found)] == pytest.approx([0, 0.5])
    tiny, off = observed("gradient", big=[1e4], small=[1e-6]), observed("gradient", big=[1e4], small=[3e-6])
    assert [f.distance for f in compare(tiny, off)] == pytest.approx([0, 2e-6])


def test_zero_where_the_cpu_has_a_gradient_never_passes():
    (finding,) = compare(observed("gradient", x=[1.0, 2.0]), observed("gradient", x=[0.0, 0.0]))
    assert finding.zero and "zero throughout" in finding.words("float32")
    assert not replace(finding, sensitivity=10.0).passes("bfloat16")
    (both,) = compare(observed("gradient", x=[0.0]), observed("gradient", x=[0.0]))
    assert not both.zero and both.passes("float32")


def test_a_sensitive_model_is_allowed_more():
    finding = Finding("gradient", "step", "x", (1,), 0.5, False)
    assert not finding.passes("bfloat16")
    assert replace(finding, sensitivity=0.51 / SENSITIVITY_TIMES).passes("bfloat16")
    assert not replace(finding, sensitivity=0.49 / SENSITIVITY_TIMES).passes("bfloat16")


@pytest.mark.parametrize("kind", TOLERANCES)
def test_tolerances_grow_with_what_is_rounded(kind: str):
    tolerance = TOLERANCES[kind]
    assert 0 < tolerance.float32 <= tolerance.tf32 <= tolerance.bfloat16 < 1


def certificate(distances: list[float], dtype: str = "float32") -> Certificate:
    findings = tuple(Finding("gradient", "step", f"x{i}", (2,), d, False) for i, d in enumerate(distances))
    return Certificate(replace(CPU, dtype=dtype), "the CPU", findings)


def test_a_precision_is_told_from_a_fault():
    assert certificate([1e-3] * 9 + [1e-6]).precision == "tf32" and certificate([1e-3] * 10).passed
    one = certificate([1e-3] + [1e-6] * 9)
    assert one.precision == "float32" and not one.passed and "x0 [2]" in one.reason
    far = certificate([1e-3] * 9 + [0.5])
    assert far.precision == "float32" and not far.passed and far.failures[0].array == "x9"
    assert certificate([1e-3] * 10, "bfloat16").precision == "bfloat16"


def test_the_reason_is_of_the_first_step_that_fails():
    findings = [Finding("loss", f"step {i}", "loss", (), distance, False) for i, distance in ((1, 0.1), (2, 0.9))]
    assert "step 1" in Certificate(CPU, "the CPU", tuple(findings)).reason


# --- what both sides are given --------------------------------------------------------------------


def test_a_batch_of_copies_has_each_distinct_row_as_often():
    work = Work("pretrain", MODEL, WEIGHTS, rows=96, length=16, seed=3)
    assert work.distinct == ENOUGH_TOKENS // 16
    counts = np.bincount(work.copies(0))
    assert set(counts) == {96 // work.distinct} and len(counts) == work.distinct
    assert (work.copies(0) != work.copies(2)).any() and (work.copies(0) == work.copies(0)).all()
    assert (work.batch(0, 4)[0] != work.batch(1, 4)[0]).any()


@pytest.mark.parametrize(("rows", "length", "distinct"), [(1, 16, 1), (7, 16, 7), (16, 256, 2), (61, 256, 61)])
def test_copies_divide_the_rows(rows: int, length: int, distinct: int):
    assert Work("pretrain", MODEL, WEIGHTS, rows, length, 0).distinct == distinct


def test_the_cpu_gets_fewer_rows_of_the_same():
    work = Work("pretrain", MODEL, WEIGHTS, rows=64, length=256, seed=0)
    assert work.on("mps") is work
    assert (work.on("cpu").rows, work.on("cpu").distinct) == (4, work.distinct)
    assert Work("pretrain", MODEL, WEIGHTS, rows=3, length=16, seed=0).on("cpu").rows == 3


def test_weights_that_are_all_equal_are_made_uneven_and_no_others():
    fresh = initial_parameters(MODEL, 0)
    for name, value in WEIGHTS.items():
        same = np.array_equal(value, fresh[name])
        assert same == ("norm" not in name and not (name.endswith("bias") and not fresh[name].any())), name


def test_a_nudge_is_a_last_place():
    for dtype, place in LAST_PLACE.items():
        ratio = nudged(WEIGHTS, dtype, 0)["out_head.weight"] / WEIGHTS["out_head.weight"].astype(np.float64) - 1
        assert np.abs(ratio) == pytest.approx(place, rel=1e-3) and 0.2 < (ratio > 0).mean() < 0.8


def test_the_ratio_is_far_from_every_edge():
    assert safe_ratio(GRPOConfig()) == 1
    assert abs(safe_ratio(GRPOConfig(clip_low=0.0, clip_high=0.0)) - 1) > 0.05


def test_a_stage_s_work_has_the_shapes_of_its_steps():
    config = load_preset("faisca")
    model = replace(config.model, vocabulary_size=300)
    weights = initial_parameters(model, 0)
    train, grpo = (stage_work(config, model, stage, weights, 3) for stage in ("pretrain", "grpo"))
    assert (train.rows, train.length, train.grpo) == (16, 256, None)
    assert (grpo.rows, grpo.length, grpo.prompt) == (12, 96, 3)
    assert train.still_model.dropout == train.still_model.attention_dropout == 1e-12


def test_misses_are_zero_for_the_token_that_is_drawn_and_its_distance_else():
    logits = np.log(np.array([[[0.5, 0.25, 0.25]]]))
    sampling = Sampling(1.0, 0, 1.0, 1)
    missed = [misses(logits, np.array([[t]]), np.array([[0.6]]), sampling)[0, 0] for t in range(3)]
    assert missed == pytest.approx([0.1, 0, 0.15])
    greedy = Sampling(0.0, 0, 1.0, 1)
    assert misses(logits, np.array([[0]]), np.array([[0.9]]), greedy) == 0
    assert misses(logits, np.array([[1]]), np.array([[0.0]]), greedy) == pytest.approx(0.5)
    only = Sampling(1.0, 1, 1.0, 1)
    assert misses(logits, np.array([[0]]), np.array([[0.9]]), only) == 0


# --- what is tried --------------------------------------------------------------------------------


def test_alternatives_come_in_their_order_and_change_what_they_say():
    runtime = replace(CPU, compile=True, loss_chunk=128)
    found = list(alternatives(RunConfig(), runtime))
    assert [words for words, _ in found][:-1] == [
        "loss chunks of 256 rows",
        "loss chunks of 64 rows",
        "no compilation",
        "explicit attention",
        "gradient checkpointing on",
    ]
    changes = [{k: v for k, v in vars(c).items() if v != getattr(RunConfig(), k)} for _, c in found]
    assert changes[0] == {"loss_chunk": 256} and changes[2] == {"compile": "off"}
    assert changes[-1] == {"loss_chunk": 64, "compile": "off", "attention": "explicit"}
    assert all(config.dtype == RunConfig().dtype for _, config in found)
