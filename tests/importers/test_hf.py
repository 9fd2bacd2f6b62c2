"""Encoders: what the imported model says of a text is what transformers says, pooled as the folder asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from torch import Tensor

from fuserec.errors import CheckpointError, DataError, UsageError
from fuserec.export.onnx_graph import export_graph
from fuserec.export.parts import text_encoder
from fuserec.importers.hf import BERT_FAMILY, OFFSET_POSITIONS, import_hf
from fuserec.kernels import ItemIndex
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.text import TextRetriever
from fuserec.serve.engines import OnnxRuntimeEngine
from fuserec.tokens import Tokenizer
from fuserec.train.pretrained import PACKAGED, packaged_folder

TEXTS = ["the red ball", "a ball", "red red green house on the hill " * 5, "the house", "unheard of"]
HIDDEN, POSITIONS, PAD = 16, 24, 1
SIZES = {
    "vocab_size": 40, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": POSITIONS, "pad_token_id": PAD,
}  # fmt: skip
# Of another name in the family.
RENAMED = {
    "distilbert": {"dim": HIDDEN, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "electra": {"embedding_size": 8},
    "albert": {"embedding_size": 8},
}


def write_encoder(folder: Path, model_type: str) -> Path:
    """Write an encoder of random weights; padding is token 1, as RoBERTa's is."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    words = dict.fromkeys(" ".join(TEXTS[:4]).split())
    library = Library(models.WordLevel({w: n for n, w in enumerate(["<s>", "<pad>", "<unk>", *words])}, "<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, unk_token="<unk>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **SIZES | RENAMED.get(model_type, {})))
    with torch.no_grad():
        for parameter in model.parameters():  # as they begin, states hardly depend on position or order
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(folder)
    return folder


def states_of(folder: Path, texts: list[str], max_tokens: int) -> tuple[Tensor, Tensor]:
    """What transformers says: states (N, T, hidden), and 1.0 where there is a token (N, T, 1)."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(
        texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt", return_token_type_ids=False
    )
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    return states, inputs["attention_mask"][..., None].float()


POOLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda states, present: (states * present).sum(1) / present.sum(1),
    "mean_sqrt_len_tokens": lambda states, present: (states * present).sum(1) / present.sum(1).sqrt(),
    "cls": lambda states, present: states[:, 0],
    "max": lambda states, present: states.masked_fill(present == 0, -torch.inf).amax(1),
}


def unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def write_sentence(folder: Path, pooling: dict[str, Any], *others: str) -> None:
    """Write what sentence-transformers puts around a transformer, but for what belongs to Dense."""
    kinds = ["Transformer", "Pooling", *others]
    paths = [f"{place}_{kind}" if place else "" for place, kind in enumerate(kinds)]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def write_dense(folder: Path, *, bias: float = 0.0, activation: str = "Identity") -> Tensor:
    (folder / "2_Dense").mkdir()
    config = {"in_features": HIDDEN, "out_features": 6, "activation_function": f"torch.nn.modules.linear.{activation}"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    weight = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(1))
    tensors = {"linear.weight": weight, "linear.bias": torch.full((6,), bias)}
    safetensors.torch.save_file(tensors, folder / "2_Dense" / "model.safetensors")
    return weight


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """A data folder of items alone."""
    folder = tmp_path / "items"
    folder.mkdir()
    table = {"item_id": [10 + 3 * place for place in range(len(TEXTS))], "title": ["-"] * len(TEXTS), "text": TEXTS}
    pl.DataFrame(table).write_parquet(folder / "items.parquet")
    return folder


def vectors_of(checkpoint: Checkpoint) -> Tensor:
    module = checkpoint.module()
    assert isinstance(module, TextRetriever)
    return module.item_vectors()


@pytest.mark.parametrize("model_type", BERT_FAMILY)
def test_vectors_are_those_of_transformers(model_type: str, items: Path, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", model_type)
    checkpoint = import_hf(str(folder), items)
    limit = POSITIONS - (PAD + 1 if model_type in OFFSET_POSITIONS else 0)
    assert checkpoint.arguments["max_tokens"] == limit, "not as many tokens as there are positions"
    expected = unit(POOLED["mean"](*states_of(folder, TEXTS, limit)))
    assert (vectors_of(checkpoint) - expected).abs().max() < 1e-5
    assert (expected[0] - expected[1]).abs().max() > 0.01, (
        "all texts are alike to it, which any encoder would pass with"
    )


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "mpnet", "roberta"])
def test_the_exported_encoder_is_the_same(model_type: str, items: Path, tmp_path: Path) -> None:
    checkpoint = import_hf(str(write_encoder(tmp_path / "encoder", model_type)), items)
    module = checkpoint.module()
    assert isinstance(module, TextRetriever) and checkpoint.tokenizer is not None
    tokenizer = Tokenizer(checkpoint.tokenizer, max_tokens=checkpoint.arguments["max_tokens"], pad_id=PAD)
    index = ItemIndex.build(module.item_vectors().numpy(), checkpoint.items["item_id"].to_numpy())
    export_graph(text_encoder(module, checkpoint.items, index, tokenizer), tmp_path / "graph.onnx")
    engine = OnnxRuntimeEngine(tmp_path / "graph.onnx")
    for texts in (TEXTS, TEXTS[1:2], TEXTS[:2]):
        found = engine.run({"tokens": tokenizer(texts)})["text_vector"]
        assert np.abs(found - module.item_vectors()[[TEXTS.index(text) for text in texts]].numpy()).max() < 1e-4


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("style", ["pooling_mode", "flags"])
def test_pooling_is_what_the_folder_says(pooling: str, style: str, items: Path, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    flags = {"pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
             "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens"}  # fmt: skip
    old = {flag: mode == pooling for flag, mode in flags.items()}
    write_sentence(folder, {"pooling_mode": pooling} if style == "pooling_mode" else old, "Normalize")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9, "do_lower_case": false}')
    checkpoint = import_hf(str(folder), items)
    assert checkpoint.arguments["max_tokens"] == 9
    assert (vectors_of(checkpoint) - unit(POOLED[pooling](*states_of(folder, TEXTS, 9)))).abs().max() < 1e-5


def test_dense_is_the_projection(items: Path, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    write_sentence(folder, {"pooling_mode": "mean"}, "Dense", "Normalize")
    weight = write_dense(folder)
    checkpoint = import_hf(str(folder), items)
    expected = unit(POOLED["mean"](*states_of(folder, TEXTS, POSITIONS)) @ weight.T)
    assert checkpoint.arguments["dim"] == 6
    assert (vectors_of(checkpoint) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("pooling", "others", "files", "message"),
    [
        pytest.param("lasttoken", [], {}, r"pooling is \['lasttoken'\]; expected one of mean", id="pooling"),
        pytest.param(["cls", "mean"], [], {}, r"pooling is \['cls', 'mean'\]", id="two-poolings"),
        pytest.param("mean", ["LayerNorm"], {}, "lists Transformer, Pooling, LayerNorm; expected", id="module"),
        pytest.param("mean", [], {"sentence_bert_config.json": {"do_lower_case": True}}, "do_lower_case", id="case"),
        pytest.param(
            "mean", [], {"sentence_bert_config.json": {"max_seq_length": -1}}, "max_seq_length is -1", id="length"
        ),
        pytest.param(
            "mean", [], {"config_sentence_transformers.json": {"similarity_fn_name": "dot"}}, "by 'dot'", id="dot"
        ),
        pytest.param(
            "mean",
            [],
            {"config_sentence_transformers.json": {"default_prompt_name": "q", "prompts": {"q": "query: "}}},
            "'query: ' is put before every text",
            id="prompt",
        ),
        pytest.param(
            "mean", [], {"1_Pooling/config.json": [1]}, "holds a JSON list; expected a JSON object", id="list"
        ),
        pytest.param("mean", [], {"modules.json": [{"path": "x"}]}, "lists ; expected Transformer", id="no-type"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    pooling: object, others: list[str], files: dict[str, object], message: str, items: Path, tmp_path: Path
) -> None:
    write_sentence(_empty(tmp_path), {"pooling_mode": pooling}, *others)
    for name, content in files.items():
        (tmp_path / "encoder" / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        import_hf(str(tmp_path / "encoder"), items)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bias": 0.5}, "Dense module with a bias"), ({"activation": "Tanh"}, "Dense module with activation Tanh")],
)
def test_a_dense_module_that_is_no_matrix(options: dict[str, Any], message: str, items: Path, tmp_path: Path) -> None:
    folder = _empty(tmp_path)
    write_sentence(folder, {"pooling_mode": "mean"}, "Dense")
    write_dense(folder, **options)
    with pytest.raises(CheckpointError, match=message):
        import_hf(str(folder), items)


def test_a_module_outside_the_folder_is_refused(items: Path, tmp_path: Path) -> None:
    folder = _empty(tmp_path)
    write_sentence(folder, {})
    modules = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(modules.replace("1_Pooling", "../../elsewhere"))
    with pytest.raises(CheckpointError, match=r"names '../../elsewhere', which is not in the folder"):
        import_hf(str(folder), items)


def test_other_transformers_are_refused(items: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    folder = write_encoder(tmp_path / "encoder", "bert")
    GPT2Model(GPT2Config(vocab_size=40, n_positions=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="is of type 'gpt2'; expected one of albert, bert"):
        import_hf(str(folder), items)


def test_more_tokens_than_it_reads(items: Path, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    assert import_hf(str(folder), items, max_tokens=3).arguments["max_tokens"] == 3
    with pytest.raises(UsageError, match="max_tokens is 25; expected 1 to 24"):
        import_hf(str(folder), items, max_tokens=25)


def test_a_name_without_a_network(items: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name: str, **options: object) -> str:
        raise LocalEntryNotFoundError(f"no connection for {name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DataError, match="'some/encoder' is no folder, and not to be had from the hub: no connection"):
        import_hf("some/encoder", items)


def test_users_are_the_mean_of_what_they_consumed(items: Path, tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [7, 7, 7], "item_id": [10, 16, 13], "timestamp": [1, 2, 3]}).write_parquet(
        items / "interactions.parquet"
    )
    checkpoint = import_hf(str(write_encoder(tmp_path / "encoder", "bert")), items)
    assert checkpoint.users.rows() == [(7, [10, 16, 13])]
    assert checkpoint.items["count"].to_list() == [1, 1, 1, 0, 0]
    module = checkpoint.module()
    found = module.user_tower(torch.tensor([1]), torch.tensor([[0, 1, 3, 2]]))
    assert torch.allclose(found[0], unit(vectors_of(checkpoint)[:3].mean(0)), atol=1e-6)


def test_the_packaged_encoder(items: Path) -> None:
    checkpoint = import_hf(PACKAGED, items)
    assert checkpoint.arguments["max_tokens"] == 256, "its sentence_bert_config.json says so"
    expected = unit(POOLED["mean"](*states_of(packaged_folder(), TEXTS, 256)))
    assert (vectors_of(checkpoint) - expected).abs().max() < 1e-5


def library_vectors(folder: Path, texts: list[str], kind: str) -> Tensor:
    """What transformers says of texts with a prompt before them, by mean pooling, with the library's own mask."""
    return unit(POOLED["mean"](*states_of(folder, [kind + text for text in texts], POSITIONS)))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the weights of an encoder."""
    path = folder / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path, metadata={"format": "pt"})


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


def grown(state: dict[str, Tensor]) -> dict[str, Tensor]:
    deeper = {name.replace(".layer.1.", ".layer.2."): tensor.clone() for name, tensor in state.items()}
    return state | deeper


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
            r"missing: embeddings\.LayerNorm\.bias, .* and 32 more; unexpected: _orig_mod\.embed.*; torch\.compile",
            id="compiled",
        ),
        pytest.param(without("layer.1."), r"\(missing: encoder\.layer\.1\.[\w., ]* and 11 more\)", id="a layer less"),
        pytest.param(grown, r"\(unexpected: encoder\.layer\.2\.[\w., ]* and 11 more\)", id="a layer more"),
        pytest.param(
            lambda state: state | {"embeddings.word_embeddings.weight": torch.zeros(9, HIDDEN)},
            r"\(of another shape: embeddings\.word_embeddings\.weight\)$",
            id="another shape",
        ),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused_by_name(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, items: Path, tmp_path: Path
) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    rewrite(folder, change)
    with pytest.raises(DataError, match=message):
        import_hf(str(folder), items)


def test_heads_are_left_out_and_counted(items: Path, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    expected = vectors_of(import_hf(str(folder), items))

    def with_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
        inside = {f"bert.{name}": tensor for name, tensor in state.items()}
        return inside | {"cls.predictions.bias": torch.zeros(40), "bert.embeddings.position_ids": torch.arange(24)}

    rewrite(folder, with_head)
    checkpoint = import_hf(str(folder), items)
    assert torch.equal(vectors_of(checkpoint), expected)
    assert checkpoint.metrics["imported"]["left_out"] == {"tensors_of_heads": 1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_said(dtype: torch.dtype, items: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = write_encoder(tmp_path / "encoder", "bert")
    AutoModel.from_pretrained(folder).to(dtype).save_pretrained(folder)
    checkpoint = import_hf(str(folder), items)
    name = {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert checkpoint.metrics["imported"]["widened"] == {name: len(stored)}
    wide = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    wide.save_pretrained(tmp_path / "wide")
    (tmp_path / "wide" / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    (tmp_path / "wide" / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    expected = import_hf(str(tmp_path / "wide"), items)
    assert torch.equal(vectors_of(checkpoint), vectors_of(expected))
    checkpoint.save(tmp_path / "checkpoint")
    loaded = Checkpoint.load(tmp_path / "checkpoint")
    assert {tensor.dtype for tensor in loaded.module().parameters()} == {torch.float32}


def test_quantized_weights_are_refused(items: Path, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    rewrite(folder, lambda state: {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()})
    with pytest.raises(DataError, match="F8_E4M3"):
        import_hf(str(folder), items)


@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
def test_prompts_stand_before_items_and_queries(name: str, items: Path, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    write_sentence(folder, {"pooling_mode": "mean"}, "Normalize")
    prompts = {"query": "the cat ", name: "a film about "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    checkpoint = import_hf(str(folder), items)
    expected = library_vectors(folder, TEXTS, "a film about ")
    assert (vectors_of(checkpoint) - expected).abs().max() < 1e-5
    assert (expected - library_vectors(folder, TEXTS, "")).abs().max() > 0.01, "the prompt makes no difference"
    assert checkpoint.arguments["query_prompt"] == "the cat "
    assert checkpoint.metrics["imported"]["prompts"] == {"query": "the cat ", "document": "a film about "}


def test_prompts_that_are_not_pooled_are_refused(items: Path, tmp_path: Path) -> None:
    write_sentence(_empty(tmp_path), {"pooling_mode": "mean", "include_prompt": False})
    (tmp_path / "encoder" / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: "}}')
    with pytest.raises(CheckpointError, match="include_prompt is false"):
        import_hf(str(tmp_path / "encoder"), items)


@pytest.mark.parametrize("told", [None, 5])
def test_vectors_are_truncated(told: int | None, items: Path, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    write_sentence(folder, {"pooling_mode": "mean"}, "Normalize")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 8}))
    checkpoint = import_hf(str(folder), items, truncate_dim=told)
    kept = told or 8
    expected = unit(library_vectors(folder, TEXTS, "")[:, :kept])
    assert checkpoint.arguments["dim"] == kept
    assert (vectors_of(checkpoint) - expected).abs().max() < 1e-5
    with pytest.raises(UsageError, match=f"invalid --truncate-dim=99: must be 1 to {HIDDEN}"):
        import_hf(str(folder), items, truncate_dim=99)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet"])
def test_a_padding_token_in_a_text_is_read(model_type: str, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", model_type)
    texts = [f"{TEXTS[0]} <pad> {TEXTS[1]}", f"  {TEXTS[0]}  ", "<pad>", TEXTS[2]]
    data = tmp_path / "items"
    data.mkdir()
    table = {"item_id": range(len(texts)), "title": ["-"] * len(texts), "text": texts}
    pl.DataFrame(table).write_parquet(data / "items.parquet")
    checkpoint = import_hf(str(folder), data)
    module = checkpoint.module()
    assert isinstance(module, TextRetriever) and checkpoint.tokenizer is not None
    expected = unit(POOLED["mean"](*states_of(folder, texts, checkpoint.arguments["max_tokens"])))
    assert (module.item_vectors() - expected).abs().max() < 1e-5
    plain = unit(
        POOLED["mean"](*states_of(folder, [texts[0].replace("<pad> ", "")], checkpoint.arguments["max_tokens"]))
    )
    assert (expected[0] - plain[0]).abs().max() > 0.01, "the token makes no difference"
    tokenizer = Tokenizer(checkpoint.tokenizer, max_tokens=checkpoint.arguments["max_tokens"], pad_id=PAD)
    index = ItemIndex.build(module.item_vectors().numpy(), checkpoint.items["item_id"].to_numpy())
    export_graph(text_encoder(module, checkpoint.items, index, tokenizer), tmp_path / "graph.onnx")
    found = OnnxRuntimeEngine(tmp_path / "graph.onnx").run({"tokens": tokenizer(texts)})["text_vector"]
    assert np.abs(found - expected.numpy()).max() < 1e-4


def _empty(tmp_path: Path) -> Path:
    """A folder without a transformer: what stands around it is read first."""
    (tmp_path / "encoder").mkdir()
    return tmp_path / "encoder"
