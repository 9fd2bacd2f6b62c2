"""A pretrained encoder as `transformers` writes it, of random weights, so that nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.conftest import TINY_ENCODER, tiny_tokenizer


def write_pretrained(folder: Path, texts: list[str], **sizes: int) -> None:
    """Write a tiny BERT that knows the words of some texts and puts [CLS] and [SEP] around them."""
    from tokenizers import Tokenizer, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    library = Tokenizer.from_str(tiny_tokenizer(["[CLS] [SEP]".lower(), *texts]))
    first, last = (library.token_to_id(word) for word in ("[cls]", "[sep]"))
    library.post_processor = processors.TemplateProcessing(
        single="[cls] $A [sep]", special_tokens=[("[cls]", first), ("[sep]", last)]
    )
    torch.manual_seed(0)
    BertModel(BertConfig(**json.loads(TINY_ENCODER) | sizes)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=library, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
