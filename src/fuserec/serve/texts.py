"""Texts to vectors among those of the items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import MAX_BATCH, TEXT_ENCODER
from fuserec.manifest import Manifest
from fuserec.serve.device import CPU, Device
from fuserec.serve.engine_choice import open_engine
from fuserec.serve.engines import Engine
from fuserec.serve.padding import batches
from fuserec.tokens import LITERAL_PAD, Tokenizer

# A transformer is hundreds of times the work of a user tower: here a second thread is worth waking.
THREADS = 2


class TextStage:
    """Tokenizer and text encoder of a bundle."""

    def __init__(self, tokenizer: Tokenizer, engine: Engine) -> None:
        self._tokenizer = tokenizer
        self._engine = engine

    @classmethod
    def open(cls, bundle: Path, manifest: Manifest, device: Device = CPU) -> TextStage | None:
        """Open the stage, if the bundle has one."""
        if manifest.text is None:
            return None
        text = manifest.text
        tokenizer = Tokenizer.read(
            bundle / "tokenizer.json", max_tokens=text.max_tokens, pad_id=text.pad_id, prompt=text.prompt,
            literal_pad=LITERAL_PAD if text.literal_pad else None,
        )  # fmt: skip
        return cls(tokenizer, open_engine(bundle, manifest, TEXT_ENCODER, device=device, threads=THREADS))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (N, D) float32 unit vectors of N texts, N at least 1."""
        tokens = self._tokenizer(texts)
        filled = tokens != self._tokenizer.pad_id
        lengths = tokens.shape[1] - np.argmax(filled[:, ::-1], axis=1)
        longest = self._tokenizer.max_tokens
        tokens = np.pad(tokens, ((0, 0), (0, longest - tokens.shape[1])), constant_values=self._tokenizer.pad_id)
        parts = [
            (here, self._engine.run({"tokens": tokens[here, :width]})["text_vector"])
            for width, here in batches(lengths.tolist(), longest, MAX_BATCH)
        ]
        vectors = np.empty((len(texts), parts[0][1].shape[1]), dtype=np.float32)
        for here, part in parts:
            vectors[here] = part
        return vectors
