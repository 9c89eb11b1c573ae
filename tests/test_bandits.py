"""Bandits whose best policy is known: GRPO comes to it, on either twin, whatever the seed."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_bandits import last_reward, learn, reward_file

from faisca.config import GRPOConfig

ONE = "def f(texts):\n    return [float(t == 'h') for t in texts]\n"
PARITY = "def f(texts):\n    return [float(t in ('a', 'c', 'e', 'g', 'i', 'k')) for t in texts]\n"
SEQUENCE = "def f(texts):\n    return [0.5 * (t[:1] == 'c') + 0.5 * (t == 'cg') for t in texts]\n"
ARMS = {"a": "k", "bb": "d", "ccc": "b"}
"""the one good answer to each prompt"""
BANDITS: dict[str, tuple[str, dict[str, Any], int]] = {
    "one token": (ONE, {"max_new_tokens": 1}, 40),
    "several tokens": (PARITY, {"max_new_tokens": 1}, 30),
    "two tokens in a row": (SEQUENCE, {"max_new_tokens": 2}, 60),
    "an arm for each prompt": ("", {"max_new_tokens": 1, "prompts_per_step": 3}, 80),
}
"""reward, options, steps; 1 is the best that a policy can come to"""
SEEDS = [pytest.param(seed, marks=[pytest.mark.full] * (seed > 2)) for seed in range(10)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", BANDITS)
def test_the_best_policy_is_found(twin, name: str, seed: int, tmp_path: Path) -> None:
    body, options, steps = BANDITS[name]
    if body:
        more: dict[str, Any] = {"reward": reward_file(tmp_path, body)}
    else:
        lines = [json.dumps({"prompt": prompt, "arm": arm}) for prompt, arm in ARMS.items()]
        (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
        more = {"prompts_file": str(tmp_path / "prompts.jsonl"), "reward": "exact:arm"}
    rows = 32 * options.get("prompts_per_step", 1)
    grpo = GRPOConfig(group_size=32, minibatch_size=rows, epochs=1, kl_weight=0.0, **options, **more)
    rounds, _ = learn(twin, grpo, steps=steps, rate=2e-2, seed=seed)
    assert rounds[0]["reward_mean"] < 0.7, "it has something to learn"
    assert last_reward(rounds) > 0.95
