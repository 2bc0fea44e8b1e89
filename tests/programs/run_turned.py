"""The kernel that turns heads, run by Triton's interpreter on the CPU, beside the plain form: outputs and gradients.

Prints the largest difference of every case. Needs TRITON_INTERPRET=1 in the environment.
"""

import itertools

import torch
from torch import nn

from model.prope import turn_plainly
from model.prope_kernel import turn_fast


def case(h, c, tokens, normed, transposed, back):
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
    return max((a - b).abs().max().item() for a, b in zip(*results, strict=True))


def main():
    for sizes in ((3, 64, 3), (2, 32, 2), (2, 96, 2)):
        for choices in itertools.product((False, True), repeat=3):
            print(case(*sizes, *choices))


if __name__ == "__main__":
    main()
