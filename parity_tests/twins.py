"""Both twins from the inside, for what the boundary does not show: hidden states, losses, samplers, dropout.

Each class does the same with its framework: NumPy in, NumPy out.
"""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np

from faisca.backend import Rollouts, Sampling
from faisca.config import GRPOConfig

Array = np.ndarray
INSIDE = ("losses", "log_probs", "optimizer", "generate", "grpo", "sums", "experts", "muon")


def entropies(fixture: SimpleNamespace) -> Array:
    """Of a fixture that has none: zeros."""
    return getattr(fixture, "entropies", np.zeros_like(fixture.log_probs))


def sizes(fixture: SimpleNamespace) -> tuple[float, int]:
    """Of the optimiser step: its tokens and its rows, 0 where the fixture is all of it."""
    return fixture.step_tokens, getattr(fixture, "step_rows", 0)


def scores(fixture: SimpleNamespace) -> tuple[Array, ...]:
    """The arrays of `Rollouts` that a policy loss looks at, in their order."""
    return fixture.mask, fixture.advantages, fixture.old, fixture.reference


def first(out: Any) -> Any:
    """What a module returned; of a block, without its router's logits."""
    return out[0] if isinstance(out, tuple) else out


class Recorder:
    """Calls a module, and keeps what it returned and whether it was training."""

    def __init__(self, module: Any, outputs: list[Any]) -> None:
        self.module, self.outputs = module, outputs

    def __call__(self, *arguments: Any) -> Any:
        out = self.module(*arguments)
        self.outputs.append((arguments[0], first(out)))
        return out


class TorchTwin:
    """The PyTorch twin on a device; `narrow`: losses take hidden states in bfloat16."""

    def __init__(self, device: str = "cpu", narrow: bool = False) -> None:
        import torch

        self.torch, self.device, self.narrow = torch, device, narrow
        (
            self.losses,
            self.log_probabilities,
            self.optimizer,
            self.generate,
            self.grpo,
            self.sums,
            self.experts,
            self.muon,
        ) = (import_module(f"faisca_torch.{name}") for name in INSIDE)

    def array(self, value: Array, gradient: bool = False) -> Any:
        return self.torch.tensor(value, device=self.device, requires_grad=gradient)

    def hidden(self, value: Array) -> Any:
        given = self.array(value)
        return (given.bfloat16() if self.narrow else given).requires_grad_()

    def numpy(self, value: Any) -> Array:
        value = value.detach().cpu()
        return (value.float() if value.dtype == self.torch.bfloat16 else value).numpy()

    def record(self, model: Any, tokens: Array, names: str) -> list[tuple[Array, Array]]:
        """Inputs and outputs of the modules that `names` ends, in the order of their calls."""
        seen: list[Any] = []
        hooks = [
            module.register_forward_hook(lambda _, given, out: seen.append((given[0], first(out))))
            for name, module in model.named_modules()
            if name.rpartition(".")[2] == names or (names == "blocks" and name.count(".") == 1 and "blocks." in name)
        ]
        final = model(self.array(tokens.astype(np.int64)))
        for hook in hooks:
            hook.remove()
        return [(self.numpy(given), self.numpy(out)) for given, out in seen] + [(self.numpy(final),) * 2]

    def hidden_states(self, model: Any, tokens: Array) -> list[Array]:
        """[B, T, D] after each block, then after the final norm."""
        return [out for _, out in self.record(model, tokens, "blocks")]

    def cross_entropy(self, hidden: Array, head: Array, targets: Array, chunk: int) -> tuple[Array, Array, Array]:
        """Loss, and its gradients with respect to hidden states and head."""
        hidden, head = self.hidden(hidden), self.array(head, True)
        loss = self.losses.linear_cross_entropy(
            hidden, self.losses.Head(head), self.array(targets.astype(np.int64)), chunk, True
        )
        loss.backward()
        return self.numpy(loss), self.numpy(hidden.grad), self.numpy(head.grad)

    def loss(self, hidden: Array, head: Array, targets: Array, chunk: int) -> float:
        """Loss without gradients."""
        arrays = self.hidden(hidden), self.losses.Head(self.array(head)), self.array(targets.astype(np.int64))
        return self.losses.linear_cross_entropy(*arrays, chunk, False).item()

    def log_probs(
        self, hidden: Array, head: Array, targets: Array, temperature: float, chunk: int, upstream: Array, *more: Array
    ) -> tuple[Array, ...]:
        """Log-probabilities, entropies, and the gradients of Σ upstream · log p + more · entropy."""
        hidden, head = self.hidden(hidden), self.array(head, True)
        targets = self.array(targets.astype(np.int64))
        log_probs, entropies = self.log_probabilities.linear_log_probs(
            hidden, self.losses.Head(head), targets, temperature, chunk, 1 + len(more)
        )
        scores = [log_probs, entropies][: 1 + len(more)]
        self.torch.autograd.backward(scores, [self.array(value) for value in (upstream, *more)])
        return tuple(map(self.numpy, (log_probs, entropies, hidden.grad, head.grad)))

    def policy_loss(self, fixture: SimpleNamespace, config: GRPOConfig) -> tuple[Array, dict[str, Array], Array]:
        """Loss, what is watched, and the gradient with respect to the log-probabilities."""
        log_probs = self.array(fixture.log_probs, True)
        rollouts = Rollouts(None, *map(self.array, scores(fixture)), *sizes(fixture))
        loss, watched = self.grpo.policy_loss(log_probs, self.array(entropies(fixture)), rollouts, config)
        loss.backward()
        return self.numpy(loss), {k: self.numpy(v) for k, v in watched.items()}, self.numpy(log_probs.grad)

    def project(self, hidden: Array, head: Array) -> Array:
        """Logits of hidden states."""
        return self.numpy(self.losses.project(self.hidden(hidden).detach(), self.losses.Head(self.array(head))))

    def candidates(self, logits: Array, sampling: Sampling) -> tuple[Array, Array]:
        """Probabilities and ids that `filter_logits` leaves."""
        found = self.generate.filter_logits(self.array(logits), sampling.temperature, sampling.top_k, sampling.top_p)
        return tuple(map(self.numpy, found))

    def sample(self, logits: Array, uniforms: Array, sampling: Sampling) -> Array:
        return self.numpy(self.generate.sample(self.array(logits), self.array(uniforms), sampling))

    def seed(self, number: int) -> None:
        self.torch.manual_seed(number)

    def dropped(self, model: Any, ones: Array) -> Array:
        """What the model's first dropout makes of these numbers."""
        return self.numpy(model.dropout(self.array(ones)))

    def normalise(self, norm: Any, x: Array) -> Array:
        """What a norm makes of [B, T, D]."""
        return self.numpy(norm(self.array(x)))

    def orthogonal(self, matrices: Array) -> Array:
        """What Muon makes of matrices."""
        return self.numpy(self.muon.orthogonal(self.array(matrices)))

    def attend(self, attention: Any, x: Array) -> Array:
        """What an attention layer makes of [B, T, D]."""
        return self.numpy(attention(self.array(x), None, None))


class MlxTwin:
    """The MLX twin on a device; `narrow`: losses take hidden states in bfloat16; `fused`: with MLX's cross-entropy."""

    def __init__(self, device: str = "cpu", narrow: bool = False, fused: bool = False) -> None:
        import mlx.core as mx

        self.mx, self.device, self.narrow, self.fused = mx, device, narrow, fused
        (
            self.losses,
            self.log_probabilities,
            self.optimizer,
            self.generate,
            self.grpo,
            self.sums,
            self.experts,
            self.muon,
        ) = (import_module(f"faisca_mlx.{name}") for name in INSIDE)

    def array(self, value: Array) -> Any:
        self.mx.set_default_device(self.mx.cpu if self.device == "cpu" else self.mx.gpu)
        return self.mx.array(value)

    def hidden(self, value: Array) -> Any:
        return self.array(value).astype(self.mx.bfloat16 if self.narrow else self.mx.float32)

    def numpy(self, value: Any) -> Array:
        return np.array(value.astype(self.mx.float32) if value.dtype == self.mx.bfloat16 else value)

    def record(self, model: Any, tokens: Array, names: str) -> list[tuple[Array, Array]]:
        """Inputs and outputs of the modules that `names` ends, in the order of their calls."""
        seen: list[Any] = []
        blocks = list(model.transformer_blocks)
        places = [(model, names)] * (names == "dropout")
        for block in blocks:
            places += [(module, names) for module in (block.attention, block) if names in module]
        for module, name in places:
            setattr(module, name, Recorder(module[name], seen))
        if names == "blocks":
            model.transformer_blocks = [Recorder(block, seen) for block in blocks]
        final = model(self.array(tokens.astype(np.int32)))
        model.transformer_blocks = blocks
        for module, name in places:
            setattr(module, name, getattr(module, name).module)
        return [(self.numpy(given), self.numpy(out)) for given, out in seen] + [(self.numpy(final),) * 2]

    def hidden_states(self, model: Any, tokens: Array) -> list[Array]:
        """[B, T, D] after each block, then after the final norm."""
        return [out for _, out in self.record(model, tokens, "blocks")]

    def cross_entropy(self, hidden: Array, head: Array, targets: Array, chunk: int) -> tuple[Array, Array, Array]:
        """Loss, and its gradients with respect to hidden states and head."""
        targets = self.array(targets.astype(np.int32))

        def loss_of(hidden: Any, head: Any) -> Any:
            return self.losses.linear_cross_entropy(hidden, self.losses.Head(head), targets, chunk, True, self.fused)

        loss, found = self.mx.value_and_grad(loss_of, argnums=(0, 1))(self.hidden(hidden), self.array(head))
        return tuple(map(self.numpy, (loss, *found)))

    def loss(self, hidden: Array, head: Array, targets: Array, chunk: int) -> float:
        """Loss without gradients."""
        arrays = self.hidden(hidden), self.losses.Head(self.array(head)), self.array(targets.astype(np.int32))
        return self.losses.linear_cross_entropy(*arrays, chunk, False, self.fused).item()

    def log_probs(
        self, hidden: Array, head: Array, targets: Array, temperature: float, chunk: int, upstream: Array, *more: Array
    ) -> tuple[Array, ...]:
        """Log-probabilities, entropies, and the gradients of Σ upstream · log p + more · entropy."""
        targets = self.array(targets.astype(np.int32))

        def both(hidden: Any, head: Any) -> Any:
            return self.log_probabilities.linear_log_probs(
                hidden, self.losses.Head(head), targets, temperature, chunk, 1 + len(more)
            )

        primals = [self.hidden(hidden), self.array(head)]
        values, found = self.mx.vjp(both, primals, list(map(self.array, (upstream, *(more or (0 * upstream,))))))
        return tuple(map(self.numpy, (*values, *found)))

    def policy_loss(self, fixture: SimpleNamespace, config: GRPOConfig) -> tuple[Array, dict[str, Array], Array]:
        """Loss, what is watched, and the gradient with respect to the log-probabilities."""
        arrays = (self.array(value.astype(np.float32)) for value in scores(fixture))
        rollouts = Rollouts(None, *arrays, *sizes(fixture))

        def loss_of(log_probs: Any) -> Any:
            return self.grpo.policy_loss(log_probs, self.array(np.float32(entropies(fixture))), rollouts, config)

        log_probs = self.array(fixture.log_probs.astype(np.float32))
        (loss, watched), gradient = self.mx.value_and_grad(loss_of)(log_probs)
        return self.numpy(loss), {k: self.numpy(v) for k, v in watched.items()}, self.numpy(gradient)

    def project(self, hidden: Array, head: Array) -> Array:
        """Logits of hidden states."""
        return self.numpy(self.losses.project(self.hidden(hidden), self.losses.Head(self.array(head))))

    def candidates(self, logits: Array, sampling: Sampling) -> tuple[Array, Array]:
        """Probabilities and ids that `filter_logits` leaves."""
        found = self.generate.filter_logits(self.array(logits), sampling.temperature, sampling.top_k, sampling.top_p)
        return tuple(map(self.numpy, found))

    def sample(self, logits: Array, uniforms: Array, sampling: Sampling) -> Array:
        return self.numpy(self.generate.sample(self.array(logits), self.array(uniforms), sampling))

    def seed(self, number: int) -> None:
        self.mx.random.seed(number)

    def dropped(self, model: Any, ones: Array) -> Array:
        """What the model's first dropout makes of these numbers."""
        return self.numpy(model.dropout(self.array(ones)))

    def normalise(self, norm: Any, x: Array) -> Array:
        """What a norm makes of [B, T, D]."""
        return self.numpy(norm(self.array(x)))

    def orthogonal(self, matrices: Array) -> Array:
        """What Muon makes of matrices."""
        return self.numpy(self.muon.orthogonal(self.array(matrices)))

    def attend(self, attention: Any, x: Array) -> Array:
        """What an attention layer makes of [B, T, D]."""
        return self.numpy(attention(self.array(x), None, None, None))
