"""From prompts to completions, for samples, rollouts and users alike.

In training every headline follows an end-of-text, so every prompt is preceded by one here: the
model then knows that a headline begins, and an empty prompt is possible.

Spaces at the end of a prompt are left out. A token begins with its space (` Norte`), so after
`Governo ` the model could only write a word without one, as it does inside of words: `Governo rnos`.
"""

from collections.abc import Iterator

import numpy as np

from faisca.backend import Backend, Model, Sampling
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.streams import uniforms
from faisca.text import shortened

ROWS_AT_A_TIME = 64
"""completions sampled together: bounds the key-value cache"""


def ends_in_space(prompt: str) -> bool:
    """Whether something at the end of a prompt is left out."""
    return prompt != prompt.rstrip()


def encode_prompt(tokenizer: Tokenizer, prompt: str, context: int) -> list[int]:
    """Token ids of a prompt, end-of-text first and no space last; FaiscaError where it does not fit the context."""
    ids = [tokenizer.end_of_text, *tokenizer.encode(prompt.rstrip())]
    if len(ids) > context:
        raise FaiscaError(
            f"prompt {shortened(prompt, 40)!r} has {len(ids)} tokens, but the model's context is {context}: shorten it"
        )
    return ids


def complete(
    backend: Backend,
    model: Model,
    prompts: list[list[int]],
    sampling: Sampling,
    end_of_text: int,
    *,
    seed: int,
    purpose: str,
    step: int = 0,
) -> Iterator[list[int]]:
    """Completions in order: token ids after each prompt, its end-of-text included if it came to one.

    Row r draws from its own stream (seed, purpose, step, r), whatever rows are beside it.
    """
    draws = uniforms(seed, purpose, step=step, rows=len(prompts), columns=sampling.max_new_tokens)
    for start in range(0, len(prompts), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        columns = backend.generate(
            model=model, prompts=prompts[rows], uniforms=draws[rows], sampling=sampling, end_of_text=end_of_text
        )
        table = np.stack(list(columns), axis=1)
        yield from ([int(token) for token in row if token >= 0] for row in table)


def headline(tokenizer: Tokenizer, prompt: str, completion: list[int]) -> str:
    """The text that a reader sees: the prompt and what the model added, on one line."""
    return " ".join((prompt.rstrip() + tokenizer.decode(completion)).split())
