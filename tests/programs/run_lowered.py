"""Training that, where it compiles, leaves out the generation of code, which takes longest."""

import functools

import torch

import train
from utils.cli import run_main

torch.compile = functools.partial(torch.compile, backend="aot_eager_decomp_partition")
run_main(train.main)
