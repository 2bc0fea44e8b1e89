"""Types and shapes are checked, of arguments and of results."""

from dataclasses import dataclass

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

from geometry.cameras import Cameras
from tests.type_checks import checked


def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"], extra: int = 0) -> Float[Tensor, "n m"]:
    return torch.ones(len(a) + extra, b.shape[1])


def double(number: int) -> int:
    return number * 2 if number else "nothing"  # type: ignore[return-value]


@dataclass
class Pair:
    a: Float[Tensor, "n"]
    b: Float[Tensor, "n"]


A = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("given", "right", "wrong"),
    [
        (product, [(A, A.mT)], [(A, A), (A, A.mT.int()), (A, A.mT, 1), (A, A.mT, "0"), (A[0], A.mT)]),
        (double, [(3,)], [("3",), (0,)]),
        (Pair, [(A[0], A[1])], [(A[0], A[:, 0]), (A[0], 3)]),
    ],
)
def test_what_does_not_fit_is_refused(given, right, wrong):
    function = checked(given, beartype)
    for arguments in right:
        function(*arguments)
    for arguments in wrong:
        with pytest.raises(BeartypeCallHintViolation):
            function(*arguments)


def test_the_rooms_are_checked(request):
    if not request.config.getoption("jaxtyping_packages"):
        pytest.skip("without --jaxtyping-packages, as in make check, nothing is checked")
    with pytest.raises(BeartypeCallHintViolation):
        Cameras(torch.ones(2, 4, 4), torch.ones(3, 4), 16, 16)
    with pytest.raises(BeartypeCallHintViolation):
        Cameras("cameras", torch.ones(3, 4), 16, 16)
