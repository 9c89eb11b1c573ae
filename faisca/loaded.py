"""A trained model from a checkpoint, ready to write headlines and to be asked for its numbers."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faisca.backend import Backend, Model, Runtime, Sampling, choose_backend, load_backend
from faisca.batches import tokenise
from faisca.checkpoint import Checkpoint, load_checkpoint
from faisca.config import Config, ModelConfig, RunConfig
from faisca.config_files import config_from_dict
from faisca.errors import FaiscaError
from faisca.evaluation import Bench, make_yardsticks, measure
from faisca.generation import complete, encode_prompt, headline
from faisca.headlines import has_address, load_headlines
from faisca.runs import checkpoint_tokenizer
from faisca.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What `faisca.load` returns."""

    checkpoint: Checkpoint
    config: Config
    model_config: ModelConfig
    tokenizer: Tokenizer
    backend: Backend
    runtime: Runtime
    model: Model

    def generate(self, prompt: str = "", n: int = 1, *, seed: int = 0, **options: float | None) -> list[str]:
        """`n` headlines that begin with `prompt`.

        Options: temperature, top_k, top_p, max_new_tokens; those left out are the run's `sample` settings.
        """
        return list(self.stream(prompt, n, seed=seed, **options))

    def stream(self, prompt: str = "", n: int = 1, *, seed: int = 0, **options: float | None) -> Iterator[str]:
        """The headlines of `generate`, each as soon as it is complete, in order."""
        chosen = {name: value for name, value in options.items() if value is not None}
        sampling = self._sampling(chosen)
        if n < 1:
            raise FaiscaError(f"n {n} is too small: ask for at least one headline")
        ids = encode_prompt(self.tokenizer, prompt, self.model_config.context)
        rows = complete(
            self.backend,
            self.model,
            [ids] * n,
            sampling,
            self.tokenizer.end_of_text,
            seed=seed,
            purpose="generate",
        )
        return (headline(self.tokenizer, prompt, row) for row in rows)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Token ids, int [B, T] -> logits, float32 [B, T, V]."""
        return self.backend.logits(model=self.model, tokens=self._checked(ids))

    def token_log_probs(self, ids: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Token ids, int [B, T] -> log-probability of each token after the first, float32 [B, T-1], in nats."""
        return self.backend.token_log_probs(
            model=self.model, tokens=self._checked(ids), temperature=temperature, places=None
        )

    def evaluate(self, source: str) -> dict[str, float]:
        """Measure the model on the validation headlines of a source, those that the run's own options keep.

        Returns `validation_loss` (nats a token), `bits_per_byte`, `portugal_validation_loss` where some
        address contains what SFT asks for, `football_share` and `distinct_share`.
        """
        config = dataclasses.replace(self.config, data=dataclasses.replace(self.config.data, source=source))
        headlines = load_headlines(config.data, config.run.seed)
        bench = Bench(
            self.backend, self.tokenizer, self.model_config.context, config.run.seed, config.sample, config.grpo
        )
        abroad = not has_address(headlines.validation, config.sft.url_contains)
        if abroad:
            config = dataclasses.replace(config, sft=config.pretrain)
        yardsticks = make_yardsticks(config, headlines, lambda titles, _: tokenise(titles, self.tokenizer))
        measured = measure(bench, self.model, yardsticks)
        left_out = {"samples"} | ({"portugal_validation_loss"} if abroad else set())
        return {name: value for name, value in measured.items() if name not in left_out}

    def _sampling(self, chosen: dict[str, float]) -> Sampling:
        sample = dataclasses.replace(self.config.sample, **chosen)  # type: ignore[arg-type]
        dataclasses.replace(self.config, sample=sample)  # checks the values
        return Sampling(sample.temperature, sample.top_k, sample.top_p, sample.max_new_tokens)

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        limit = self.model_config.vocabulary_size
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise FaiscaError(f"ids of shape {list(ids.shape)} and type {ids.dtype} are not an int array [B, T]")
        if ids.shape[1] > self.model_config.context:
            raise FaiscaError(f"{ids.shape[1]} ids do not fit the model's context of {self.model_config.context}")
        if ids.size and not (ids.min() >= 0 and ids.max() < limit):
            raise FaiscaError(f"id {ids.min() if ids.min() < 0 else ids.max()} is outside the vocabulary of {limit}")
        return ids


def load(path: str | Path, backend: str = "auto", device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Load a checkpoint folder, or a run folder's newest checkpoint, on any backend."""
    checkpoint = load_checkpoint(Path(path))
    config = config_from_dict(checkpoint.state["config"])
    run = RunConfig(backend=backend, device=device, dtype=dtype)  # type: ignore[arg-type]
    dataclasses.replace(config, run=run)  # checks the values
    twin = load_backend(choose_backend(backend)[0])
    runtime = twin.open_runtime(config=run)
    model_config = ModelConfig(**checkpoint.state["model"])
    model = twin.make_model(config=model_config, parameters=checkpoint.parameters, runtime=runtime)
    return LoadedModel(checkpoint, config, model_config, checkpoint_tokenizer(checkpoint), twin, runtime, model)
