"""Training that, where it compiles, finds graphs alone: what is made of them, which takes longest, is left out."""

import functools

import torch

import train
from utils.cli import run_main

torch.compile = functools.partial(torch.compile, backend="eager")
run_main(train.main)
