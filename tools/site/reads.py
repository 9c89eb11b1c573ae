"""What a twin's definition takes from the core: its functions, and the options that it reads."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from definitions import ROOT, Definition, SiteError, read
from pairs import Row

HOLDERS = {
    "config": ("ModelConfig", "OptimizerConfig", "GRPOConfig", "TrainConfig", "RunConfig"),
    "runtime": ("Runtime",),
    "sampling": ("Sampling",),
    "rollouts": ("Rollouts",),
}
"""the classes whose fields are read from what goes by these names, `self.config` and `learner.runtime` included"""
LESS = {"FaiscaError", "Learner", "Model", "Metrics"}
"""names that say nothing of the computation"""


@dataclass(frozen=True)
class Use:
    """Something of the core: what it is called there, where, and what it is."""

    name: str
    path: str
    line: int
    about: str


def uses(row: Row, root: Path = ROOT) -> list[Use]:
    """What either twin's code takes from the core, functions first, each once."""
    found: dict[str, Use] = {}
    for definition in filter(None, row.twins):
        for use in [*_names(definition, root), *_fields(definition, root)]:
            found.setdefault(use.name, use)
    return sorted(found.values(), key=lambda use: "." in use.name)


def _names(definition: Definition, root: Path) -> list[Use]:
    """Functions and constants that were imported from the core, and are called for in the code."""
    imported = _imports(definition.path, root)
    used = {node.id for node in ast.walk(definition.node) if isinstance(node, ast.Name)}
    found = []
    for name in sorted(used & imported.keys() - LESS):
        target = _resolve(imported[name], name, root)
        if target is not None and target.kind != "class":
            found.append(Use(name, target.path, target.first, _clause(target.docstring)))
    return found


def _fields(definition: Definition, root: Path) -> list[Use]:
    """`config.dropout`, `self.runtime.loss_chunk`: fields of the core's dataclasses."""
    imported, found = _imports(definition.path, root), []
    for node in ast.walk(_shown(definition)):
        if not isinstance(node, ast.Attribute):
            continue
        holder = _last_name(node.value)
        candidates = HOLDERS.get(holder, ())
        # A runtime is read through a model or a learner as well, where nothing imports its class.
        known = [one for one in candidates if one in imported] or list(candidates[:1] if len(candidates) == 1 else ())
        for kind in known:
            home = _resolve(imported.get(kind, "faisca.backend"), kind, root)
            line, about = _members(home.path, kind, root).get(node.attr, (0, "")) if home else (0, "")
            if line:
                found.append(Use(f"{holder}.{node.attr}", home.path, line, _clause(about)))
                break
    return sorted(found, key=lambda use: use.line)


def _shown(definition: Definition) -> ast.AST:
    """The part of a class that stands in its row: not its methods, which have rows of their own."""
    if not isinstance(definition.node, ast.ClassDef):
        return definition.node
    kept = [one for one in definition.node.body if not isinstance(one, ast.FunctionDef) or one.name == "__init__"]
    return ast.Module(body=kept, type_ignores=[])


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


@cache
def _imports(path: str, root: Path) -> dict[str, str]:
    """Names that a file imports from the core, and the module that each comes from."""
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if node.module and node.module.split(".")[0] == "faisca"]
    return {alias.asname or alias.name: node.module or "" for node in ours for alias in node.names}


@cache
def _resolve(module: str, name: str, root: Path) -> Definition | None:
    """Where a name of the core is defined: in that file, or where a folder's `__init__` has it from."""
    path = module.replace(".", "/")
    if (root / f"{path}.py").is_file():
        return read(f"{path}.py", root).find(name)
    home = _imports(f"{path}/__init__.py", root).get(name) if (root / path / "__init__.py").is_file() else None
    return _resolve(home, name, root) if home and home != module else None


@cache
def _members(path: str, name: str, root: Path) -> dict[str, tuple[int, str]]:
    """Fields and properties of a class, those of its bases in the same file too: line, and the text that explains."""
    found: dict[str, tuple[int, str]] = {}
    definition = read(path, root).find(name)
    if definition is None or not isinstance(definition.node, ast.ClassDef):
        raise SiteError(f"{path}: no class {name}; adapt HOLDERS in tools/site/reads.py")
    for base in definition.node.bases:
        if isinstance(base, ast.Name) and (home := _resolve(_module_of(path, base.id, root), base.id, root)):
            found |= _members(home.path, base.id, root)
    body = definition.node.body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            found[node.target.id] = node.lineno, str(text)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = node.lineno, ast.get_docstring(node) or ""
    return found


def _module_of(path: str, name: str, root: Path) -> str:
    return _imports(path, root).get(name, path.removesuffix(".py").replace("/", "."))


def _clause(text: str) -> str:
    """The beginning of an explanation, as much as says what a name is."""
    first = " ".join(text.strip().split("\n\n")[0].split())
    return first.split("; ")[0].split(": ")[0].rstrip(".")
