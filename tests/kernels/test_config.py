"""Launch configurations are powers of two that fit each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fuserec.kernels.search.config import CpuConfig, choose_gpu_config


@pytest.mark.parametrize("dim", [1, 16, 17, 128, 1025])
@pytest.mark.parametrize("batch", [1, 15, 16, 1000])
def test_gpu_tiles_fit_the_shape(batch: int, dim: int) -> None:
    config = choose_gpu_config(batch, dim)
    assert config.block_q == (16 if batch >= 16 else 1)
    assert config.block_n % config.block_best == 0
    assert 16 <= config.block_d <= 64


def test_tiles_that_do_not_fit_are_refused() -> None:
    config = choose_gpu_config(1, 64)
    with pytest.raises(ValueError, match="expected powers of two"):
        replace(config, block_d=48)
    with pytest.raises(ValueError, match="expected block_best to divide block_n"):
        replace(config, block_best=2 * config.block_n)
    with pytest.raises(ValueError, match="expected at least one part of each"):
        CpuConfig(query_parts=0, row_parts=1)
