"""A trained model from a checkpoint, ready to write headlines and to be asked for its numbers."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faisca.backend import Model, Sampling, load_backend
from faisca.backends import choose_backend
from faisca.config import Config, RunConfig, SFTConfig
from faisca.config.files import config_from_dict
from faisca.data.chat import ChatTemplate, Message, check_messages
from faisca.data.headlines import has_address, load_headlines, select_titles
from faisca.data.token_cache import tokenise
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.parameters import count_parameters
from faisca.rewards.judge import Judge
from faisca.rewards.named import is_file
from faisca.runs.checkpoint import Checkpoint, load_checkpoint, warn
from faisca.streams import uniforms
from faisca.training.evaluate import make_yardsticks, measure
from faisca.training.generate import complete, encode_prompt, headline
from faisca.training.run import checkpoint_tokenizer
from faisca.training.setup import Setup
from faisca.training.start import held_out_by, with_prompts_at_hand

NOTHING: Mapping[str, Any] = {}
LONGEST_ANSWER = 256
"""tokens of an answer in a chat, where nobody says otherwise"""


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer in a conversation."""

    text: str
    cut: str
    """what ended it: max_new_tokens, context, or nothing but the model itself"""


@dataclasses.dataclass(frozen=True, repr=False)
class LoadedModel:
    """A trained model, as `faisca.load` returns it: it writes headlines and answers for its numbers."""

    checkpoint: Checkpoint
    setup: Setup
    model: Model

    @property
    def config(self) -> Config:
        """The configuration of the run that the checkpoint is of."""
        return self.setup.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that it was trained with."""
        return self.setup.tokenizer

    def __repr__(self) -> str:
        model, runtime = self.setup.model_config, self.setup.runtime
        return (
            f"<faisca model: {count_parameters(model):,} parameters, {model.num_layers} blocks of width {model.dim}, "
            f"context {model.context}; {self.checkpoint.folder}; "
            f"{runtime.backend} on {runtime.device}, {runtime.dtype}>"
        )

    def generate(
        self,
        prompt: str = "",
        n: int = 1,
        *,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """`n` headlines that begin with `prompt`; an empty one lets the model begin.

        The same `seed` writes the same headlines. What is left out, or None, is as in the run's own
        `sample` settings: `temperature` (0 takes the likeliest token each time), `top_k` (0 is off),
        `top_p` (1 is off), `max_new_tokens`. FaiscaError for an impossible value and for a prompt
        that does not fit the context.
        """
        sampling = self.sampling(temperature, top_k, top_p, max_new_tokens)
        return list(self._stream(prompt, n, seed, sampling))

    def stream(
        self,
        prompt: str = "",
        n: int = 1,
        *,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[str]:
        """The headlines of `generate`, each as soon as it is complete, in order."""
        return self._stream(prompt, n, seed, self.sampling(temperature, top_k, top_p, max_new_tokens))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int | None = None,
    ) -> str:
        """The answer to a conversation, a list of {"role": …, "content": …}, as the model's chat template writes it.

        Settings as in `generate`, but `max_new_tokens` None is LONGEST_ANSWER. FaiscaError for a model without a
        template, for messages that it does not take, and for a conversation that fills the context.
        """
        most = LONGEST_ANSWER if max_new_tokens is None else max_new_tokens
        return self.answer(messages, seed, self.sampling(temperature, top_k, top_p, most)).text

    def answer(self, messages: Sequence[Message], seed: int, sampling: Sampling) -> Answer:
        """What `chat` returns, and what cut it short where the model did not end it."""
        ids, context = ChatTemplate(self.tokenizer).ids(check_messages(messages), answer=True), self.setup.model_config
        if len(ids) > context.context:
            raise FaiscaError(
                f"the conversation has {len(ids)} tokens, but the model's context is {context.context}: begin a new one"
            )
        draws = uniforms(seed, "chat", step=0, rows=1, columns=sampling.max_new_tokens)
        (answer,) = complete(self.setup, self.model, [ids], sampling, draws)
        limit = "max_new_tokens" if len(answer) == sampling.max_new_tokens else "context"
        return Answer(self.tokenizer.decode(answer, ids).strip(), "" if answer[-1] in self.tokenizer.ends else limit)

    def sampling(
        self,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int | None = None,
    ) -> Sampling:
        """The settings with which `generate` samples: these, and the run's own where they are None."""
        named = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": max_new_tokens}
        chosen: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        sample = dataclasses.replace(self.config.sample, **chosen)
        dataclasses.replace(self.config, sample=sample)  # checks the values
        return Sampling(sample.temperature, sample.top_k, sample.top_p, sample.max_new_tokens)

    def _stream(self, prompt: str, n: int, seed: int, sampling: Sampling) -> Iterator[str]:
        if n < 1:
            raise FaiscaError(f"n {n} is too small: ask for at least one headline")
        ids = encode_prompt(self.tokenizer, prompt, self.setup.model_config.context)
        draws = uniforms(seed, "generate", step=0, rows=n, columns=sampling.max_new_tokens)
        rows = complete(self.setup, self.model, [ids] * n, sampling, draws)
        return (headline(self.tokenizer, prompt, row) for row in rows)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Token ids, int [B, T] -> logits, float32 [B, T, V]."""
        return self.setup.backend.logits(model=self.model, tokens=self._checked(ids))

    def token_log_probs(self, ids: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Token ids, int [B, T] -> log-probability of each token after the first, float32 [B, T-1], in nats."""
        return self.setup.backend.token_log_probs(
            model=self.model, tokens=self._checked(ids), temperature=temperature, places=None
        )

    def evaluate(
        self,
        source: str,
        *,
        data: Mapping[str, Any] = NOTHING,
        pretrain: Mapping[str, Any] = NOTHING,
        sft: Mapping[str, Any] = NOTHING,
    ) -> dict[str, float]:
        """Measure the model on the validation headlines of a source, those that the run's own options keep.

        Options of the three sections can be others here: `evaluate("x.csv", data={"language": "en"})`. What
        was read and what was left out goes to standard error: titles that the model was trained on, for one.

        Returns `validation_loss` (nats a token), `bits_per_byte`, `portugal_validation_loss` where some
        address contains what SFT asks for, `football_share`, `distinct_share`, and `reward` and `reward_std`
        where all of the run's rewards are built in (a file that a checkpoint names is not run).
        """
        sections = {"data": {**data, "source": source}, "pretrain": pretrain, "sft": sft}
        config = config_from_dict(sections, self.config)
        headlines = load_headlines(config.data, held_out_by(config, self.checkpoint), seen=self.checkpoint.seen)
        config = with_prompts_at_hand(config, warn)
        reward = _own_reward(config)
        abroad = bool(config.sft.conversations) or not has_address(headlines.validation, config.sft.url_contains)
        if abroad:
            config = dataclasses.replace(config, sft=SFTConfig(**vars(config.pretrain)))
        titles = select_titles(headlines, config)
        yardsticks = make_yardsticks(config, titles, lambda some, _: tokenise(some, self.tokenizer))
        grpo = dataclasses.replace(self.config.grpo, prompts_file=config.grpo.prompts_file)
        setup = dataclasses.replace(self.setup, config=dataclasses.replace(self.config, grpo=grpo), reward=reward)
        measured = measure(setup, self.model, yardsticks)
        warn(f"data: {headlines.report}")
        left_out = {"samples"} | ({"portugal_validation_loss"} if abroad else set())
        left_out |= {"reward", "reward_std"} if reward is None else set()
        return {name: value for name, value in vars(measured).items() if name not in left_out}

    def train(self, out: str | Path, **sections: Mapping[str, Any]) -> "LoadedModel":
        """Train on from here in the new folder `out`: all stages, or those of `run={"stages": …}`; load the result.

        Model, tokenizer and configuration are this checkpoint's, and what computes is what computes here;
        `sections` change the rest, as in `faisca.configure`.
        """
        from faisca.api import train

        here = {"backend": self.setup.runtime.backend, "device": self.setup.runtime.device}
        run = {**here, **sections.pop("run", NOTHING)}
        return train(out, None, self.checkpoint.folder, run=run, **sections)

    def sft(self, out: str | Path, **sections: Mapping[str, Any]) -> "LoadedModel":
        """Fine-tune from here, as `faisca sft --from` does; see `train`."""
        return self._stage("sft", out, sections)

    def grpo(self, out: str | Path, **sections: Mapping[str, Any]) -> "LoadedModel":
        """Reinforce from here, as `faisca grpo --from` does; see `train`."""
        return self._stage("grpo", out, sections)

    def _stage(self, stage: str, out: str | Path, sections: dict[str, Mapping[str, Any]]) -> "LoadedModel":
        return self.train(out, **sections | {"run": {**sections.get("run", NOTHING), "stages": (stage,)}})

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        limit = self.setup.model_config.vocabulary_size
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise FaiscaError(f"ids of shape {list(ids.shape)} and type {ids.dtype} are not an int array [B, T]")
        if ids.shape[1] > self.setup.model_config.context:
            raise FaiscaError(f"{ids.shape[1]} ids do not fit the model's context of {self.setup.model_config.context}")
        if ids.size and not (ids.min() >= 0 and ids.max() < limit):
            raise FaiscaError(f"id {ids.min() if ids.min() < 0 else ids.max()} is outside the vocabulary of {limit}")
        return ids


def _own_reward(config: Config) -> Judge | None:
    """The rewards of a checkpoint that can be computed here, apart from football, which is measured anyway."""
    grpo = config.grpo
    asks_for_columns = any(name.startswith("exact:") for name in grpo.reward) and not grpo.prompts_file
    if grpo.reward == ("football",) or asks_for_columns or any(map(is_file, grpo.reward)):
        return None
    return Judge(grpo.reward, grpo.reward_weights)


def load(
    path: str | Path, backend: str = "auto", device: str = "auto", dtype: str = "auto", weights: str = "float32"
) -> LoadedModel:
    """Load a checkpoint folder, or a run folder's newest checkpoint, on any backend.

    `backend`: auto, torch, mlx; `device`: auto, cpu, gpu, cuda, mps; `dtype`: auto, float32, bfloat16;
    `weights`: float32, or bfloat16, which halves the memory of the blocks.
    FaiscaError for what is no checkpoint, VerificationError where it is damaged.
    """
    run = RunConfig(backend=backend, device=device, dtype=dtype, weights=weights)  # type: ignore[arg-type]
    return load_from(load_checkpoint(_path(path)), run)


def load_from(checkpoint: Checkpoint, run: RunConfig) -> LoadedModel:
    """The model of a checkpoint that was read before, on the backend and device of `run`."""
    config = checkpoint.state.config
    dataclasses.replace(config, run=run)  # checks the values
    twin = load_backend(choose_backend(run.backend)[0])
    runtime = twin.open_runtime(config=run)
    setup = Setup(config, twin, runtime, checkpoint_tokenizer(checkpoint), checkpoint.state.model)
    return LoadedModel(checkpoint, setup, setup.make_model(checkpoint.parameters, frozen=True))


def _path(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))
