"""The single-file lessons, from the inside: NumPy in, NumPy out, as `twins.py` does for the packages."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from cases import Twin

from faisca.config import ModelConfig

FOLDER = Path(__file__).parent.parent / "lessons"
PATHS = {name: FOLDER / f"{name}_in_one_file.py" for name in ("torch", "mlx")}
Arrays = dict[str, np.ndarray]


def load_lesson(name: str) -> ModuleType:
    """The script as a module; nothing runs."""
    spec = importlib.util.spec_from_file_location(PATHS[name].stem, PATHS[name])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings_of(config: ModelConfig, **more: Any) -> SimpleNamespace:
    """A model's sizes by the names of the lessons' options."""
    sizes = {
        "vocabulary": config.vocabulary_size,
        "context": config.context,
        "dim": config.dim,
        "layers": config.num_layers,
        "heads": config.num_heads,
        "hidden": config.hidden_dim,
        "dropout": config.dropout,
        "seed": 0,
    }
    return SimpleNamespace(**(sizes | more))


class Lesson:
    """The lesson of a twin's framework, on the twin's device."""

    def __init__(self, twin: Twin) -> None:
        self.twin, self.name = twin, twin.name
        twin.side.open()  # makes the device MLX's current one, after a fast BLAS has been put in place
        self.script = load_lesson(twin.name)
        self.script.DEVICE = twin.device

    def model(self, config: ModelConfig, parameters: Mapping[str, np.ndarray]) -> Any:
        return self.script.make_model(settings_of(config), parameters)

    def weights(self, model: Any) -> Arrays:
        if self.name == "torch":
            return {name: value.detach().cpu().numpy().copy() for name, value in model.named_parameters()}
        return {name: np.array(value) for name, value in self.script.tree_flatten(model.parameters())}

    def logits(self, model: Any, tokens: np.ndarray) -> np.ndarray:
        return self.numpy(model.eval()(self.script.on_device(tokens)))

    def value_and_gradients(self, model: Any, loss_of: Callable[[], Any]) -> tuple[float, Arrays]:
        """A loss, and its gradient with respect to every weight."""
        if self.name == "torch":
            model.zero_grad()
            loss = loss_of()
            loss.backward()
            return loss.item(), {name: value.grad.cpu().numpy() for name, value in model.named_parameters()}
        loss, gradients = self.script.nn.value_and_grad(model, loss_of)()
        return loss.item(), {name: np.array(value) for name, value in self.script.tree_flatten(gradients)}

    def numpy(self, array: Any) -> np.ndarray:
        return array.detach().cpu().numpy() if self.name == "torch" else np.array(array)
