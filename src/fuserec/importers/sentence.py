"""What a folder of sentence-transformers does around its transformer, as far as our text encoder can do it.

    modules.json            the modules in their order
    1_Pooling/config.json   how the states of the tokens become one vector: mean, cls, max
    2_Dense                 a linear map, which is our projection if it has no bias and no activation
    2_Normalize             vectors of length 1, which ours always are
    config_sentence_transformers.json   prompts before queries and documents, and how many numbers of a vector are kept

A folder without modules.json is a plain transformer, which that library, too, reads with the mean. What cannot be done
here is refused by name, as vectors that are only nearly the encoder's would be found nowhere near.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
from torch import Tensor

from fuserec.errors import CheckpointError
from fuserec.models.checks import describe_names
from fuserec.untrusted.documents import parse_json, read_bytes

MODULES: Final = "modules.json"
SETTINGS: Final = "config_sentence_transformers.json"
DOCUMENT_PROMPTS: Final = ("document", "passage", "corpus")
# What may follow transformer and pooling.
TAILS: Final[tuple[list[str], ...]] = ([], ["Normalize"], ["Dense"], ["Dense", "Normalize"])
MAX_JSON_BYTES: Final = 2**20
# By that library's name; the sum over the root of the count points where the mean does, and only that is kept.
POOLINGS: Final = {"mean": "mean", "mean_sqrt_len_tokens": "mean", "cls": "cls", "max": "max"}
_LEGACY_POOLING: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Sentence:
    """Where the transformer lies, and what comes after it.

    Attributes:
        transformer: folder of the transformer itself.
        max_tokens: tokens that texts are cut to; None where the folder does not say.
        pooling: how the states of the tokens become one, as `TextConfig` calls it.
        projection: (dim, hidden size) float32, None for none.
        query_prompt: what the library puts before a query.
        document_prompt: what it puts before a document.
        truncate_dim: numbers of a vector that are kept; None for all.
    """

    transformer: Path
    max_tokens: int | None = None
    pooling: str = "mean"
    projection: Tensor | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    truncate_dim: int | None = None


def read_sentence(folder: Path) -> Sentence:
    """Read what stands around the transformer.

    Raises:
        CheckpointError: if a module cannot be done here, or is not as that library writes it.
    """
    if not (folder / MODULES).is_file():
        return Sentence(folder)
    modules = _read_list(folder / MODULES)
    if not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{folder / MODULES} is no list of modules")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in (
        [],
        ["Normalize"],
        ["Dense"],
        ["Dense", "Normalize"],
    ):
        raise CheckpointError(
            f"{folder / MODULES} lists {', '.join(kinds)}; expected Transformer and Pooling, then at most Dense and "
            "Normalize"
        )
    paths = [_inside(folder, str(module.get("path", ""))) for module in modules]
    pooling = _pooling(paths[1] / "config.json")
    settings = folder / SETTINGS
    config = read_object(settings) if settings.is_file() else {}
    query, document = _prompts(settings, config)
    if (query or document) and read_object(paths[1] / "config.json").get("include_prompt", True) is not True:
        raise CheckpointError(
            f"{paths[1] / 'config.json'}: include_prompt is false, and there are prompts; expected true"
        )
    truncate_dim = config.get("truncate_dim")
    if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
        raise CheckpointError(f"{settings}: truncate_dim is {truncate_dim!r}; expected a positive number")
    if kinds[-1] != "Normalize" or truncate_dim is not None:
        _check_similarity(settings, config)
    projection = _projection(paths[2]) if "Dense" in kinds else None
    return Sentence(paths[0], _max_tokens(paths[0]), pooling, projection, query, document, truncate_dim)


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{folder / MODULES} names {name!r}, which is not in the folder")
    return path


def _pooling(path: Path) -> str:
    config = read_object(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_POOLING.items() if config.get(key)] or ["mean"]
    elif isinstance(modes, str):
        modes = [modes]
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLINGS:
        raise CheckpointError(f"{path}: pooling is {modes}; expected one of {', '.join(POOLINGS)}")
    return POOLINGS[modes[0]]


def _prompts(path: Path, config: dict[str, Any]) -> tuple[str, str]:
    """Return what `encode_query` and `encode_document` of that library put before a text."""
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise CheckpointError(f"{path}: prompts is {prompts!r:.200}; expected texts by name")
    default = prompts.get(config.get("default_prompt_name"))
    if default:
        raise CheckpointError(f"{path}: {default!r} is put before every text (default_prompt_name); expected none")
    document = next((prompts[name] for name in DOCUMENT_PROMPTS if prompts.get(name)), "")
    return prompts.get("query") or "", document


def _check_similarity(path: Path, config: dict[str, Any]) -> None:
    """Vectors that keep their length may be compared by it; ours are compared by cosine."""
    found = config.get("similarity_fn_name")
    if found not in (None, "cosine"):
        raise CheckpointError(f"{path}: vectors are not normalized and compared by {found!r}; expected cosine")


def _projection(folder: Path) -> Tensor:
    config = read_object(folder / "config.json")
    activation = str(config.get("activation_function", "")).rpartition(".")[2]
    if activation != "Identity" or config.get("use_residual"):
        what = "a residual connection" if config.get("use_residual") else f"activation {activation}"
        raise CheckpointError(f"{folder} is a Dense module with {what}; expected Identity and no residual connection")
    path = folder / "model.safetensors"
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not readable ({error}); expected the weights as safetensors") from error
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or weight.dim() != 2 or tensors.keys() - {"linear.weight", "linear.bias"}:
        raise CheckpointError(
            f"{path} holds {describe_names(sorted(tensors))}; expected the matrix linear.weight, at most linear.bias"
        )
    if bias is not None and bool(bias.any()):
        raise CheckpointError(f"{folder} is a Dense module with a bias; expected none, or one of zeros")
    return weight.float()


def _max_tokens(folder: Path) -> int | None:
    for name in ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json"):
        if not (folder / name).is_file():
            continue
        config = read_object(folder / name)
        if config.get("do_lower_case"):
            raise CheckpointError(
                f"{folder / name}: do_lower_case is set, which is done before the tokenizer; expected the tokenizer to "
                "do it"
            )
        limit = config.get("max_seq_length")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise CheckpointError(f"{folder / name}: max_seq_length is {limit!r}; expected a positive number")
        return limit
    return None


def read_object(path: Path) -> dict[str, Any]:
    """Read a small JSON file that holds an object.

    Raises:
        CheckpointError: if it does not.
    """
    return _parse(path, b"%s")


def _read_list(path: Path) -> list[Any]:
    value = _parse(path, b'{"list": %s}')["list"]
    if not isinstance(value, list):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}; expected an array")
    return value


def _parse(path: Path, frame: bytes) -> dict[str, Any]:
    """Parse a file in a frame that makes an object of it; tokenizers that know no limit write one beyond 64 bits."""
    content = read_bytes(path, MAX_JSON_BYTES, CheckpointError)
    try:
        return parse_json(frame % content, any_number=True)
    except ValueError as error:
        raise CheckpointError(f"{path} {error}") from error
