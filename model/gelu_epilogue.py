"""GELU and its gradient in the epilogue of QuACK's matmuls: functions of one result each, in float32, in registers.

The formula is that of fused.py, in instructions of the card. To be imported only where QuACK is.
"""

# mypy: disable-error-code="no-untyped-def"

import functools
import math

import cutlass.cute as cute
from quack.epilogue.frontend import gemm_epilogue
from quack.gemm_config import GemmConfig
from torch import Tensor

from model.fused import COEFFICIENTS, P

# Tiles measured to be the fastest on Hopper for d = 768, by the number of tokens (benchmarks/RECORDS.md). Pairs of
# blocks have the columns of a matrix in common. Of many tokens, tiles are handed out as they are asked for, and for the
# gradient pairs have the rows in common; where slopes are saved, neither. Of few, which make no second tile for a
# block, all its warps share one.
_in_tiles = functools.partial(GemmConfig, tile_m=128, tile_n=192)
_TILES = _in_tiles(pingpong=True, cluster_m=2, cluster_n=1, is_dynamic_persistent=False)
_TILES_OF_MANY = _in_tiles(pingpong=True, cluster_m=2, cluster_n=1, is_dynamic_persistent=True)
_GRADIENT_TILES_OF_MANY = _in_tiles(pingpong=True, cluster_m=1, cluster_n=2, is_dynamic_persistent=True)
_TILES_OF_FEW = _in_tiles(pingpong=False, cluster_m=2, cluster_n=1, is_dynamic_persistent=False)
_MANY = 100_000
_FEW = 1_100


def _tail(x):
    """Φ(-|x|) and φ(x)."""
    density = cute.math.exp2(x * x * (-0.5 / math.log(2)), fastmath=True) * (1 / math.sqrt(2 * math.pi))
    t = cute.arch.rcp_approx(cute.math.absf(x) * P + 1.0)
    polynomial = t * COEFFICIENTS[0]
    polynomial = (polynomial + COEFFICIENTS[1]) * t
    polynomial = (polynomial + COEFFICIENTS[2]) * t
    polynomial = (polynomial + COEFFICIENTS[3]) * t
    polynomial = (polynomial + COEFFICIENTS[4]) * t
    return density * polynomial, density


def _gelu(x):
    return cute.arch.fmax(x, 0.0) - cute.math.absf(x) * _tail(x)[0]


def _gelu_and_slope(x):
    tail, density = _tail(x)
    slope = 0.5 + cute.math.copysign(0.5 - tail, x) + x * density
    return cute.arch.fmax(x, 0.0) - cute.math.absf(x) * tail, slope


@gemm_epilogue(outputs=("activated",))
def up_gelu_epilogue(acc):
    """The matmul's result, and GELU of it."""
    return {"D": acc, "activated": _gelu(acc)}


@gemm_epilogue(outputs=("activated",))
def slope_gelu_epilogue(acc):
    """GELU's slope at the matmul's result, and GELU of it."""
    activated, slope = _gelu_and_slope(acc)
    return {"D": slope, "activated": activated}


@gemm_epilogue()
def slope_backward_epilogue(acc, c):
    """The matmul's result times GELU's slope `c`."""
    return {"D": acc * c}


@gemm_epilogue()
def gelu_epilogue(acc):
    """GELU of the matmul's result alone."""
    return {"D": _gelu(acc)}


@gemm_epilogue(outputs=("activated",))
def gelu_backward_epilogue(acc, c):
    """The gradient of `c` from that of GELU(c), which is the matmul's result; and GELU(c)."""
    activated, slope = _gelu_and_slope(c)
    return {"D": acc * slope, "activated": activated}


def _tiles(x: Tensor) -> GemmConfig:
    return _TILES_OF_MANY if len(x) >= _MANY else _TILES


def up_gelu(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The fast form of `up_gelu_plainly`."""
    result = up_gelu_epilogue(x, up.T, config=_tiles(x))
    return result["D"], result["activated"]


def slope_gelu(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The fast form of `slope_gelu_plainly`."""
    result = slope_gelu_epilogue(x, up.T, config=_TILES)
    return result["D"], result["activated"]


def slope_backward(outer: Tensor, down: Tensor, slope: Tensor) -> Tensor:
    """The fast form of `slope_backward_plainly`."""
    return slope_backward_epilogue(outer, down, slope, config=_TILES)["D"]


def gelu_of_up(x: Tensor, up: Tensor) -> Tensor:
    """The fast form of `gelu_of_up_plainly`."""
    return gelu_epilogue(x, up.T, config=_TILES_OF_FEW if len(x) < _FEW else _tiles(x))["D"]


def gelu_backward(outer: Tensor, down: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The fast form of `gelu_backward_plainly`."""
    tiles = _GRADIENT_TILES_OF_MANY if len(outer) >= _MANY else _TILES
    result = gelu_backward_epilogue(outer, down, before, config=tiles)
    return result["D"], result["activated"]
