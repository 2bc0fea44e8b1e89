"""QuACK's matmuls in plain formulas, and what of CuTe epilogues are written in, for this project's own functions.

They have the interface of the packages, so that model/gelu_epilogue.py runs as it is, on the CPU.
"""

import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

from model import mlp_kernel as room
from model import normed_projection as projection
from model.transformer import MLP, MultiHead
from tests.helpers import forget_until_undone

OURS = ("model.gelu_epilogue", "model.norm_epilogue")
CUTE = SimpleNamespace(
    math=SimpleNamespace(absf=torch.abs, copysign=torch.copysign, exp2=lambda x, fastmath: torch.exp2(x)),
    arch=SimpleNamespace(rcp_approx=torch.reciprocal, fmax=lambda x, y: x.clamp_min(y)),
)


class Epilogues:
    """Stands for `quack.epilogue.frontend`; counts its calls by the name of the epilogue."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.tiles: list[SimpleNamespace] = []
        self.errors: dict[str, Exception] = {}

    def gemm_epilogue(self, outputs=(), ops=None, prepass=None, prepass_outs=()):
        """A matmul with a function of its result in float32, of another matrix of that shape, or of `ops`."""

        def wrap(function):
            def matmul(
                a: Tensor, b: Tensor, c: Tensor | None = None, *, config, out=None, **given
            ) -> dict[str, Tensor]:
                self.calls[function.__name__] += 1
                self.tiles.append(config)
                if function.__name__ in self.errors:
                    raise self.errors[function.__name__]
                # What the kernels would check.
                assert config.tile_m and all(min(x.stride()) == 1 for x in (a, b)) and a.dtype == b.dtype
                # Inside operators autocast reaches what is written in torch alone.
                with torch.autocast(a.device.type, enabled=False):
                    result = a.float() @ b.float()
                summed = prepass(result) if prepass else {}
                assert set(summed) == set(prepass_outs) and set(given) == set(ops or {})
                values = {name: op(given[name], summed.get(name)) for name, op in (ops or {}).items()}
                found = function(result, *([] if c is None else [c.float()]), **values)
                assert set(found) == {"D", *outputs}
                results = {name: x.to(a.dtype) for name, x in found.items()}
                for name, place in (out or {}).items():
                    assert place.is_contiguous() and place.dtype == a.dtype
                    results[name] = place.copy_(results[name])
                return results

            return matmul

        return wrap


class HeadRstd:
    """One over the root mean square of heads of so many columns, for every column."""

    def __init__(self, name: str, eps: float) -> None:
        self.eps = eps

    def __call__(self, width: int, squares: Tensor) -> Tensor:
        means = squares.unflatten(-1, (-1, width)).mean(-1, keepdim=True)
        return torch.rsqrt(means + self.eps).expand(-1, -1, width).flatten(-2)


class RowVecLoad:
    """A number for every column."""

    def __init__(self, name: str) -> None:
        pass

    def __call__(self, row: Tensor, _: object) -> Tensor:
        assert row.dim() == 1
        return row.float()


def install(patch) -> Epilogues:
    """Have this process find both packages, and give them tokens on the CPU, until `patch` is undone."""
    package = Epilogues()
    modules = {
        "cutlass": {"cute": CUTE},
        "cutlass.cute": vars(CUTE),
        "quack": {},
        "quack.epilogue": {},
        "quack.epilogue.frontend": {"gemm_epilogue": package.gemm_epilogue},
        "quack.epilogue.head_rmsnorm": {"HeadRstd": HeadRstd},
        "quack.epilogue.ops": {"RowVecLoad": RowVecLoad},
        "quack.gemm_config": {"GemmConfig": SimpleNamespace},
    }
    # Ours are imported in earnest when they are wanted, and are gone with `patch`.
    for name, content in {**modules, **{name: {} for name in OURS}}.items():
        module = ModuleType(name)
        # Asked for by torch's compiler.
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        patch.setitem(sys.modules, name, module)
    patch.setattr(room, "_DEVICES", {"cpu", "meta"})
    patch.setattr(room, "HALF", (torch.float32, torch.bfloat16))
    patch.setattr(room, "_TOKENS", 1)
    patch.setattr(room, "_CHANNELS", 8)
    patch.setattr(room.package, "failures", [])
    patch.setattr(projection, "_D_HEAD", 32)
    patch.setattr(projection.package, "failures", [])
    forget_until_undone(patch, room, "_quack")
    forget_until_undone(patch, projection, "_quack")
    forget()
    return package


def forget() -> None:
    """Have the next one imported anew."""
    for name in OURS:
        sys.modules.pop(name, None)
    room._quack.cache_clear()
    projection._quack.cache_clear()
    room.why_no_quack.cache_clear()


def use(model: nn.Module, kernel: str = "quack") -> nn.Module:
    """The model, its MLPs and projections by that kernel."""
    for module in model.modules():
        if isinstance(module, MLP):
            module.kernel = kernel
        elif isinstance(module, MultiHead):
            module.projection = kernel
    return model
