"""FlashAttention-4 in plain formulas, with the interface of the package, and cuDNN's operators on the CPU."""

import math
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

from model import attention_kernel as room
from model.transformer import MultiHead
from tests.helpers import forget_until_undone

_ATEN = torch.ops.aten


class Flash4(ModuleType):
    """Stands for `flash_attn.cute.interface`; counts its calls, and checks what the kernels would check."""

    def __init__(self) -> None:
        super().__init__("flash_attn.cute.interface")
        self.calls: Counter[str] = Counter()
        self.errors: dict[str, Exception] = {}
        # Where the heads of the last call lie.
        self.places: list[int] = []
        # What the last forward's tiles were to be; None: the package's choice.
        self.tile: tuple[int, int] | None = None

    def _begin(self, name: str, *heads: Tensor) -> None:
        self.calls[name] += 1
        if name in self.errors:
            raise self.errors[name]
        self.places = [x.data_ptr() for x in heads]
        assert len({x.dtype for x in heads}) == 1 and all(x.stride(-1) == 1 for x in heads)

    def _flash_attn_fwd(self, q, k, v, return_lse=False, out=None, tile_mn=None):
        """As version 4.0.0b36 returns it."""
        self._begin("forward", q, k, v)
        self.tile = tile_mn
        scores = _scores(q, k)
        found = torch.einsum("bhnm,bmhc->bnhc", scores.softmax(-1), v)
        return (
            found.contiguous() if out is None else out.copy_(found),
            scores.logsumexp(-1).float() if return_lse else None,
            None,
            None,
            None,
        )

    def _flash_attn_bwd(self, q, k, v, out, dout, lse, dq, dk, dv):
        """From `lse` rather than from a softmax of its own, as the kernels do."""
        self._begin("backward", q, k, v, out, dout, dq, dk, dv)
        b, n, h, _ = q.shape
        assert lse.shape == (b, h, n) and lse.dtype == torch.float32 and dout.is_contiguous()
        q, k, v, out, dout = (x.float() for x in (q, k, v, out, dout))
        probabilities = (_scores(q, k) - lse[..., None]).exp()
        dv.copy_(torch.einsum("bhnm,bnhc->bmhc", probabilities, dout))
        inner = torch.einsum("bnhc,bmhc->bhnm", dout, v)
        slopes = probabilities * (inner - (dout * out).sum(-1).transpose(1, 2)[..., None]) / math.sqrt(q.shape[-1])
        dq.copy_(torch.einsum("bhnm,bmhc->bnhc", slopes, k))
        dk.copy_(torch.einsum("bhnm,bnhc->bmhc", slopes, q))


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Scores [b h n m] of heads [b n h c]."""
    return torch.einsum("bnhc,bmhc->bhnm", q, k) / math.sqrt(q.shape[-1])


def _forward_for_cpu(q, k, v, attn_bias, compute_log_sumexp):
    """What cuDNN's operator returns, of which the first two matter."""
    out, lse = _ATEN._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse[..., None], None, None, q.shape[2], k.shape[2], None, None, None


def _backward_for_cpu(outer, q, k, v, out, lse, _seed, _offset, *rest):
    assert rest == (None, None, None, q.shape[2], k.shape[2], 0.0, False)
    return _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(outer, q, k, v, out, lse[..., 0], 0.0, False)


CUDNN_FOR_CPU = SimpleNamespace(
    _scaled_dot_product_cudnn_attention=_forward_for_cpu, _scaled_dot_product_cudnn_attention_backward=_backward_for_cpu
)


def install(patch) -> Flash4:
    """Have this process find both and give them float32 heads on the CPU, until `patch` is undone."""
    package = Flash4()
    patch.setitem(sys.modules, package.__name__, package)
    patch.setattr(room, "_ATEN", CUDNN_FOR_CPU)
    patch.setattr(room, "_DEVICES", {"cpu", "meta"})
    patch.setattr(room, "_DTYPES", (torch.float32,))
    patch.setattr(room.package, "failures", [])
    forget_until_undone(patch, room, "_fa4")
    return package


def measure_small(patch) -> None:
    """Heads and numbers of tokens of small models count as measured, until `patch` is undone.

    By shape, FlashAttention-4 trains with all of them and renders with none: multiprocessors are too few.
    """
    patch.setattr(room, "_MEASURED_HEAD", 32)
    patch.setattr(room, "_MULTIPROCESSORS", 0)
    for name in ("_SCORES", "_SCORES_RENDERING", "_SCORES_APART_RENDERING", "_SCORES_IN_ONE_ROUND"):
        patch.setattr(room, name, 1)


def use(model: nn.Module, kernel: str = "fa4") -> nn.Module:
    """The model, its attention by that kernel."""
    for module in model.modules():
        if isinstance(module, MultiHead):
            module.kernel = kernel
    return model
