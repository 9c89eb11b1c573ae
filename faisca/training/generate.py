"""From prompts to completions, for samples, rollouts and users alike.

In training every headline follows an end-of-text, so every prompt is preceded by one here: the
model then knows that a headline begins, and an empty prompt is possible. A ported model whose
tokenizer begins texts with a token of its own (Llama's <s>) has that one instead.

Prompts are normalised as titles are: the model knows no other spaces and accents. So a space at the
end is left out. A token begins with its space (` Norte`), so after `Governo ` the model could only
write a word without one, as it does inside of words: `Governo rnos`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from faisca.backend import ROWS_AT_A_TIME, Model, Sampling
from faisca.config import GRPOConfig
from faisca.data.chat import Message, chat_template
from faisca.data.headlines import normalise
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.text import shortened
from faisca.training.setup import Setup


def ends_in_space(prompt: str) -> bool:
    """Whether something at the end of a prompt is left out."""
    return prompt != prompt.rstrip()


def clean(prompt: str) -> str:
    """The prompt as a title that begins so is trained on; FaiscaError for what is no Unicode text."""
    try:
        return str(normalise(pa.chunked_array([[prompt]], pa.string()))[0])
    except UnicodeEncodeError as error:
        raise FaiscaError(f"prompt {shortened(prompt, 40)!r} is not valid Unicode ({error.reason}): mend it") from error


def encode_prompt(tokenizer: Tokenizer, prompt: str | Sequence[Message], context: int) -> list[int]:
    """Token ids of a prompt, cleaned, after what begins a text; FaiscaError where it does not fit the context.

    Messages are written by the chat template, as far as the assistant's turn begins.
    """
    if isinstance(prompt, str):
        ids = [*tokenizer.beginning, *tokenizer.encode(clean(prompt))]
    else:
        ids, prompt = chat_template(tokenizer).ids(prompt, answer=True), str(prompt[-1]["content"])
    if len(ids) > context:
        raise FaiscaError(
            f"prompt {shortened(prompt, 40)!r} has {len(ids)} tokens, but the model's context is {context}: shorten it"
        )
    return ids


def rollout_sampling(config: GRPOConfig) -> Sampling:
    """How GRPO samples: its log-probabilities know the temperature, but no top-p."""
    return Sampling(config.temperature, config.top_k, 1.0, config.max_new_tokens)


def complete(
    setup: Setup,
    model: Model,
    prompts: list[list[int]],
    sampling: Sampling,
    uniforms: np.ndarray,
    log_probs: np.ndarray | None = None,
) -> Iterator[list[int]]:
    """Completions in order: token ids after each prompt, its end-of-text included if it came to one.

    `uniforms` is float32 [rows, max_new_tokens]: a row draws from its own numbers, whatever rows are
    beside it (`faisca.streams.uniforms`). `log_probs`, of the same shape, takes those of the tokens.
    """
    at_a_time = setup.config.grpo.rollout_batch or ROWS_AT_A_TIME
    for start in range(0, len(prompts), at_a_time):
        rows = slice(start, start + at_a_time)
        columns = setup.backend.generate(
            model=model,
            prompts=prompts[rows],
            uniforms=uniforms[rows],
            sampling=sampling,
            end_of_text=setup.tokenizer.ends,
            log_probs=None if log_probs is None else log_probs[rows],
        )
        # The twin yields a column of tokens at a time, and -1 where a row has none.
        table = np.stack(list(columns), axis=1)
        yield from ([int(token) for token in row if token >= 0] for row in table)


def complete_together(
    setup: Setup,
    model: Model,
    prompts: list[list[int]],
    sampling: Sampling,
    uniforms: np.ndarray,
    log_probs: np.ndarray | None = None,
) -> list[list[int]]:
    """As `complete`, neighbouring rows by each process; all of them get all rows."""
    processes = setup.processes.apart
    rows = processes.part(len(prompts))
    noted = None if log_probs is None else log_probs[rows]
    mine = list(complete(setup, model, prompts[rows], sampling, uniforms[rows], noted))
    found = processes.gather((mine, noted))
    if log_probs is not None:
        log_probs[:] = np.concatenate([noted for _, noted in found])
    return [completion for completions, _ in found for completion in completions]


def headline(tokenizer: Tokenizer, prompt: str, completion: list[int]) -> str:
    """The text that a reader sees: the prompt and what the model added, on one line."""
    return " ".join((clean(prompt) + tokenizer.decode(completion, tokenizer.encode(clean(prompt)))).split())
