"""Kernels written in Triton, beside their plain forms."""

import json

from tests.helpers import needs_triton
from tests.processes import run_fresh


@needs_triton
def test_kernels_are_their_plain_forms():
    result = run_fresh("-m", "tests.programs.run_triton", TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    differences = json.loads(result.stdout)
    assert {name: len(cases) for name, cases in differences.items()} == {"turned": 12, "merged": 3, "normed": 4}
    assert max(max(cases) for cases in differences.values()) < 1e-5
