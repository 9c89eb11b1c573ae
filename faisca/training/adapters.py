"""A stage's adapter, from the stage's beginning on: what its model is made of, and what the next stage begins with.

A stage that trains an adapter begins with the model as it is, whose weights are the adapter's base and stay as they
are. A stage after it, with an adapter of its own or without one, begins with both added up.
"""

import math

from faisca.backend import Model
from faisca.config import adapter_of, plain
from faisca.lora import Arrays, adapted, merged
from faisca.parameters import count_parameters, initial_adapter
from faisca.runs.base import base_path, save_base
from faisca.system.tensors import Tensors, open_safetensors
from faisca.training.run import Run


def begin(run: Run, stage: str, parameters: Arrays) -> Model:
    """The stage's model: of these weights, and of the beginning of the stage's adapter where it has one."""
    model = adapted(run.setup.model_config, getattr(run.config, stage))
    run.set_model(model, save_base(run.folder, parameters, model) if adapter_of(model) else None)
    if run.base_sha256 is None:
        return run.setup.make_model(parameters)
    adapter = run.setup.processes.first(lambda: initial_adapter(model, run.setup.seed, parameters))
    numbers, all_numbers = sum(math.prod(a.shape) for a in adapter.values()), count_parameters(plain(model))
    run.log.say(
        f"{stage} trains an adapter of {numbers:,} numbers, {numbers / all_numbers:.2%} of the model's; "
        f"its base stays as it is, in {base_path(run.folder, run.base_sha256).name}"
    )
    return run.setup.make_model(_with_base(run, adapter))


def keep_base(run: Run, parameters: Arrays) -> None:
    """The base of a resumed adapter, in the folder of a process that has one of its own."""
    if run.base_sha256 is not None:
        save_base(run.folder, parameters, run.setup.model_config)


def changes(run: Run, stage: str) -> bool:
    """Whether a stage's model is made anew: it has an adapter, or the stage before it had one."""
    model = run.setup.model_config
    return bool(adapter_of(model) or adapter_of(adapted(model, getattr(run.config, stage))))


def weights(run: Run, model: Model) -> Arrays:
    """All weights of the model under training, the base's read from its file when asked for."""
    return _with_base(run, run.setup.backend.get_parameters(model=model))


def end(run: Run, model: Model) -> Arrays:
    """The weights of the model as a stage leaves it: with its adapter added where it has one."""
    return merged(weights(run, model), run.setup.model_config)


def _with_base(run: Run, trained: Arrays) -> Arrays:
    if run.base_sha256 is None:
        return trained
    return Tensors.joined([open_safetensors(base_path(run.folder, run.base_sha256))[0], Tensors.of(trained)])
