"""An encoder of sentence-transformers or transformers as the `text` model, without any training.

An item's vector is what the encoder says of its text, a user is the mean of what they consumed, and any text asks for
items. Items, their texts and the histories come from a data folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import polars as pl
import torch
from torch import Tensor

from fuserec.errors import CheckpointError, DataError, UsageError
from fuserec.files import sha256
from fuserec.id_map import IdMaps
from fuserec.importers.sentence import Sentence, read_object, read_sentence
from fuserec.models.checkpoint import ITEMS_SCHEMA, USERS_SCHEMA, Checkpoint
from fuserec.models.text import TextConfig, TextRetriever
from fuserec.models.text_encoder import transformer_config
from fuserec.tokens import Tokenizer
from fuserec.train.data import read_folder, read_items
from fuserec.train.item_text import item_texts
from fuserec.train.pretrained import PACKAGED, Pretrained, load_pretrained, packaged_folder
from fuserec.train.retrieval import items_table, users_table
from fuserec.train.split import leave_one_out
from fuserec.train.tables import find_table

# What a folder is fetched with from the hub; weights in any other format are code, or of no use here.
PATTERNS: Final = ("*.json", "*.safetensors", "*.txt", "*.model")
# Encoders whose vectors here are compared with the library's in a test.
BERT_FAMILY: Final = ("albert", "bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
# They count positions from the number after padding's.
OFFSET_POSITIONS: Final = ("camembert", "mpnet", "roberta", "xlm-roberta")


def import_hf(
    name: str,
    data: Path,
    *,
    max_tokens: int | None = None,
    truncate_dim: int | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Checkpoint:
    """Make a checkpoint of a pretrained encoder.

    Args:
        name: a folder as sentence-transformers or transformers write it, a name on the hub (which takes a network), or
            all-MiniLM-L6-v2, which the text extra brings.
        data: a data folder; without interactions it gives items alone.
        max_tokens: tokens that texts are cut to, if not as many as the encoder reads.
        truncate_dim: numbers of a vector that are kept, the first ones; None for what the folder says.
        on_step: told what is about to be done.

    Raises:
        CheckpointError: if the encoder does something that ours cannot.
        DataError: if encoder or data cannot be read.
        UsageError: if `max_tokens` is more than the encoder reads.
    """
    on_step(f"reading {name}")
    folder = _folder(name)
    sentence = read_sentence(folder)
    pretrained = load_pretrained(str(sentence.transformer))
    limit = _limit(sentence, pretrained)
    if max_tokens is not None and not 1 <= max_tokens <= limit:
        raise UsageError(f"max_tokens is {max_tokens}; expected 1 to {limit}, which {name} reads")
    source, items, users = _tables(data)
    projection = _projection(sentence, transformer_config(pretrained.config).hidden_size, truncate_dim, folder)
    config = TextConfig(
        n_items=items.height,
        encoder=pretrained.config,
        dim=projection.shape[0],
        max_tokens=max_tokens or limit,
        n_blocks=0,
        n_heads=1,
        dropout=0.0,
        pooling=sentence.pooling,
        query_prompt=sentence.query_prompt,
        document_prompt=sentence.document_prompt,
    )
    on_step(f"encoding the texts of {items.height:,} items")
    model = _model(config, pretrained, projection, item_texts(source))
    note = {
        "library": "transformers",
        "encoder": name,
        "sha256": _hashes(sentence.transformer),
        "widened": pretrained.widened,
        "prompts": {"query": sentence.query_prompt, "document": sentence.document_prompt},
        "left_out": {"tensors_of_heads": len(pretrained.heads)},
    }
    return Checkpoint(
        "text",
        dataclasses.asdict(config),
        items,
        users,
        {"imported": note},
        model.state_dict(),
        pretrained.tokenizer,
        IdMaps.read(data, DataError),
    )


def _folder(name: str) -> Path:
    if name == PACKAGED:
        return packaged_folder()
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name!r} is no folder, and not to be had from the hub: {reason}") from error


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of weights."""
    return {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}


def _limit(sentence: Sentence, pretrained: Pretrained) -> int:
    """Return how many tokens the encoder reads."""
    config = transformer_config(pretrained.config)
    if config.model_type not in BERT_FAMILY:
        raise CheckpointError(
            f"{sentence.transformer} is of type {config.model_type!r}; expected one of {', '.join(BERT_FAMILY)}"
        )
    limits = [config.max_position_embeddings]
    if config.model_type in OFFSET_POSITIONS:
        limits = [config.max_position_embeddings - int(config.pad_token_id) - 1]
    if sentence.max_tokens is not None:
        limits.append(sentence.max_tokens)
    settings = sentence.transformer / "tokenizer_config.json"
    told: Any = read_object(settings).get("model_max_length") if settings.is_file() else None
    # Where nothing is known the library writes 10^30.
    if isinstance(told, int | float) and told >= 1:
        limits.append(int(told))
    return int(min(limits))


def _tables(data: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return the items as the data folder has them, then `items.parquet` and `users.parquet` of a checkpoint."""
    if find_table(data, "interactions") is not None:
        dataset = read_folder(data)
        return dataset.items, items_table(dataset), users_table(leave_one_out(dataset))
    items = read_items(data)
    if items.filter(pl.col("item_id") < 0).height or items["item_id"].n_unique() < items.height:
        raise DataError(f"{data}: item_id is negative or repeated in items; expected distinct ids >= 0")
    counted = items.with_columns(count=pl.lit(0, pl.Int64)).select(ITEMS_SCHEMA.names())
    return items, counted, pl.DataFrame(schema=USERS_SCHEMA)


def _projection(sentence: Sentence, hidden: int, truncate_dim: int | None, folder: Path) -> Tensor:
    """Return the matrix (dim, hidden) by which pooled states become vectors, before they get length 1.

    Raises:
        CheckpointError: the Dense module does not read the states.
        UsageError: more numbers are to be kept than there are.
    """
    matrix = torch.eye(hidden) if sentence.projection is None else sentence.projection
    if matrix.shape[1] != hidden:
        raise CheckpointError(f"{folder}: Dense reads {matrix.shape[1]} numbers, there are {hidden}")
    kept = truncate_dim or sentence.truncate_dim
    if truncate_dim is not None and not 1 <= truncate_dim <= len(matrix):
        raise UsageError(f"invalid --truncate-dim={truncate_dim}: must be 1 to {len(matrix)}")
    return matrix[:kept]


def _model(config: TextConfig, pretrained: Pretrained, projection: Tensor, texts: list[str]) -> TextRetriever:
    with torch.random.fork_rng():
        model = TextRetriever(config).eval()
    model.encoder.transformer.load_state_dict(pretrained.state)
    with torch.no_grad():
        model.encoder.projection.weight.copy_(projection)
    tokenizer = Tokenizer(
        pretrained.tokenizer, max_tokens=config.max_tokens, pad_id=model.encoder.pad_id, prompt=config.document_prompt
    )
    tokens = torch.from_numpy(tokenizer(texts))
    model.tokens[1:, : tokens.shape[1]] = tokens
    model.refresh()
    return model
