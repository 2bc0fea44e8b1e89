"""Kernels written in Triton, run by its interpreter on the CPU, beside their plain forms: outputs and gradients.

Prints the largest difference of every case, by kernel. Needs TRITON_INTERPRET=1 in the environment.
"""

import itertools
import json

import torch
from torch import nn

from model.attention_kernel import merge_plainly
from model.head_norm_kernel import normalize_backward_fast, normalize_fast
from model.merge_kernel import merge_fast
from model.normed_attention import normalize_backward_plainly, normalize_plainly
from model.prope import turn_plainly
from model.prope_kernel import turn_fast


def turned(h, c, tokens, normed, transposed, back):
    torch.manual_seed(0)
    # A view of queries, keys and values side by side, as attention has them.
    x = torch.randn(2, tokens, 3, h, c, requires_grad=True)
    norm = nn.RMSNorm(c, eps=1e-5) if normed else None
    wanted = [x] if norm is None else [x, nn.init.normal_(norm.weight, 1, 0.3)]
    angles = torch.randn(tokens, c // 4)
    turns = (torch.randn(2, tokens, 4, 4), angles.cos(), angles.sin(), transposed, back)
    outer = torch.randn(2, tokens, h, c)
    results = []
    for turn in (turn_plainly, turn_fast):
        y = turn(x[:, :, 1], norm, *turns)
        results.append([y, *torch.autograd.grad(y, wanted, outer)])
    return largest(*results)


def merged(h, c, tokens):
    """The log-sum-exps far apart, too."""
    torch.manual_seed(0)
    out, other = torch.randn(2, 2, tokens, h, c)
    lse, other_lse = 30 * torch.randn(2, 2, h, tokens)
    places = [torch.zeros_like(out), torch.zeros_like(out)]
    totals = [
        merge(out, lse, other, other_lse, place)
        for merge, place in zip((merge_plainly, merge_fast), places, strict=True)
    ]
    return largest(*zip(places, totals, strict=True))


def normed(h, c, tokens, others):
    """With gradients to add to those of queries from so many tokens on, and of keys up to them, or None."""
    torch.manual_seed(0)
    heads, dheads = torch.randn(tokens, 3, h, c), torch.zeros(tokens, 3, h, c)
    weights = torch.randn(2, c)
    dq, dk = torch.randn(2, tokens, h, c)
    more = None if others is None else (torch.randn(tokens - others, h, c), torch.randn(others, h, c))
    results = []
    for normalize, backward in (
        (normalize_plainly, normalize_backward_plainly),
        (normalize_fast, normalize_backward_fast),
    ):
        places = dheads.clone()
        sums = backward(dq.clone(), dk.clone(), more, heads, *weights, places)
        results.append([*normalize(heads, *weights), places, sums / (tokens * h)])
    # Values are not touched.
    assert not results[1][2][:, 2].any()
    return largest(*results)


def largest(found, expected):
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


def main():
    sizes = ((3, 64, 3), (2, 32, 2), (2, 96, 2))
    # Of one size all choices of a norm, of the transpose and of the direction; of the others each choice once.
    choices = list(itertools.product((False, True), repeat=3))
    turns = [turned(2, 32, 2, *choice) for choice in choices]
    turns += [turned(*size, *choice) for size in sizes[::2] for choice in ((True, False, True), (False, True, False))]
    # More heads than a program takes at once and in a row, and channels that are no power of 2.
    norms = [normed(2, 32, 5, None), normed(2, 32, 5, 2), normed(3, 24, 120, 50), normed(12, 64, 4, None)]
    print(
        json.dumps({"turned": turns, "merged": [merged(h, c, tokens + 2) for h, c, tokens in sizes], "normed": norms})
    )


if __name__ == "__main__":
    main()
