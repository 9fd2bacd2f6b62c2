"""Names the backends that a behaviour must hold on."""

from __future__ import annotations

import pytest
import torch

BACKENDS = ["reference", "cpu", "interpret", pytest.param("cuda", marks=pytest.mark.gpu)]


def skip_unless_available(backend: str) -> None:
    from triton.runtime.interpreter import InterpretedFunction

    from fuserec.kernels.search import _kernel

    if backend == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    if backend == "interpret" and not isinstance(_kernel.block_best_kernel, InterpretedFunction):
        pytest.skip("the kernels are compiled, as there is a CUDA device")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """A backend that can run here."""
    skip_unless_available(request.param)
    return str(request.param)
