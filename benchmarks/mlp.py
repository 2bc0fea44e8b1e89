"""Time of the MLP by torch's matmuls and by QuACK's with GELU inside them, at the numbers of tokens that occur.

    python -m benchmarks.mlp [--tokens N ...] [--channels 768] [--calls 20]

Tokens and weights are of noise, in 16 bits on a GPU, where all is compiled. `update ms` is forward and backward;
`difference` is how far results and gradients are from those of torch, relative to their size: the worst of all.
"""

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import benchmark_parser, distance, gradients, positive, release_memory, show, spread, timed
from model import mlp_kernel
from model.fused import gelu
from model.mlp_kernel import mlp_by_quack, why_no_quack
from utils.cli import run_main

Form = Callable[[Tensor, Tensor, Tensor], Tensor]

# Of the published sizes: 8 scenes x 6 targets, 2 inputs, 1024 tokens a view, 3072 latents.
WORK = {
    147_456: "decoder-only update",
    196_608: "decoder of an encoder-decoder update",
    49_152: "prefix update, targets",
    36_864: "decoder-only rendering 4 x 3",
    8_192: "prefix, 8 targets of a scene",
    3_072: "decoder-only, one frame",
    1_024: "prefix, one frame",
}


def by_torch(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """GELU(x upᵀ) downᵀ, GELU by itself."""
    return F.linear(gelu(F.linear(x, up)), down)


def with_slopes(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """By QuACK, with GELU's slope saved."""
    return mlp_by_quack(x, up, down, save_slope=True)


def forms_here() -> dict[str, Form]:
    """All that runs here, by name."""
    forms: dict[str, Form] = {"torch": by_torch}
    if why_no_quack() is None:
        forms |= {"quack": mlp_by_quack, "quack, slopes saved": with_slopes}
    return {
        name: torch.compile(form, dynamic=False) if torch.cuda.is_available() else form for name, form in forms.items()
    }


def seeded(tokens: int, channels: int) -> list[Tensor]:
    """Tokens, both weights, and the gradient of the result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    sizes = ((tokens, channels), (4 * channels, channels), (channels, 4 * channels), (tokens, channels))
    scales = (1.0, channels**-0.5, (4 * channels) ** -0.5, 1.0)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    noise = (torch.randn(size, device=device, generator=generator) for size in sizes)
    return [(scale * x).to(dtype).requires_grad_() for scale, x in zip(scales, noise, strict=True)]


def measure(tokens: int, channels: int, calls: int) -> Iterator[dict[str, Any]]:
    """A row for every form."""
    release_memory()
    *wanted, outer = seeded(tokens, channels)
    reference: list[Tensor] = []
    for name, form in forms_here().items():
        found = gradients(form, wanted, outer)
        if failures := mlp_kernel.package.failures:
            raise SystemExit(f"{name}: QuACK failed: {failures[0]}")
        reference = reference or found
        row = {"work": WORK.get(tokens, ""), "tokens": tokens, "kernel": name}
        with torch.no_grad():
            row |= speed("rendering", functools.partial(form, *wanted), calls)
        row |= speed("update", functools.partial(gradients, form, wanted, outer), calls)
        yield row | {"difference": max(map(distance, found, reference))}


def speed(direction: str, work: Callable[[], object], calls: int) -> dict[str, Any]:
    """Columns of one direction."""
    seconds = timed(work, calls, 3)
    return {f"{direction} ms": statistics.median(seconds) * 1e3, f"{direction} spread": f"{spread(seconds):.1%}"}


def main(argv: Sequence[str]) -> None:
    """Measure every number of tokens."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--tokens", type=positive, nargs="+", default=list(WORK))
    parser.add_argument("--channels", type=positive, default=768, help="of a token")
    parser.add_argument("--calls", type=positive, default=20, help="calls a repeat")
    given = parser.parse_args(argv)
    show([row for tokens in given.tokens for row in measure(tokens, given.channels, given.calls)], given.json)
    if reason := why_no_quack():
        print(f"without QuACK: {reason}")


if __name__ == "__main__":
    run_main(main)
