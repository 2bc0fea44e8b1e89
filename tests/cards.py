"""Cards that are not there and packages that cannot run: what kernels are chosen by."""

import importlib
import logging

import torch


def hopper(patch):
    """A card on which all kernels run."""
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    patch.setattr(torch.backends.cudnn, "is_available", lambda: True)


def on_hopper(patch, *forget):
    """What a fixture is while such a card is there; `forget` are called before and after."""
    hopper(patch)
    for each in forget:
        each()
    yield patch
    for each in forget:
        each()


def newer(patch):
    """A card on which nothing was measured."""
    patch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))


def older(patch):
    """A card on which the packages do not run."""
    patch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))


def gone(patch):
    """No card at all."""
    patch.setattr(torch.cuda, "is_available", lambda: False)


def broken(patch):
    """A package whose import fails."""

    def fail(name):
        raise OSError("libcute.so: cannot open\nshared object\x1b[31m")

    patch.setattr(importlib, "import_module", fail)


def chosen(choose, package, caplog):
    """The kernels for "auto" and for the package, which is asked for twice, and the lines that said so."""
    with caplog.at_level(logging.INFO, "lvsm"):
        kernels = [choose(name) for name in ("auto", package, package)]
    return kernels[:2], [record.getMessage() for record in caplog.records]
