"""Compiled models against plain ones. A process of its own, since compilers do not see through pytest's type checks.

python -m tests.programs.run_compiled [CLAIM ...]    prints why each claim (or each of all) does not hold, or null
"""

import copy
import functools
import itertools
import json
import logging.handlers
import pickle
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from model import compilation
from model.execution import ExecutionConfig, apply_execution, compile_each_shape, prepare_compiler
from model.transformer import Transformer
from tests import flash4, quack
from tests.helpers import PLAIN, random_cameras, random_views, small_config, small_model
from tests.sockets import TurnedByCameras, random_context

ON = ExecutionConfig(1, 0.5, compile="on")
# For claims about shapes alone.
FEWER_OPERATIONS = {"use_qk_norm": False}
# The whole compiler; all of it but the generation of code, which takes longest; its front alone, which finds graphs.
INDUCTOR, LOWERING, FRONT = "inductor", "aot_eager_decomp_partition", "eager"

counters = torch._dynamo.utils.counters


@contextmanager
def compiler(backend: str) -> Iterator[None]:
    """A compiler that has compiled nothing yet."""
    original = torch.compile
    torch._dynamo.reset()
    counters.clear()
    compilation._compile.cache_clear()
    torch.compile = functools.partial(original, backend=backend)
    yield
    torch.compile = original


def forward(variant, execution, **transformer):
    """A model in training and its images."""
    model = small_model(variant, execution=execution, **transformer).train()
    return model, model(random_views(1, 2), random_cameras(1, 2, seed=1))


def gradients(variant, execution, **transformer):
    """Images and gradients; where compilation is asked for, of code that was compiled whole."""
    before = counters["stats"]["unique_graphs"]
    model, images = forward(variant, execution, **transformer)
    images.square().sum().backward()
    # What was compiled before may serve.
    compiled = counters["stats"]["unique_graphs"]
    assert compiled if execution.compile == "on" else compiled == before
    assert not counters["graph_break"], counters["graph_break"]
    return [images.detach(), *(p.grad for p in model.parameters())]


def check_equals_plain(variant, cases, **sizes):
    """Images and gradients of a variant, with so much saved of groups of so many layers."""
    plain = gradients(variant, PLAIN, **sizes)
    for share, every in cases:
        found = gradients(variant, ExecutionConfig(every, share, compile="on"), **sizes)
        for ours, theirs in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def decoder_only_equals_plain():
    """Whatever is checkpointed and kept."""
    check_equals_plain("decoder_only", [(0.0, 0), (0.75, 1), (1.0, 2), (1.5, 1)], n_layer=2)


def encoder_decoder_equals_plain():
    """With two stacks, of other numbers of tokens."""
    check_equals_plain("encoder_decoder", [(0.5, 1)], encoder_n_layer=1, decoder_n_layer=1)


# Code for free sizes takes longer to find, and other claims look at it.
@torch._dynamo.config.patch(automatic_dynamic_shapes=False)
def encoded_once_equals_plain():
    """The variants that encode once, with cameras in attention."""
    for variant in ("prefix+prope", "cross+prope"):
        check_equals_plain(variant, [(0.5, 1)], n_layer=2, encoder_n_layer=1)


def own_kernels_equal_plain():
    """The operators of kernels that torch does not know: compiled whole, their results kept for backward or not."""
    gelu = ("up_gelu_epilogue", "gelu_backward_epilogue")
    slope = ("slope_gelu_epilogue", "slope_backward_epilogue")
    # With the context of one scene apart, results of attention kept; with those of two joined, those of matmuls, too;
    # everything saved.
    for scenes, every, share, attentions, (up, back), ups in (
        (1, 1, 1 / 9, 2, gelu, 2),
        (2, 1, 1.0, 1, gelu, 1),
        (2, 0, 1.0, 1, slope, 1),
    ):
        context = random_context(scenes, layers=1)
        plain = layer_gradients(PLAIN, context=context)
        with pytest.MonkeyPatch.context() as patch:
            attention = flash4.install(patch)
            mlp = quack.install(patch)
            flash4.measure_small(patch)
            found = layer_gradients(ExecutionConfig(every, share, compile="on"), "by_shape", context, "quack")
        for ours, theirs in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert attention.calls == {"forward": attentions, "backward": attentions}
        assert mlp.calls == {up: ups, back: 1}
    assert not counters["graph_break"]


def side_by_side_equals_plain():
    """Sequences beside their context, whatever is kept, for another number of scenes and of targets, too."""
    with pytest.MonkeyPatch.context() as patch:
        package = flash4.install(patch)
        flash4.measure_small(patch)
        for every, share, sizes in ((1, 0.0, (1, 2)), (1, 1.0, (2, 3)), (1, 1.5, (2, 3)), (0, 1.0, (2, 3))):
            results = []
            for execution, kernel in ((PLAIN, "flash"), (ExecutionConfig(every, share, compile="on"), "by_shape")):
                model = flash4.use(small_model("prefix", execution=execution, n_layer=2), kernel).train()
                images = model(random_views(sizes[0], 2), random_cameras(*sizes, seed=1))
                images.square().sum().backward()
                results.append([images.detach(), *(p.grad for p in model.parameters())])
            for ours, theirs in zip(*results, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    # Side by side three attentions; in the last block that of targets, apart; all again where nothing is kept.
    assert package.calls == {"forward": 2 * 5 + 3 * 5, "backward": 4 * 5}
    assert not counters["graph_break"]


@torch.no_grad()
def first_block_equals_plain():
    """What concerns a scene alone computed once, for another number of scenes and of targets, too."""
    ran = []
    inherited = Transformer.with_known
    for sizes in ((1, 2), (2, 3)):
        results = []
        for execution, kernel in ((PLAIN, "flash"), (ON, "by_shape")):
            with pytest.MonkeyPatch.context() as patch:
                flash4.install(patch)
                flash4.measure_small(patch)
                patch.setattr(Transformer, "with_known", lambda *args: ran.append(1) or inherited(*args))
                model = flash4.use(small_model("encoder_decoder", execution=execution, encoder_n_layer=1), kernel)
                results.append(model(random_views(sizes[0], 2), random_cameras(*sizes, seed=1)))
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
    assert len(ran) == 2 and not counters["graph_break"]


@torch.no_grad()
def frames_equal_plain():
    """Of prepared scenes, one after another, by torch's matmuls and by QuACK's; numbers of tokens that vary, too.

    By the whole compiler, which alone lays out memory.
    """
    targets = random_cameras(1, 3, seed=1)
    for mlp in ("torch", "quack"):
        results = []
        for compile in ("off", "on"):
            with pytest.MonkeyPatch.context() as patch:
                package = quack.install(patch)
                model = small_model("prefix", execution=replace(PLAIN, compile=compile), n_layer=2)
                encoded = [quack.use(model, mlp).eval().encode(random_views(1, views)) for views in (2, 3)]
                scenes = [
                    model.prepare_frames(scene, targets[:, :1]) if compile == "on" else scene for scene in encoded
                ]
                results.append([model.decode(scene, targets[:, i : i + 1]) for scene in scenes for i in (0, 1, 2, 0)])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert (package.calls["head_norm_epilogue"] > 0) == (mlp == "quack")
    assert not counters["graph_break"] and not compilation._failed


def check_rounding(results):
    """What `results` of an execution gives, images or tokens and gradients, is as exact compiled as plain."""
    exact, distances = results(PLAIN), []
    for execution in (PLAIN, ON):
        with torch.autocast("cpu", torch.bfloat16):
            found = results(execution)
        distances.append([(a - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)])
    for plain, compiled in zip(*distances, strict=True):
        assert compiled < 1.2 * plain + 1e-3, (compiled, plain)


def generates_code():
    """Of one layer, which has all that compiled code writes otherwise, as GELU and norms of 16 bits."""
    check_rounding(layer_gradients)


def layer_gradients(execution, kernel="flash", context=None, mlp="torch"):
    """Tokens and gradients of a layer."""
    torch.manual_seed(0)
    stack = apply_execution(Transformer(small_config("decoder_only").transformer, 1), execution).train()
    tokens = quack.use(flash4.use(stack, kernel), mlp)(torch.randn(2, 7, 64), context=context)
    tokens.square().sum().backward()
    return [tokens.detach(), *(p.grad for p in stack.parameters())]


def saved(execution):
    """Shapes of what a forward pass of two layers, the last one shortened, saves for backward."""
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape) or t, lambda t: t):
        forward("decoder_only", execution, n_layer=2)
    return shapes


def saves_statistics():
    """Means and variances stay for backward, also where all else is computed again."""
    shapes = saved(ExecutionConfig(2, 0.0, compile="on"))
    # Of two sequences of 72 tokens, two norms a block; the last block's second norm sees 24 of them.
    assert sum(shape == (2, 72, 1) for shape in shapes) >= 2 * 3, shapes


def saves_matmuls():
    """A group of two layers saves what two single layers save."""
    # The hidden layers of MLPs, of two sequences of 72 tokens; the last block's sees 24.
    hidden = [(144, 256), (2, 72, 256), (48, 256), (2, 24, 256)]
    for every, share, count in ((2, 0.0, 0), (2, 1.0, 2), (1, 1.0, 2)):
        shapes = saved(ExecutionConfig(every, share, compile="on"))
        assert sum(shape in hidden for shape in shapes) == count, (every, share, shapes)


@torch._inductor.config.patch({"cpp.cxx": ("/bin/false",)})
def goes_on_without_a_compiler():
    """Where the compiler fails, training gives what plain code gives, and says so once."""
    found = []
    said = logging.handlers.BufferingHandler(100)
    compilation.log.addHandler(said)
    with tempfile.TemporaryDirectory() as empty, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", empty)
        for execution in (PLAIN, ON):
            model, images = forward("decoder_only", execution, n_layer=1)
            images.square().sum().backward()
            found.append([images.detach(), *(p.grad for p in model.parameters())])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)
    assert compilation._failed
    compilation._failed.clear()
    (line,) = [record.getMessage() for record in said.buffer]
    assert "training.compile=off" in line and "compiling failed" in line


def takes_context_and_cameras():
    """A stack with context and relative cameras, which gives its keys and values back, compiled whole."""
    results = []
    for execution in (PLAIN, ON):
        torch.manual_seed(0)
        stack = Transformer(small_config("decoder_only").transformer, 3)
        apply_execution(stack, execution).train()
        x = torch.randn(2, 7, 64, requires_grad=True)
        context = random_context(2, layers=3)
        tokens, own = stack(x, slice(-4, None), context, TurnedByCameras(2, 7), return_kv=True)
        sum(t.square().sum() for t in (tokens, *(part for kv in own for part in kv))).backward()
        gradients = [x.grad, *(part.grad for kv in context for part in kv), *(p.grad for p in stack.parameters())]
        results.append([tokens, *(part for kv in own for part in kv), *gradients])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)
    assert not counters["graph_break"]


def copies_are_plain():
    """The copy of a compiled model is compiled, and renders with weights of its own."""
    model = small_model("decoder_only", execution=ON)
    inputs, targets = random_views(1, 2), random_cameras(1, 2, seed=1)
    with torch.no_grad():
        expected = model(inputs, targets)
        graphs = counters["stats"]["unique_graphs"]
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for parameter in model.parameters():
            parameter.zero_()
        for other in copies:
            assert torch.equal(other(inputs, targets), expected)
    # Those of the original serve its copies.
    assert counters["stats"]["unique_graphs"] == graphs


def counts_graphs_of_shapes():
    """Tokenizers, sequences, head, blocks and the shortened last block, for fixed and for free sizes; then none."""
    model = small_model("decoder_only", execution=replace(PLAIN, compile="on"), **FEWER_OPERATIONS)
    shapes = ((1, 2, 3), (2, 4, 2), (2, 2, 3), (3, 2, 3), (5, 2, 3), (2, 3, 3), (4, 5, 1), (6, 6, 4), (7, 3, 5))
    counts = []
    for b, v, t in shapes:
        with torch.no_grad():
            model(random_views(b, v), random_cameras(b, t, seed=1))
        counts.append(counters["stats"]["unique_graphs"])
    assert 0 < counts[-1] == counts[-2] == counts[-3] <= 20, counts
    assert not counters["graph_break"]


def pieces_share_graphs():
    """A stack of eight layers in pieces of two takes no more graphs than one of four."""
    execution = replace(PLAIN, compile="on", compile_layers=2)
    counts = []
    for layers in (4, 8):
        stack = apply_execution(Transformer(small_config("decoder_only").transformer, layers), execution)
        stack(torch.randn(2, 7, 64))
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1] > 0, counts


def compiles_each_size_once():
    """Where sizes of images take turns, each is compiled for when it comes first, whole, and never again."""
    with torch._dynamo.config.patch(automatic_dynamic_shapes=True):
        compile_each_shape(ON)
        sizes = {"n_layer": 1} | FEWER_OPERATIONS
        model = small_model("prefix+prope", execution=replace(ON, grad_checkpoint_every=0), **sizes).train()
        counts = [0]
        for height, width in ((16, 16), (16, 24), (16, 16), (16, 24), (24, 24), (16, 16)):
            views = random_views(2, 2, height=height, width=width)
            cameras = random_cameras(2, 3, height=height, width=width)
            model(views, cameras).sum().backward()
            counts.append(counters["stats"]["unique_graphs"])
    steps = [after - before for before, after in itertools.pairwise(counts)]
    assert steps == [steps[0], steps[0], 0, 0, steps[0], 0] and steps[0] > 0, counts
    assert not counters["graph_break"]


def serves_every_use():
    """Training and validation with other numbers of scenes and views, without more forms than torch allows.

    Of updates whose number of inputs is drawn, the second number that comes up is the last that is compiled for.
    """
    execution = ExecutionConfig(1, 0.75, compile="on")
    sizes = {"encoder_n_layer": 2, "decoder_n_layer": 2} | FEWER_OPERATIONS
    model = small_model("encoder_decoder", execution=execution, **sizes).train()
    counts = []
    for views in (2, 3, 5):
        model(random_views(2, views), random_cameras(2, 3, seed=1)).sum().backward()
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] < counts[1] == counts[2], counts
    for scenes in (4, 3, 1):
        with torch.inference_mode():
            model.decode(model.encode(random_views(scenes, 2)), random_cameras(scenes, 11, seed=1), max_views=8)


def fits_no_buckets():
    """Blocks compiled whole under DDP with buckets smaller than a block, with the gradients of plain code."""
    plain = gradients("decoder_only", PLAIN, n_layer=2)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for share, every in ((0.0, 0), (1.0, 2)):
        execution = ExecutionConfig(every, share, compile="on")
        model = small_model("decoder_only", execution=execution, n_layer=2).train()
        images = DistributedDataParallel(model, bucket_cap_mb=0.01)(random_views(1, 2), random_cameras(1, 2, seed=1))
        images.square().sum().backward()
        found = [images.detach(), *(p.grad for p in model.parameters())]
        for ours, theirs in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    dist.destroy_process_group()
    assert not counters["graph_break"]


# Groups of claims with their compiler; what it compiled for one claim of a group serves the next.
GROUPS = (
    (
        LOWERING,
        (fits_no_buckets, decoder_only_equals_plain, saves_statistics, saves_matmuls, encoder_decoder_equals_plain),
    ),
    (LOWERING, (takes_context_and_cameras,)),
    (LOWERING, (own_kernels_equal_plain,)),
    (LOWERING, (side_by_side_equals_plain,)),
    (LOWERING, (first_block_equals_plain,)),
    (FRONT, (counts_graphs_of_shapes, copies_are_plain)),
    (FRONT, (pieces_share_graphs,)),
    (FRONT, (serves_every_use,)),
    (FRONT, (compiles_each_size_once,)),
    (FRONT, (encoded_once_equals_plain,)),
    # First, while nothing is compiled yet.
    (INDUCTOR, (goes_on_without_a_compiler,)),
    (INDUCTOR, (generates_code,)),
    (INDUCTOR, (frames_equal_plain,)),
)


def verdict(claim):
    """Why a claim does not hold; None if it does."""
    try:
        claim()
        assert not compilation._failed, compilation._failed
    except Exception:
        return traceback.format_exc()
    return None


def main(names):
    prepare_compiler(ON)
    verdicts = {}
    for backend, claims in GROUPS:
        with compiler(backend):
            chosen = [claim for claim in claims if not names or claim.__name__ in names]
            verdicts |= {claim.__name__: verdict(claim) for claim in chosen}
    print(json.dumps(verdicts))


if __name__ == "__main__":
    main(sys.argv[1:])
