"""Realistic bugs, a module a part of the code: `all_bugs` finds the modules that are there."""

import importlib
import pkgutil

from bugs.mutation import Mutation


def all_bugs() -> tuple[Mutation, ...]:
    """The bugs of every module of this package, in the order of the modules' names."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "mutation")
    return tuple(bug for name in modules for bug in importlib.import_module(f"bugs.{name}").BUGS)
