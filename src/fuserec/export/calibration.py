"""How large activations get, from real inputs: what the scales of their quantization follow from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from fuserec.export.judging import Feed
from fuserec.export.quantize import CALIBRATED_OPS

PERCENTILE: Final = 99.99


def largest_values(graph: Path, feeds: Sequence[Feed], method: str) -> dict[str, float]:
    """Return the largest absolute value that every input of a matrix product or convolution is to be told apart up to.

    - `max`: the largest that was seen; nothing is clipped.
    - `percentile`: 99.99 % of what was seen is not clipped.
    - `entropy`: the clipping that leaves the histogram most like itself, by Kullback-Leibler divergence (Migacz 2017).

    Args:
        graph: float32 graph.
        feeds: its inputs, a dict a batch.
        method: one of `config.CALIBRATIONS`.

    Returns:
        Name of the tensor to value.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            self._feeds: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    methods = {
        "max": (CalibrationMethod.MinMax, {}),
        "entropy": (CalibrationMethod.Entropy, {}),
        "percentile": (CalibrationMethod.Percentile, {"percentile": PERCENTILE}),
    }
    kind, options = methods[method]
    with tempfile.TemporaryDirectory() as scratch:
        calibrator = create_calibrator(
            graph,
            list(CALIBRATED_OPS),
            augmented_model_path=str(Path(scratch) / "augmented.onnx"),
            calibrate_method=kind,
            extra_options={"symmetric": True, **options},
        )
        calibrator.collect_data(Reader())
        ranges = calibrator.compute_data()
    return {name: float(np.abs(seen.range_value).max()) for name, seen in ranges.items()}
