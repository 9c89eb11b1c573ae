"""The benchmark's model as transformers and mlx-lm want it: config.json's values, and weights under their names."""

from types import SimpleNamespace
from typing import Any

from faisca.bench.work import Work
from faisca.parameters import Parameters
from faisca.porting.formats import Portable
from faisca.porting.huggingface import config_json, needs_model_file, to_theirs


def their_model(work: Work) -> tuple[dict[str, Any], Parameters, bool]:
    """What `faisca port --to hf` writes of it, and whether mlx-lm needs a file of ours to compute it."""
    tokenizer: Any = SimpleNamespace(end_of_text=work.end_of_text, kind="bpe", companions={})
    portable = Portable("faisca", "the benchmark's weights", work.model, work.parameters(), tokenizer, {})
    return config_json(portable), dict(to_theirs(portable)), needs_model_file(portable)
