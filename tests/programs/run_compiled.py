"""Compiled models against plain ones. A process of its own, since compilers do not see through pytest's type checks."""

import sys

import torch

from model.execution import ExecutionConfig
from tests.helpers import PLAIN, random_cameras, random_views, small_model


def forward(variant, execution):
    """A model in training and its images."""
    model = small_model(variant, execution=execution).train()
    return model, model(random_views(1, 2), random_cameras(1, 2, seed=1))


def gradients(variant, execution):
    """Images and gradients; where compilation is asked for, of code that was compiled whole."""
    torch._dynamo.utils.counters.clear()
    model, images = forward(variant, execution)
    images.square().sum().backward()
    compiled = torch._dynamo.utils.counters
    assert (compiled["stats"]["unique_graphs"] > 0) == (execution.compile == "on")
    assert not compiled["graph_break"], compiled["graph_break"]
    torch._dynamo.reset()
    return [images.detach(), *(p.grad for p in model.parameters())]


def equals_plain():
    """Whatever is checkpointed and kept."""
    plain = {variant: gradients(variant, PLAIN) for variant in ("decoder_only", "encoder_decoder")}
    cases = [("decoder_only", 0.0, 0), ("decoder_only", 0.0, 1), ("decoder_only", 0.5, 1), ("decoder_only", 1.0, 2)]
    for variant, share, every in [*cases, ("encoder_decoder", 0.5, 1)]:
        found = gradients(variant, ExecutionConfig(every, share, compile="on"))
        for ours, theirs in zip(found, plain[variant], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def rounds_no_worse():
    """Products of 16-bit numbers take other ways through GELU and the norms."""
    exact, distances = gradients("decoder_only", PLAIN), []
    for execution in (PLAIN, ExecutionConfig(1, 0.5, compile="on")):
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients("decoder_only", execution)
        distances.append([(a - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)])
    for plain, compiled in zip(*distances, strict=True):
        assert compiled < 1.2 * plain + 1e-3, (compiled, plain)


def kept(execution):
    """Shapes of what a forward pass of the decoder-only variant keeps for backward."""
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape) or t, lambda t: t):
        forward("decoder_only", execution)
    torch._dynamo.reset()
    return shapes


def keeps_statistics():
    """Means and variances stay for backward, also where all else is computed again."""
    shapes = kept(ExecutionConfig(1, 0.0, compile="on"))
    # Of two sequences of 72 tokens, two norms a block; the last block's second norm sees 24 of them.
    assert sum(shape == (2, 72, 1) for shape in shapes) >= 2 * 5, shapes


def keeps_products():
    """A group of three layers keeps what three single layers keep."""
    # The hidden layers of MLPs, of two sequences of 72 tokens; the last block's sees 24.
    hidden = [(144, 256), (2, 72, 256)]
    for every, share, count in ((3, 0.0, 0), (3, 1.0, 2), (1, 1.0, 2)):
        shapes = kept(ExecutionConfig(every, share, compile="on"))
        assert sum(shape in hidden for shape in shapes) == count, (every, share, shapes)


def goes_on_without_a_compiler():
    """Where the compiler fails, training gives what plain code gives."""
    found = []
    for execution in (PLAIN, ExecutionConfig(1, 0.5, compile="on")):
        model, images = forward("decoder_only", execution)
        images.square().sum().backward()
        found.append([images.detach(), *(p.grad for p in model.parameters())])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


if __name__ == "__main__":
    claims = (equals_plain, rounds_no_worse, keeps_statistics, keeps_products, goes_on_without_a_compiler)
    {f.__name__: f for f in claims}[sys.argv[1]]()
