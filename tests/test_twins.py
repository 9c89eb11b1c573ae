"""The twins are read side by side: the same files, functions, parameters and order; and who may import whom.

Read from the source, so neither framework has to be installed.
"""

import ast
import inspect
import re
import shutil
from pathlib import Path

import pytest

from faisca.backend import Backend

ROOT = Path(__file__).parent.parent
TORCH, MLX, CORE = ROOT / "faisca_torch", ROOT / "faisca_mlx", ROOT / "faisca"
FRAMEWORKS = {"torch", "transformers", "mlx", "mlx_lm"}
LESSON = ("model", "losses", "optimizer", "train", "log_probs", "generate", "grpo")
HELPERS = ("lora", "experts", "muon", "cache", "sums", "processes", "device", "interop")
FILES = LESSON + HELPERS
"""a twin's files, in the order of reading"""
ONLY_IN_MLX = {"random_key", "gradients", "fused"}
"""torch's checkpointing restores the random state of a block itself, and its gradients stand beside the weights; MLX's
functions have to be handed a key and the gradients. Only MLX has a fused cross-entropy of logits"""

Parameter = tuple[str, str, str]
Signature = tuple[str, tuple[Parameter, ...]]


def parameters_of(function: ast.FunctionDef) -> tuple[Parameter, ...]:
    """Name, kind and default of each parameter."""
    arguments = function.args
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    listed = [(argument, "positional", default) for argument, default in zip(positional, defaults, strict=True)]
    listed += [(arguments.vararg, "rest", None)] if arguments.vararg else []
    listed += [
        (a, "keyword-only", default) for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    listed += [(arguments.kwarg, "keywords", None)] if arguments.kwarg else []
    return tuple((a.arg, kind, ast.unparse(default) if default else "") for a, kind, default in listed)


def public_signatures(path: Path) -> list[Signature]:
    """Public functions, classes and methods of a file in order; torch's `forward` is MLX's `__call__`."""
    found: list[Signature] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found.append((node.name, parameters_of(node)))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found.append((node.name, ()))
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    name = method.name.replace("__call__", "forward")
                    if name == "__init__" or not name.startswith("_"):
                        found.append((f"{node.name}.{name}", parameters_of(method)))
    return found


def shared(signatures: list[Signature]) -> list[Signature]:
    """The signatures without what only MLX needs."""
    return [(name, tuple(p for p in parameters if p[0] not in ONLY_IN_MLX)) for name, parameters in signatures]


def differences(left: Path, right: Path) -> list[str]:
    """What keeps two twins from being the same on the outside; empty where nothing does."""
    names = [sorted(path.name for path in folder.glob("*.py")) for folder in (left, right)]
    if names[0] != names[1]:
        return [f"files {names[0]} and {names[1]}"]
    problems = []
    for name in names[0]:
        ours, theirs = (shared(public_signatures(folder / name)) for folder in (left, right))
        if [function for function, _ in ours] != [function for function, _ in theirs]:
            problems.append(f"{name}: {[function for function, _ in ours]} and {[function for function, _ in theirs]}")
        problems += [f"{name}: {a} and {b}" for a, b in zip(ours, theirs, strict=False) if a != b and a[0] == b[0]]
    return problems


def imported(path: Path) -> set[str]:
    """Every part of every module name that a file imports, by statement or by importlib with a literal name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {ast.unparse(argument).removeprefix("f").strip("'\"") for argument in node.args}
    return {part for name in found for part in name.split(".")}  # safetensors.torch counts as torch


# --- the twins ----------------------------------------------------------------------------------


def test_the_twins_are_the_same_on_the_outside():
    assert differences(TORCH, MLX) == []


def readme_order(twin: Path) -> list[str]:
    """The files that a twin's README names, in its order."""
    return [name for name in re.findall(r"`(\w+)`", (twin / "README.md").read_text(encoding="utf-8")) if name in FILES]


@pytest.mark.parametrize("twin", [TORCH, MLX], ids=lambda path: path.name)
def test_files_are_read_in_order(twin):
    """A file of the lesson imports earlier ones and helpers alone; the README names them in this order."""
    assert sorted(path.stem for path in twin.glob("*.py")) == sorted(("__init__", *FILES))
    for place, name in enumerate(LESSON):
        assert imported(twin / f"{name}.py") & set(FILES) <= {*LESSON[:place], *HELPERS}, name
    named = readme_order(twin)
    assert named == [name for name in FILES if name in named] and set(LESSON) <= set(named)


def test_the_twins_offer_the_same_names():
    exported = []
    for twin in (TORCH, MLX):
        tree = ast.parse((twin / "__init__.py").read_text(encoding="utf-8"))
        (names,) = [ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)]
        exported.append(names)
    assert exported[0] == exported[1] == sorted(name for name in vars(Backend) if not name.startswith("_"))


BREAKS = {
    "renamed function": ("train.py", "def train_step(", "def training_step("),
    "renamed method": ("cache.py", "def keep(", "def select("),
    "renamed method of a dataclass": ("optimizer.py", "def compiled(", "def traced("),
    "renamed class": ("model.py", "class FeedForward", "class MLP"),
    "renamed parameter": ("generate.py", "top_p: float) ->", "nucleus: float) ->"),
    "another kind": ("train.py", "def evaluate(*, ", "def evaluate("),
    "parameter missing": ("grpo.py", "losses_BP: Tensor, rollouts: Rollouts[Tensor], ", "losses_BP: Tensor, "),
    "another default": ("model.py", '= None) -> Tensor:\n        """Final', '= 0) -> Tensor:\n        """Final'),
    "function missing": ("device.py", "def set_optimizer_state", "def _set_optimizer_state"),
    "renamed forward": ("model.py", "def forward(self, tokens_BT", "def run(self, tokens_BT"),
}


@pytest.mark.parametrize(("file", "old", "new"), BREAKS.values(), ids=BREAKS)
def test_the_check_can_fail(tmp_path, file, old, new):
    copy = tmp_path / "faisca_torch"
    shutil.copytree(TORCH, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert differences(TORCH, copy) == []
    text = (copy / file).read_text(encoding="utf-8")
    assert old in text, "this test no longer breaks anything: the text that it changes is gone"
    (copy / file).write_text(text.replace(old, new), encoding="utf-8")
    assert len(differences(TORCH, copy)) == 1


def test_another_order_and_another_file_are_differences(tmp_path):
    copy = tmp_path / "faisca_torch"
    shutil.copytree(TORCH, copy, ignore=shutil.ignore_patterns("__pycache__"))
    tree = ast.parse((copy / "sums.py").read_text(encoding="utf-8"))
    tree.body.reverse()
    (copy / "sums.py").write_text(ast.unparse(tree), encoding="utf-8")
    assert [line.partition(":")[0] for line in differences(TORCH, copy)] == ["sums.py"]
    (copy / "more.py").touch()
    assert differences(TORCH, copy)[0].startswith("files ")


# --- the boundary -------------------------------------------------------------------------------


@pytest.mark.parametrize("twin", [TORCH, MLX], ids=lambda path: path.name)
def test_a_twin_has_what_the_core_asks_for(twin):
    """Signatures of `Backend`: keyword-only, the same names in the same order, no defaults."""
    offered = {
        name: parameters
        for path in twin.glob("*.py")
        for name, parameters in public_signatures(path)
        if "." not in name
    }
    for name, function in inspect.getmembers(Backend, inspect.isfunction):
        if name.startswith("_"):
            continue
        wanted = list(inspect.signature(function).parameters.values())[1:]
        assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in wanted), name
        assert offered[name] == tuple((p.name, "keyword-only", "") for p in wanted), name


def test_imports_go_one_way():
    allowed = {CORE: set(), TORCH: {"torch", "transformers", "faisca_torch"}, MLX: {"mlx", "mlx_lm", "faisca_mlx"}}
    for folder, own in allowed.items():
        for path in folder.rglob("*.py"):
            forbidden = (FRAMEWORKS | {"faisca_torch", "faisca_mlx"}) - own
            assert not imported(path) & forbidden, f"{path.relative_to(ROOT)} imports across the boundary"


def test_only_the_boundary_loads_a_twin():
    mentions = {
        path.relative_to(CORE).as_posix()
        for path in CORE.rglob("*.py")
        if {"faisca_torch", "faisca_mlx", "faisca_{name}"} & imported(path)
    }
    assert mentions == {"backend.py"}


@pytest.mark.parametrize(
    "line",
    [
        "import torch.nn as nn",
        "from safetensors.torch import save",
        "from mlx import core",
        "import importlib\nimportlib.import_module('faisca_mlx')",
    ],
)
def test_the_import_check_can_fail(tmp_path, line):
    (tmp_path / "bad.py").write_text(f"def f():\n    pass\n{line}\n")
    assert imported(tmp_path / "bad.py") & (FRAMEWORKS | {"faisca_mlx"})
