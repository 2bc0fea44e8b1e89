"""Time of attention, forward and backward, by every kernel that runs here, at the shapes of updates and frames.

    python -m benchmarks.attention [--shape "BATCH HEADS QUERIES KEYS" ...] [--channels 64] [--calls 20]

Heads are of noise, in 16 bits on a GPU. `difference` is how far results and gradients are from those of the shape's
first kernel, relative to their size: the worst of four. "cudnn + fa4" runs forward on the one, backward on the other.
"""

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common import benchmark_parser, release_memory, show, spread, timed
from model import attention_kernel
from model.attention_kernel import Kernels, attend_by, own_kernels, why_no_fa4
from utils.cli import run_main
from utils.errors import InputError
from utils.text import shown

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Of one attention, and where it occurs."""

    work: str
    batch: int
    heads: int
    queries: int
    keys: int


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


def own(kernels: Kernels) -> Attend:
    """Attention by our own operator."""
    return lambda q, k, v: attend_by(kernels, q, k, v)


def kernels_here(q: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[str, Attend]]:
    """Every kernel that takes these heads, by name."""
    for name, backend in TORCHS.items():
        if runs(torchs(backend), q, k, v):
            yield name, torchs(backend)
    if own_kernels("fa4", q, k) is None or why_no_fa4() is not None:
        return
    yield "fa4", own(Kernels("fa4", "fa4"))
    yield "cudnn + fa4", own(Kernels("cudnn", "fa4"))
    yield "cudnn, own operator", own(Kernels("cudnn", "cudnn"))


def runs(attend: Attend, *heads: Tensor) -> bool:
    """Whether a kernel takes these heads."""
    try:
        attend(*heads)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    return True


def seeded_heads(shape: Shape, channels: int) -> list[Tensor]:
    """Queries, keys and values [b h n c] as projections give them, and the gradient of the result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    heads = []
    for tokens in (shape.queries, shape.keys, shape.keys, shape.queries):
        size = (shape.batch, tokens, shape.heads, channels)
        x = torch.randn(size, device=device, dtype=dtype, generator=generator)
        heads.append(x.transpose(1, 2).requires_grad_())
    return heads


def results(attend: Attend, q: Tensor, k: Tensor, v: Tensor, outer: Tensor) -> list[Tensor]:
    """What attention gives, and the gradients of queries, keys and values."""
    out = attend(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), outer)]


def distance(found: Tensor, reference: Tensor) -> float:
    """How far a tensor is from another, relative to its size."""
    return ((found.float() - reference.float()).norm() / reference.float().norm()).item()


def speed(direction: str, flops: float, work: Callable[[], object], calls: int) -> dict[str, Any]:
    """Columns of one direction."""
    seconds = timed(work, calls, 3)
    median = statistics.median(seconds)
    row: dict[str, Any] = {f"{direction} ms": median * 1e3, f"{direction} TFLOP/s": flops / median / 1e12}
    return row | {f"{direction} spread": f"{spread(seconds):.1%}"}


def speeds(shape: Shape, attend: Attend, heads: Sequence[Tensor], outer: Tensor, calls: int) -> dict[str, Any]:
    """Columns of both directions; backward recomputes the scores."""
    flops = 4.0 * math.prod(shape[1:]) * heads[0].shape[-1]
    out = attend(*heads)
    differentiate = functools.partial(torch.autograd.grad, out, heads, outer, retain_graph=True)
    forward = speed("forward", flops, functools.partial(attend, *heads), calls)
    return forward | speed("backward", 2.5 * flops, differentiate, calls)


def measure(shape: Shape, channels: int, calls: int) -> Iterator[dict[str, Any]]:
    """A row for every kernel."""
    release_memory()
    q, k, v, outer = seeded_heads(shape, channels)
    place: dict[str, Any] = {"work": shape.work, "batch x heads": f"{shape.batch} x {shape.heads}"}
    place |= {"queries": shape.queries, "keys": shape.keys}
    reference: list[Tensor] = []
    for name, attend in kernels_here(q, k, v):
        found = results(attend, q, k, v, outer)
        if attention_kernel.failures:
            raise SystemExit(f"{name}: FlashAttention-4 failed: {attention_kernel.failures[0]}")
        reference = reference or found
        row = place | {"kernel": name} | speeds(shape, attend, (q, k, v), outer, calls)
        yield row | {"difference": max(map(distance, found, reference))}


def chosen_shapes(given: Sequence[str]) -> Sequence[Shape]:
    """Those of the command line, else those of the published sizes.

    Raises:
        InputError: one is not four positive numbers.
    """
    shapes = []
    for text in given:
        numbers = text.split()
        if len(numbers) != 4 or not all(number.isdecimal() and int(number) for number in numbers):
            raise InputError(f'--shape {shown(text)}: give "BATCH HEADS QUERIES KEYS", four positive numbers')
        shapes.append(Shape("", *map(int, numbers)))
    return shapes or SHAPES


def main(argv: Sequence[str]) -> None:
    """Measure every shape."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--shape", action="append", default=[], metavar='"BATCH HEADS QUERIES KEYS"', help="repeatable")
    parser.add_argument("--channels", type=int, default=64, help="of a head")
    parser.add_argument("--calls", type=int, default=20, help="calls a repeat")
    given = parser.parse_args(argv)
    rows = [row for shape in chosen_shapes(given.shape) for row in measure(shape, given.channels, given.calls)]
    show(rows, given.json)
    if why_not := why_no_fa4():
        print(f"without FlashAttention-4: {why_not}")


if __name__ == "__main__":
    run_main(main)
