"""Faísca's own run folders: the source is a checkpoint, the target a run with one finished checkpoint."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from faisca.config import AdaptedModel, Config, TokenizerConfig, adapter_of, plain
from faisca.config.files import config_from_dict, write_config
from faisca.lora import merged
from faisca.parameters import parameter_shapes
from faisca.porting.formats import Portable
from faisca.runs.base import save_base
from faisca.runs.checkpoint import open_checkpoint, save_checkpoint
from faisca.runs.state import IMPORTED, Progress, State, versions
from faisca.system.tensors import safetensors_chunks

TRAINING_KEYS = ("stage", "step", "seed", "backend", "device", "dtype", "seconds", "config", "stages", "hold_out_seed")
"""what of a checkpoint's state goes along"""
NO_ADAPTER: Mapping[str, np.ndarray] = {}


def read_run(path: Path) -> Portable:
    """A checkpoint folder, or the newest good checkpoint of a run folder."""
    from faisca.training.run import checkpoint_tokenizer

    notes: list[str] = []
    checkpoint = open_checkpoint(path, say=notes.append)
    state, values = checkpoint.state, checkpoint.state.to_json()
    if state.step:
        notes.append("weights only: the optimiser's state stays behind")
    if adapter_of(state.model):
        notes.append("its adapter is merged: what is ported is one model (--to peft or mlx-lm ports the adapter)")
    return Portable(
        format="faisca",
        found=f"a faisca checkpoint ({state.stage}, step {state.step})",
        model=plain(state.model),
        parameters=merged(checkpoint.parameters, state.model),
        tokenizer=checkpoint_tokenizer(checkpoint),
        training={key: values[key] for key in TRAINING_KEYS},
        notes=tuple(notes),
    )


def write_run(
    portable: Portable,
    folder: Path,
    adapted: AdaptedModel | None = None,
    adapter: Mapping[str, np.ndarray] = NO_ADAPTER,
) -> None:
    """A run folder that `generate`, `evaluate`, `sft --from` and `grpo --from` take; with an adapter, of both."""
    folder.mkdir()
    config, tokenizer = _config(portable), portable.tokenizer
    write_config(config, folder / "config.toml")
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)
    state, shapes, own = _state(portable, config), parameter_shapes(portable.model), portable.parameters
    if adapted is not None:
        state = dataclasses.replace(
            state, model=adapted, base_sha256=save_base(folder, portable.parameters, portable.model)
        )
        shapes, own = {name: array.shape for name, array in adapter.items()}, adapter
    arrays: dict[str, Any] = {"model": safetensors_chunks(shapes, own), "optimizer": {"step": np.array(0, np.int64)}}
    save_checkpoint(folder, state, arrays, tokenizer_files=tokenizer.files())


def _config(portable: Portable) -> Config:
    """The training's own configuration, or the defaults, with this model and tokenizer."""
    known = portable.training.get("config")
    model = dataclasses.replace(portable.model, vocabulary_size=0)
    window = min(Config().data.window, model.context)
    narrow: Mapping[str, Any] = {"data": {"window": window, "stride": window}}
    values = dict(known or narrow) | {"model": dataclasses.asdict(model)}
    kind, tokens = portable.tokenizer.kind, portable.tokenizer.vocabulary_size
    tokenizer = TokenizerConfig(kind, tokens)  # type: ignore[arg-type]
    return config_from_dict(values | {"tokenizer": dataclasses.asdict(tokenizer)})


def _state(portable: Portable, config: Config) -> State:
    training, tokenizer = portable.training, portable.tokenizer
    stage, step = training.get("stage", "pretrain"), training.get("step", 0)
    computed = {key: training.get(key, IMPORTED) for key in ("backend", "device", "dtype")}
    return State(
        progress=Progress(stage, step, total_steps=step),
        finished=True,
        config=config,
        model=portable.model,
        **computed,
        versions=versions(),
        stages=training.get("stages", []),
        hold_out_seed=training.get("hold_out_seed", training.get("seed")),
        tokenizer={"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint},
        metrics_bytes=0,
        seconds=training.get("seconds", 0.0),
        ported_from=portable.found,
    )
