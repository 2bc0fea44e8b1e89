"""What all operators of our own have in common."""

import importlib
import importlib.util
import inspect
import pkgutil

import pytest
from torch import Tensor
from torch.library import CustomOpDef

import model

# What torch 2.6 takes; later versions take more.
TAKEN = {Tensor, Tensor | None, int, float, bool, str}
NEEDS_TRITON = {"prope_kernel", "merge_kernel", "head_norm_kernel"}
# Of packages that are not here.
NOT_HERE = {"gelu_epilogue", "norm_epilogue"}


def operators():
    names = {info.name for info in pkgutil.iter_modules(model.__path__)} - NOT_HERE
    if importlib.util.find_spec("triton") is None:
        names -= NEEDS_TRITON
    modules = [importlib.import_module(f"model.{name}") for name in sorted(names)]
    return {op._qualname: op for module in modules for op in vars(module).values() if isinstance(op, CustomOpDef)}


OPERATORS = operators()


def test_they_are_found():
    assert {"lvsm::attention", "lvsm::normed_attention", "lvsm::up_gelu", "lvsm::normed_qkv"} <= set(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_arguments_and_results_are_of_types_that_every_version_takes(name):
    signature = inspect.signature(OPERATORS[name]._init_fn)
    for parameter in signature.parameters.values():
        assert parameter.annotation in TAKEN, parameter
    result = signature.return_annotation
    assert result in (Tensor, None) or set(result.__args__) == {Tensor}


@pytest.mark.parametrize("name", OPERATORS)
def test_they_have_shapes_without_numbers(name):
    """Else no compiler takes them."""
    assert OPERATORS[name]._abstract_fn is not None
