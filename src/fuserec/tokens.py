"""Texts to token ids, for the exporter, the server and training alike; the work is that of the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuserec.errors import CheckpointError
from fuserec.untrusted.documents import read_text

# A token has at least one character, and no encoder here reads so many tokens; what is beyond is not even looked at.
MAX_CHARACTERS = 20_000
# One of a quarter of a million tokens has 17 MB.
MAX_BYTES = 256 * 2**20
# The padding token where a text itself holds it ("[PAD]"): it counts like any other, as in the libraries. To a text
# encoder it is the padding token again (`models.text_encoder`).
LITERAL_PAD = -1


class Tokenizer:
    """The tokenizer of a text encoder.

    Args:
        document: what a `tokenizer.json` holds; where its truncation goes "left", the end of a long text is read.
        max_tokens: tokens that a text is cut to, the special ones included.
        pad_id: token that fills shorter texts up.
        prompt: what stands before every text.
        literal_pad: what stands for `pad_id` where a text holds it; None for itself, which counts as padding.
        marks: whether words of a text such as "[SEP]" are the special tokens of that name, as in the libraries, or
            ordinary text.

    Raises:
        CheckpointError: if the document is no tokenizer.
    """

    def __init__(
        self,
        document: str,
        *,
        max_tokens: int,
        pad_id: int,
        prompt: str = "",
        literal_pad: int | None = LITERAL_PAD,
        marks: bool = True,
    ) -> None:
        from tokenizers import Tokenizer as Library

        try:
            self._library = Library.from_str(document)
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"tokenizer.json is not a tokenizer ({error})") from error
        self._from_end = (self._library.truncation or {}).get("direction") == "left"
        self._library.enable_truncation(max_tokens, direction="left" if self._from_end else "right")
        self._library.enable_padding(pad_id=pad_id)
        self._library.encode_special_tokens = not marks
        self._literal_pad = literal_pad
        self._prompt = prompt
        self.max_tokens = max_tokens
        self.pad_id = pad_id

    @classmethod
    def read(
        cls, path: Path, *, max_tokens: int, pad_id: int, prompt: str = "", literal_pad: int | None = LITERAL_PAD
    ) -> Tokenizer:
        """Read a `tokenizer.json`; see the class for the rest.

        Raises:
            CheckpointError: if it is missing, larger than any, or no tokenizer.
        """
        document = read_text(path, MAX_BYTES, CheckpointError)
        return cls(document, max_tokens=max_tokens, pad_id=pad_id, prompt=prompt, literal_pad=literal_pad)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return (N, T) int64 tokens, T being the longest of these texts, at least 1 and at most `max_tokens`."""
        part = slice(-MAX_CHARACTERS, None) if self._from_end else slice(MAX_CHARACTERS)
        encodings = self._library.encode_batch([self._prompt + text[part] for text in texts])
        width = max((len(encoding.ids) for encoding in encodings), default=0)
        tokens = np.full((len(texts), max(1, width)), self.pad_id, dtype=np.int64)
        for line, encoding in zip(tokens, encodings, strict=True):
            line[: len(encoding.ids)] = encoding.ids
            if self._literal_pad is not None and self.pad_id in encoding.ids:
                is_text = np.array(encoding.attention_mask, dtype=np.bool_)
                line[: len(is_text)][is_text & (line[: len(is_text)] == self.pad_id)] = self._literal_pad
        return tokens
