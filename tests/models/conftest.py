"""Settings shared by the tests of the architectures."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small lose more to threads waiting for each other than they gain, above all on a busy machine."""
    torch.set_num_threads(1)
