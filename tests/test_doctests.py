"""The examples in docstrings are run, and every exported function and class has one."""

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

PACKAGES = ("sr_lightning.degradations", "sr_lightning.metrics", "sr_lightning.networks")
MODULES = [
    "sr_lightning",
    "sr_lightning.color",
    *(
        f"{package}.{module.name}"
        for package in PACKAGES
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
    ),
]


def run_examples(module: ModuleType, **names: object) -> doctest.TestResults:
    """Run the examples of a module, in which the given names are defined."""
    return doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_the_results_they_show(name, trained):
    assert run_examples(importlib.import_module(name), checkpoint=trained).failed == 0


@pytest.mark.parametrize("name", PACKAGES)
def test_every_exported_name_has_an_example(name):
    package = importlib.import_module(name)
    without = [export for export in package.__all__ if ">>> " not in (inspect.getdoc(getattr(package, export)) or "")]
    assert not without


def test_a_wrong_example_is_found():
    module = ModuleType("wrong")
    module.__doc__ = ">>> 1 + 1\n3\n"
    assert run_examples(module).failed == 1
