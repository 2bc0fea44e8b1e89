"""RMS norms of queries and keys in the epilogue of the matmul that gives them, in float32, in registers.

To be imported only where QuACK is.
"""

# mypy: disable-error-code="no-untyped-def"

from quack.epilogue.frontend import gemm_epilogue
from quack.epilogue.head_rmsnorm import HeadRstd
from quack.epilogue.ops import RowVecLoad
from quack.gemm_config import GemmConfig
from torch import Tensor

from model.fused import QK_EPS

# Measured to be the fastest on Hopper for d = 768: as those of GELU.
_TILES = GemmConfig(tile_m=128, tile_n=192, pingpong=True, cluster_m=2, cluster_n=1, is_dynamic_persistent=False)


def _squares(acc):
    return {"rstd": acc * acc}


@gemm_epilogue(
    ops={"rstd": HeadRstd("rstd", eps=QK_EPS), "weight": RowVecLoad("weight"), "plain": RowVecLoad("plain")},
    prepass=_squares,
    prepass_outs=("rstd",),
)
def head_norm_epilogue(acc, rstd, weight, plain):
    """The matmul's result over the root mean square of its head, times `weight`; and itself times `plain`."""
    return {"D": acc * (rstd * weight + plain)}


def normed_qkv(x: Tensor, projection: Tensor, shares: Tensor, d_head: int, into: Tensor) -> None:
    """The fast form of `normed_qkv_plainly`, written to `into`."""
    weight, plain = shares
    head_norm_epilogue(x, projection.T, out={"D": into}, config=_TILES, rstd=d_head, weight=weight, plain=plain)
