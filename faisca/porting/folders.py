"""What goes into an exported Hugging Face folder besides the weights: tokenizer, generation, model card."""

from pathlib import Path
from typing import Any

from faisca.config import ModelConfig
from faisca.data.byte_level import END_OF_TEXT
from faisca.data.json_encoding import JsonEncoding, json_file
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.parameters import count_parameters
from faisca.porting.formats import Portable, read_json
from faisca.porting.huggingface import MODEL_FILE, TRAINING_FILE, config_json, layout_of, needs_model_file, to_theirs
from faisca.porting.layouts.gpt2 import LAYOUT as GPT2
from faisca.porting.weight_files import write_pieces
from faisca.runs.summary import run_line, summary_markdown
from faisca.system.tensors import Tensors, safetensors_chunks
from faisca.text import json_text


def write_folder(portable: Portable, folder: Path, dtype: str = "float32") -> None:
    """A folder that transformers loads without code of its own, and mlx_lm too (see `MODEL_FILE`)."""
    config = config_json(portable, dtype)
    folder.mkdir()
    weights = Tensors.of(to_theirs(portable))
    write_pieces(safetensors_chunks(weights.shapes, weights, dtype, {"format": "pt"}), folder / "model.safetensors")
    texts = {
        "config.json": _json(config),
        "README.md": model_card(portable),
        TRAINING_FILE: _json(dict(portable.training)),
    }
    _write_tokenizer(portable, folder)
    if needs_model_file(portable):
        texts[MODEL_FILE.name] = MODEL_FILE.read_text(encoding="utf-8")
    _write_texts(texts, folder)


def write_view(portable: Portable, source: Path, view: Path) -> None:
    """The Hugging Face folder `source` as mlx-lm can load it; the weights are links to its own.

    mlx-lm's GPT-2 takes no folder as transformers 5 saves it: it wants `n_ctx` and names without a prefix; its
    Llama and Qwen2 would pass over a base of the rotation that stands in `rope_parameters` alone.
    """
    weights = sorted(source.glob("model*.safetensors"))
    if not weights:
        raise FaiscaError(f"mlx_lm reads .safetensors only, and {source} has none")
    stated, ours = read_json(source / "config.json"), config_json(portable)
    config = {key: stated.get(key, value) for key, value in ours.items()}  # nothing else: it could name code
    view.mkdir()
    texts = {"config.json": _json(config)}
    if config["model_type"] == "gpt2":
        texts["config.json"] = _json(config | {"model_file": MODEL_FILE.name})
        texts[MODEL_FILE.name] = MODEL_FILE.read_text(encoding="utf-8")
    _write_tokenizer(portable, view)
    _write_texts(texts, view)
    for file in weights:
        (view / file.name).symlink_to(file.resolve())


def model_card(portable: Portable) -> str:
    """README.md: what the model is, how it was trained, and how to use the folder."""
    model, trust = portable.model, " --trust-remote-code" if needs_model_file(portable) else ""
    longest = min(32, model.context // 2)
    gpt2 = layout_of(portable) is GPT2
    return CARD.format(
        title="A language model of headlines" if portable.training.get("stages") else "A ported language model",
        kind="GPT-2" if gpt2 else "Llama",
        tag="gpt2" if gpt2 else "llama",
        beyond=LEARNED.format(context=model.context) if gpt2 else "",
        prompt=f"{END_OF_TEXT}Presidente" if portable.tokenizer.kind != "json" else "The",
        begin=BEGIN.format(end_of_text=END_OF_TEXT) if portable.tokenizer.kind != "json" else "",
        parameters=f"{count_parameters(model):,}",
        blocks=f"{model.num_layers} blocks of width {model.dim}{_experts(model)}",
        context=model.context,
        tokens=f"{portable.tokenizer.vocabulary_size:,}",
        vocabulary="vocabulary" if portable.tokenizer.kind == "json" else "byte-level BPE",
        training=_training(portable),
        longest=longest,
        trust=trust,
        reason=TRUST if trust else "",
    )


def _experts(model: ModelConfig) -> str:
    count = f" with {model.num_experts} experts each, of which a token goes through {model.experts_per_token}"
    return count if model.num_experts else ""


def _training(portable: Portable) -> str:
    training = portable.training
    stages = training.get("stages", [])
    if not stages:
        return "Nothing is known here about how it was trained.\n"
    known = {key: training.get(key, "unknown") for key in ("backend", "device", "seed")}
    preset = training.get("config", {}).get("preset", "unknown")
    summary = known | {"preset": preset, "parameters": count_parameters(portable.model), "stages": stages}
    return f"{run_line(summary)}\n\n{summary_markdown(summary)}"


def _write_tokenizer(portable: Portable, folder: Path) -> None:
    """tokenizer.json and what belongs to it: as it came, or, of a tokenizer of ours, as we have it."""
    tokenizer = portable.tokenizer
    ours = {
        "generation_config.json": _json(_generation_config(portable)).encode(),
        "tokenizer.json": tokenizer.json_text().encode(),
        "tokenizer_config.json": _json(_tokenizer_config(portable)).encode(),
    }
    for name, content in {**ours, **tokenizer.companions, **_plain_class(tokenizer)}.items():
        (folder / name).write_bytes(content)


def _plain_class(tokenizer: Tokenizer) -> dict[str, bytes]:
    """tokenizer_config.json of what is no byte-level BPE, with the class that reads tokenizer.json as it is.

    transformers' Llama, T5 and others take its vocabulary alone and build the rest anew: spaces at the beginning of a
    text get other ids than the model was trained with.
    """
    if not isinstance(tokenizer.encoding, JsonEncoding) or tokenizer.encoding.byte_level:
        return {}
    name = "tokenizer_config.json"
    stated = json_file(tokenizer.companions, name, "the tokenizer's files")
    if stated.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return {}
    return {name: _json(stated | {"tokenizer_class": "PreTrainedTokenizerFast"}).encode()}


def _generation_config(portable: Portable) -> dict[str, Any]:
    """Sampling as the run samples, so that a short prompt stays within the context."""
    end_of_text, sample = portable.tokenizer.end_of_text, portable.training.get("config", {}).get("sample", {})
    longest = min(sample.get("max_new_tokens", 32), portable.model.context // 2)
    config = {"bos_token_id": portable.tokenizer.beginning[0], "eos_token_id": end_of_text, "max_new_tokens": longest}
    if sample.get("temperature"):
        config |= {"do_sample": True} | {key: sample[key] for key in ("temperature", "top_k", "top_p") if key in sample}
    return config


def _tokenizer_config(portable: Portable) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        **{"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT},
        "clean_up_tokenization_spaces": False,
        "model_max_length": portable.model.context,
    }


def _write_texts(texts: dict[str, str], folder: Path) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _json(values: dict[str, Any]) -> str:
    return json_text(values, indent=2) + "\n"


TRUST = """`--trust-remote-code` runs `faisca_gpt2.py` of this folder: mlx-lm's own GPT-2 has a tied head, the tanh GELU
and a feed-forward layer of four times the width only.

"""

BEGIN = """In training every headline follows `{end_of_text}`, so begin prompts with it.

"""

LEARNED = """The positional table has {context} rows: prompt and new tokens together must not be more.
"""

CARD = """---
language: pt
library_name: transformers
pipeline_tag: text-generation
tags: [{tag}, mlx, faisca]
---

# {title}

A {kind}-style decoder with {parameters} parameters: {blocks}, a context of {context} tokens, and
a {vocabulary} of {tokens} tokens. Trained and exported with Faísca MLX; an educational model, not a source of facts.

## Training

{training}
## Use

{begin}```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
ids = tokenizer("{prompt}", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens={longest})[0], skip_special_tokens=True))
```

```
python -m mlx_lm generate --model .{trust} --prompt "{prompt}" --max-tokens {longest}
```

{reason}{beyond}"""
