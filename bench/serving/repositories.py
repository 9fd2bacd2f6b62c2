"""The two catalogues: that of the checkpoint, and one with many more items around those."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fuserec.export.publishing import publishing
from fuserec.kernels import ItemIndex
from fuserec.manifest import Manifest, bundle_folder, bundles

SMALL: Final = "small"
LARGE: Final = "large"
# Length of the noise over that of the vector: a new item has a cosine of about 0.9 with the one it was drawn around.
NOISE: Final = 0.5
_SEED: Final = 0


def small_repository(checkpoint: Path, folder: Path) -> Path:
    """Export a checkpoint in float32, which is what the rival computes in; nothing is done if it is there already.

    Returns:
        The bundle.
    """
    from fuserec.export import ExportConfig, export_checkpoint

    export_checkpoint(checkpoint, folder, ExportConfig(precision="fp32"))
    return bundle_folder(folder)


def large_repository(
    small: Path, folder: Path, n_items: int, *, models: Sequence[str] | None = None, index: Path | None = None
) -> Path:
    """Publish a bundle's networks and users over a catalogue of `n_items`; nothing is done if it is there already.

    The items of the bundle keep their ids, rows, vectors and counts. The others have higher ids and nobody has
    consumed them: no history names one, so that the user tower, which knows the trained items alone, never reads one.

    Args:
        small: A bundle.
        folder: Repository to publish in.
        n_items: More than the bundle has.
        models: Those that are served; the bundle's unless given.
        index: An index of so many items with the ids from 0 on, in place of vectors around those of the bundle; the
            file is linked to. Its items have no titles and no categories.

    Returns:
        The new bundle.
    """
    manifest = Manifest.read(small)
    if n_items <= manifest.n_items:
        raise ValueError(f"n_items came as {n_items}, expected more than the {manifest.n_items} of {small}")
    origin = f"{manifest.inputs_sha256} {n_items} items, noise {NOISE}, seed {_SEED}"
    inputs = hashlib.sha256(origin.encode()).hexdigest()
    there = bundles(folder) if folder.exists() else {}
    if there and Manifest.read(there[max(there)]).inputs_sha256 == inputs:
        return there[max(there)]
    if index is not None:
        return _over(index, small, folder, dataclasses.replace(manifest, inputs_sha256=inputs), models)
    trained = ItemIndex.load(small / "index.safetensors")
    items = pl.read_parquet(small / "items.parquet")
    rng = np.random.default_rng(_SEED)
    parents = rng.integers(0, trained.rows, n_items - trained.rows)
    ids = np.concatenate([trained.ids, trained.ids[-1] + 1 + np.arange(len(parents))])
    vectors = np.concatenate([trained.embeddings, _around(trained.embeddings, parents, rng)])
    new = items[parents].with_columns(
        item_id=pl.Series(ids[trained.rows :]), count=pl.lit(0, dtype=items.schema["count"])
    )
    with publishing(folder, models or manifest.models, keep=1) as staging:
        shutil.copytree(small / "engines", staging.bundle / "engines")
        ItemIndex.build(vectors, ids, metric=trained.metric).save(staging.bundle / "index.safetensors")
        pl.concat([items, new]).write_parquet(staging.bundle / "items.parquet")
        shutil.copyfile(small / "users.parquet", staging.bundle / "users.parquet")
        dataclasses.replace(
            manifest,
            n_items=n_items,
            inputs_sha256=inputs,
            metrics={"note": origin},
            models=list(models or manifest.models),
            files=staging.files(),
        ).write(staging.bundle)
    return bundle_folder(folder)


def _over(index: Path, small: Path, folder: Path, manifest: Manifest, models: Sequence[str] | None) -> Path:
    """Publish the networks and users of a bundle over an index that is there."""
    table = ItemIndex.load(index)
    trained = pl.read_parquet(small / "items.parquet", columns=["item_id", "count"])
    if table.dim != manifest.dim or not np.array_equal(table.ids[: trained.height], trained["item_id"].to_numpy()):
        raise ValueError(f"invalid index={index}: must have {manifest.dim} columns and begin with the ids of {small}")
    new = pl.DataFrame(
        {"item_id": table.ids[trained.height :], "count": np.zeros(table.rows - trained.height, np.int64)}
    )
    with publishing(folder, models or manifest.models, keep=1) as staging:
        shutil.copytree(small / "engines", staging.bundle / "engines")
        os.link(index, staging.bundle / "index.safetensors")
        pl.concat([trained, new]).write_parquet(staging.bundle / "items.parquet")
        shutil.copyfile(small / "users.parquet", staging.bundle / "users.parquet")
        dataclasses.replace(
            manifest,
            n_items=table.rows,
            metrics={"note": f"the index {index.name}"},
            models=list(models or manifest.models),
            files=staging.files(),
        ).write(staging.bundle)
    return bundle_folder(folder)


def _around(vectors: NDArray[np.float32], parents: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a vector near each of `parents`: (len(parents), D), of its parent's length if all have the same one."""
    lengths = np.linalg.norm(vectors, axis=1)
    drawn = rng.standard_normal((len(parents), vectors.shape[1]), dtype=np.float32)
    drawn *= (NOISE / vectors.shape[1] ** 0.5) * lengths[parents, None]
    drawn += vectors[parents]
    if np.allclose(lengths, lengths[0], rtol=1e-3):  # cosine, or vectors that a network has scaled to one length
        drawn *= lengths[0] / np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn
