"""What is exported holds no units that contribute nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from fuserec.export.onnx_graph import export_graph
from fuserec.export.parts import user_tower
from fuserec.export.sources import load_sources
from fuserec.kernels import ItemIndex
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.pruning import choose_units, mask_units_, pairs
from fuserec.models.retriever import Retriever


def write_pruned(folder: Path, out: Path) -> Retriever:
    """Mask half of the units of a checkpoint, write it as `out`, and return its module, masked units and all."""
    checkpoint = Checkpoint.load(folder)
    module = checkpoint.module()
    assert isinstance(module, Retriever)
    for _, inner, outer in pairs(module):
        mask_units_(inner, outer, choose_units(inner.weight, outer.weight, 0.5))
    dataclasses.replace(checkpoint, state=module.state_dict()).save(out)
    return module


def test_masked_units_are_not_exported(untrained: Callable[[str, Path], None], tmp_path: Path) -> None:
    untrained("sasrec", tmp_path / "whole")
    masked = write_pruned(tmp_path / "whole", tmp_path / "pruned")
    sizes = {}
    for name in ("whole", "pruned"):
        sources = load_sources(tmp_path / name, None)
        assert sources.retriever is not None
        users, items = sources.checkpoint.users, sources.checkpoint.items
        index = ItemIndex.build(sources.retriever.item_vectors().numpy(), items["item_id"].to_numpy())
        part = user_tower(sources.retriever, users, items, index, 8)
        export_graph(part, tmp_path / f"{name}.onnx")
        sizes[name] = (tmp_path / f"{name}.onnx").stat().st_size
    feed = part.check[0]
    expected = masked.user_tower(*(torch.from_numpy(feed[name]) for name in part.inputs))
    torch.testing.assert_close(torch.from_numpy(part.run(feed)), expected, rtol=1e-5, atol=1e-6)
    # Half of the units of two blocks: 32 of 64, each with 32 weights in, 32 out and a bias.
    assert sizes["whole"] - sizes["pruned"] == 2 * 32 * (32 + 32 + 1) * 4
