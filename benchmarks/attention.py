"""Time of attention, forward and backward, by every kernel that runs here, at the shapes of updates and frames.

    python -m benchmarks.attention [--shape "BATCH HEADS QUERIES KEYS" ...] [--channels 64] [--calls 20]

Heads are of noise, in 16 bits on a GPU. `difference` is how far results and gradients are from those of the shape's
first kernel, relative to their size: the worst of all. "cudnn, own operator" is what takes over where FlashAttention-4
fails. Where a context is joined, the copies and the sums of their gradients count. "recorded" is forward in a CUDA
graph of several in a row, as a GPU renders.
"""

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common import benchmark_parser, distance, gradients, positive, release_memory, show, spread, timed
from model import attention_kernel, transformer
from model.attention_kernel import OwnKernel, attend_apart, attend_by, takes_fa4, why_no_fa4
from model.transformer import KeysValues, join
from utils.cli import run_main
from utils.errors import InputError
from utils.text import shown

Attend = Callable[..., Tensor]


class Shape(NamedTuple):
    """Of one attention, and where it occurs."""

    work: str
    batch: int
    heads: int
    queries: int
    keys: int


class Context(NamedTuple):
    """Of targets that attend to themselves and to the inputs of their scene."""

    work: str
    scenes: int
    targets: int
    heads: int
    tokens: int
    inputs: int


# Of the published sizes: 8 scenes x 6 targets, 2 inputs, 1024 tokens a view, 3072 latents.
SHAPES = (
    Shape("decoder-only update", 48, 12, 3072, 3072),
    Shape("decoder-only rendering 4 x 3", 12, 12, 3072, 3072),
    Shape("encoder update", 8, 12, 5120, 5120),
    Shape("decoder update", 48, 12, 4096, 4096),
    Shape("prefix update, targets", 48, 12, 1024, 3072),
    Shape("prefix update, inputs alone", 8, 12, 6144, 2048),
    Shape("prefix update, own tokens alone", 48, 12, 1024, 1024),
    Shape("prefix update, inputs", 8, 12, 2048, 2048),
    Shape("prefix, one frame", 1, 12, 1024, 3072),
)
CONTEXTS = (
    Context("prefix update, with joining", 8, 6, 12, 1024, 2048),
    Context("prefix rendering 4 x 3, with joining", 4, 3, 12, 1024, 2048),
    Context("prefix, 8 targets of a scene, with joining", 1, 8, 12, 1024, 2048),
    Context("prefix, 2 targets of a scene, with joining", 1, 2, 12, 1024, 2048),
)
# As many as there are layers.
IN_A_ROW = 24
TORCHS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def torchs(backend: SDPBackend) -> Attend:
    """Attention by one of torch's own kernels, and by no other."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def own(kernel: OwnKernel) -> Attend:
    """Attention by our own operator."""
    return functools.partial(attend_by, kernel)


def kernels_here(q: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[str, Attend]]:
    """Every kernel that takes these heads, by name."""
    for name, backend in TORCHS.items():
        if runs(torchs(backend), q, k, v):
            yield name, torchs(backend)
    if not takes_fa4("fa4", q, k.shape[2]) or why_no_fa4() is not None:
        return
    yield "fa4", own("fa4")
    yield "cudnn, own operator", own("cudnn")


def runs(attend: Attend, *heads: Tensor) -> bool:
    """Whether a kernel takes these heads."""
    try:
        attend(*heads)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    return True


def seeded_heads(channels: int, *sizes: tuple[int, int, int]) -> list[Tensor]:
    """Heads [b h n c] of so many sequences, tokens and heads each, as projections give them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    wholes = [torch.randn(*size, channels, device=device, dtype=dtype, generator=generator) for size in sizes]
    return [whole.transpose(1, 2).requires_grad_() for whole in wholes]


def speed(direction: str, flops: float, work: Callable[[], object], calls: int) -> dict[str, Any]:
    """Columns of one direction."""
    seconds = timed(work, calls, 3)
    median = statistics.median(seconds)
    row: dict[str, Any] = {f"{direction} ms": median * 1e3, f"{direction} TFLOP/s": flops / median / 1e12}
    return row | {f"{direction} spread": f"{spread(seconds):.1%}"}


def recorded_speed(attend: Attend, heads: Sequence[Tensor], calls: int) -> dict[str, Any]:
    """The column of forward in a CUDA graph, where there is a GPU."""
    if not torch.cuda.is_available():
        return {}
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        attend(*heads)
        with torch.cuda.graph(graph):
            for _ in range(IN_A_ROW):
                attend(*heads)
    return {"recorded ms": statistics.median(timed(graph.replay, calls, 3)) / IN_A_ROW * 1e3}


def compare(
    kernels: Iterable[tuple[str, Attend]], heads: Sequence[Tensor], outer: Tensor, flops: float, calls: int
) -> Iterator[dict[str, Any]]:
    """Columns of every kernel for the same heads; backward recomputes the scores."""
    reference: list[Tensor] = []
    for name, attend in kernels:
        found = gradients(attend, heads, outer)
        if failures := attention_kernel.package.failures:
            raise SystemExit(f"{name}: FlashAttention-4 failed: {failures[0]}")
        reference = reference or found
        far = max(map(distance, found, reference))
        differentiate = functools.partial(torch.autograd.grad, attend(*heads), heads, outer, retain_graph=True)
        forward = speed("forward", flops, functools.partial(attend, *heads), calls)
        backward = speed("backward", 2.5 * flops, differentiate, calls)
        recorded = recorded_speed(attend, heads, calls)
        yield {"kernel": name} | forward | recorded | backward | {"difference": far}


def place(work: str, batch: int, heads: int, queries: int, keys: int) -> dict[str, Any]:
    """Columns that say what is measured."""
    return {"work": work, "batch x heads": f"{batch} x {heads}", "queries": queries, "keys": keys}


def measure(shape: Shape, channels: int, calls: int) -> Iterator[dict[str, Any]]:
    """A row for every kernel."""
    release_memory()
    _, b, h, queries, keys = shape
    *heads, outer = seeded_heads(channels, (b, queries, h), (b, keys, h), (b, keys, h), (b, queries, h))
    flops = 4.0 * b * h * queries * keys * channels
    for row in compare(kernels_here(*heads), heads, outer, flops, calls):
        yield place(*shape) | row


def measure_context(shape: Context, channels: int, calls: int) -> Iterator[dict[str, Any]]:
    """A row for every way to attend to keys of one's own and of a context."""
    release_memory()
    work, scenes, targets, h, tokens, inputs = shape
    b = scenes * targets
    *heads, outer = seeded_heads(channels, *[(b, tokens, h)] * 3, *[(scenes, inputs, h)] * 2, (b, tokens, h))
    flops = 4.0 * b * h * tokens * (tokens + inputs) * channels
    for row in compare(ways_here(*heads[:2]), heads, outer, flops, calls):
        yield place(work, b, h, tokens, tokens + inputs) | row


def ways_here(q: Tensor, k: Tensor) -> Iterator[tuple[str, Attend]]:
    """Every way to attend to a context with such heads, by name."""
    yield "torch's fastest, joined", joined(functools.partial(transformer.attend, kernel="cudnn"))
    if not takes_fa4("fa4", q, k.shape[2]):
        return
    yield "cudnn, apart", apart("cudnn")
    if why_no_fa4() is None:
        yield "fa4, joined", joined(own("fa4"))
        yield "fa4, apart", apart("fa4")


def apart(kernel: OwnKernel) -> Attend:
    """Attention to one's own keys and values and to a context's, apart and merged."""
    return lambda q, k, v, *context: attend_apart(kernel, q, k, v, context)


def joined(attend: Attend) -> Attend:
    """Attention to one's own keys and values and to a context's, which every sequence gets a copy of."""
    return lambda q, k, v, *context: attend(q, *join(KeysValues(*context), KeysValues(k, v)))


def chosen_shapes(given: Sequence[str]) -> Sequence[Shape]:
    """Those of the command line.

    Raises:
        InputError: one is not four positive numbers.
    """
    shapes = []
    for text in given:
        numbers = text.split()
        if len(numbers) != 4 or not all(number.isdecimal() and int(number) for number in numbers):
            raise InputError(f'--shape {shown(text)}: give "BATCH HEADS QUERIES KEYS", four positive numbers')
        shapes.append(Shape("", *map(int, numbers)))
    return shapes


def main(argv: Sequence[str]) -> None:
    """Measure every shape."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--shape", action="append", default=[], metavar='"BATCH HEADS QUERIES KEYS"', help="repeatable")
    parser.add_argument("--channels", type=positive, default=64, help="of a head")
    parser.add_argument("--calls", type=positive, default=20, help="calls a repeat")
    given = parser.parse_args(argv)
    shapes = chosen_shapes(given.shape) or SHAPES
    rows = [row for shape in shapes for row in measure(shape, given.channels, given.calls)]
    contexts = () if given.shape else CONTEXTS
    rows += [row for shape in contexts for row in measure_context(shape, given.channels, given.calls)]
    show(rows, given.json)
    if why_not := why_no_fa4():
        print(f"without FlashAttention-4: {why_not}")


if __name__ == "__main__":
    run_main(main)
