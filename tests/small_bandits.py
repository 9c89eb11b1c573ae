"""Tasks whose best policy is known, for tiny models: letters are tokens, and a completion is a few of them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from setups import bare_tokenizer, small_setup
from small_models import small_model

from faisca.backend import Backend
from faisca.config import GRPOConfig, RunConfig
from faisca.data.tokenizer import Tokenizer
from faisca.rewards.advantages import group_advantages
from faisca.rewards.samples import Samples
from faisca.rewards.watch import DriftWatch
from faisca.training.grpo import pack, roll_out
from faisca.training.grpo_update import update_policy, with_log_probs
from faisca.training.rollout_report import Round, measure_round
from faisca.training.start import check_tasks, open_judge

LETTERS = bare_tokenizer([bytes([i]) for i in b"abcdefghijk"])
"""as many tokens as SMALL has, END last"""
WORDS = bare_tokenizer([f" {word}".encode() for word in "vento norte sol mar rio luz pão sal lua rua ilha".split()])
"""words of that many"""


def learn(
    twin: Backend,
    grpo: GRPOConfig,
    *,
    steps: int,
    rate: float,
    seed: int = 0,
    tokenizer: Tokenizer = LETTERS,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rounds of GRPO as `reinforce` makes them: what was measured of each, and the warnings."""
    sections = {"grpo": grpo, "run": RunConfig(seed=seed)}
    setup = small_setup(twin, tokenizer, sections, num_layers=1, context=16)
    setup = dataclasses.replace(setup, reward=open_judge(grpo))
    check_tasks(setup)
    assert setup.reward is not None
    policy, frozen = (small_model(twin, setup.model_config, seed=seed) for _ in range(2))
    learner = twin.make_learner(model=policy, config=grpo)
    watch, rounds, said = DriftWatch(grpo.max_new_tokens), list[dict[str, Any]](), list[str]()
    for step in range(steps):
        written = roll_out(setup, policy, step)
        answers = [tokenizer.decode(ids) for ids in written.completions]
        scores = setup.reward.score(Samples.of_tasks(written.tasks, answers, written.completions))
        advantages = group_advantages(scores.total, grpo.group_size, grpo.scale_rewards)
        rollouts = with_log_probs(setup, pack(setup, written, advantages), policy, frozen)
        updates = update_policy(setup, learner, rollouts, step, rate)
        rounds.append(measure_round(Round.of(setup, written, answers, scores, advantages), updates))
        said += watch.look(rounds[-1])
    return rounds, said


def last_reward(rounds: list[dict[str, Any]], steps: int = 5) -> float:
    """The mean reward of the last steps."""
    return float(np.mean([one["reward_mean"] for one in rounds[-steps:]]))


def reward_file(folder: Path, body: str) -> str:
    """A reward `f` in a file."""
    path = folder / "reward.py"
    path.write_text(body, encoding="utf-8")
    return f"{path}:f"
