"""The text recipe: what each tuning changes, what the checkpoint holds, and that items nobody consumed are found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from fuserec.errors import DataError, UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.text import TextRetriever
from fuserec.tokens import Tokenizer
from fuserec.train.cold import ColdSplit, hold_out_items
from fuserec.train.data import DataSet
from fuserec.train.item_text import item_texts
from fuserec.train.pretrained import load_pretrained
from fuserec.train.run import Run
from fuserec.train.text import TextRecipe, probe, train_text, tune
from tests.conftest import write_encoder

QUIET = Run(progress=False)
COLOURS = ["red", "green", "blue", "black"]
N_ITEMS, N_USERS, CONSUMED = 80, 48, 12


@pytest.fixture(scope="module")
def dataset() -> DataSet:
    """Users consume things of one colour, in random order; of the last item nothing is known."""
    generator = np.random.default_rng(0)
    rows = np.stack(
        [generator.permutation(N_ITEMS // 4)[:CONSUMED] * 4 + user % 4 for user in range(N_USERS)]
    )  # fmt: skip
    interactions = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(N_USERS), CONSUMED),
            "item_id": 10 + 3 * rows.reshape(-1),
            "timestamp": np.tile(np.arange(CONSUMED), N_USERS),
        }
    )
    items = pl.DataFrame(
        {
            "item_id": 10 + 3 * np.arange(N_ITEMS + 1),
            "title": [*(f"{COLOURS[row % 4]} thing {row}" for row in range(N_ITEMS)), ""],
            "genres": [[]] * (N_ITEMS + 1),
            "year": [None] * (N_ITEMS + 1),
        },
        schema_overrides={"genres": pl.List(pl.String), "year": pl.Int32},
    )
    return DataSet(interactions, items)


@pytest.fixture(scope="module")
def encoder(dataset: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained folder."""
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(folder, item_texts(dataset.items))
    return folder


def small(encoder: Path, **options: Any) -> TextRecipe:
    sizes = {"dim": 16, "max_history": 8, "max_tokens": 8, "batch_size": 16, "tuning_batch_size": 16, "epochs": 2}
    defaults = {
        "tuning_epochs": 1,
        "lora_rank": 2,
        "adapter": 4,
        "top_layers": 1,
        "encoded_items": 20,
        "bfloat16": False,
    }
    return TextRecipe(**{"encoder": str(encoder), **sizes, **defaults, **options})


@pytest.fixture(scope="module")
def probed(dataset: DataSet, encoder: Path) -> Checkpoint:
    """The first phase."""
    return probe(dataset, small(encoder), QUIET)


def transformer(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The encoder's weights, named as before adapters were put behind the outputs."""
    prefix = "encoder.transformer."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint.state.items() if k.startswith(prefix)}
    return {name.replace(".output.output.", ".output."): tensor for name, tensor in weights.items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_first_phase_leaves_the_encoder_and_trains_what_is_around_it(
    dataset: DataSet, encoder: Path, probed: Checkpoint
) -> None:
    pretrained = load_pretrained(str(encoder)).state
    assert transformer(probed).keys() == pretrained.keys()
    assert changed(pretrained, transformer(probed)) == set()
    assert probed.metrics["tuned_parameters"] == 0
    frozen = train_text(dataset, small(encoder, tuning="frozen"), QUIET)
    assert all(torch.equal(frozen.state[name], probed.state[name]) for name in frozen.state)  # seeds repeat


@pytest.mark.parametrize("tuning", ["lora", "adapter", "top", "full"])
def test_each_tuning_changes_what_it_should_and_nothing_else(
    tuning: str, dataset: DataSet, encoder: Path, probed: Checkpoint, tmp_path: Path
) -> None:
    recipe = small(encoder, tuning=tuning)
    tuned = tune(dataset, recipe, probed, QUIET)
    before, after = transformer(probed), transformer(tuned)
    found = changed(before, after)
    linear = {name for name in before if name.endswith(".weight") and before[name].ndim == 2 and "embed" not in name}
    extra = {name for name in after if name not in before}
    # A layer's key bias has no gradient: softmax is blind to it.
    moved = {name for name in before if not name.endswith("key.bias")}
    want = {
        "lora": linear,
        "adapter": set(),
        "top": {name for name in moved if name.startswith("encoder.layer.1.")},
        "full": moved - {"embeddings.token_type_embeddings.weight"},
    }[tuning]
    assert found - {"embeddings.token_type_embeddings.weight"} - (before.keys() - moved) == want
    assert extra == ({n for n in after if ".adapter." in n} if tuning == "adapter" else set())
    assert bool(extra) == (tuning == "adapter")
    assert 0 < tuned.metrics["tuned_parameters"] <= sum(tensor.numel() for tensor in after.values())
    assert tuned.metrics["recipe"] == dataclasses.asdict(recipe)
    assert tuned.metrics["probe"]["validation"] == probed.metrics["validation"]

    tuned.save(tmp_path / "checkpoint")
    loaded = Checkpoint.load(tmp_path / "checkpoint")
    assert loaded.tokenizer == probed.tokenizer
    assert_consistent(loaded, dataset)


@torch.no_grad()
def assert_consistent(checkpoint: Checkpoint, dataset: DataSet) -> None:
    """The vectors in the checkpoint are what its encoder says of the texts, through its own tokenizer."""
    model = checkpoint.module()
    assert isinstance(model, TextRetriever) and checkpoint.tokenizer is not None
    tokenizer = Tokenizer(checkpoint.tokenizer, max_tokens=model.config.max_tokens, pad_id=model.encoder.pad_id)
    tokens = torch.from_numpy(tokenizer(item_texts(dataset.items)))
    torch.testing.assert_close(model.item_vectors(), model.encoder(tokens), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.item_vectors(), model.catalogue(), atol=1e-5, rtol=0)
    assert not model.user_tower.item_table[0].any()


def test_the_better_phase_is_kept_and_seeds_repeat(dataset: DataSet, encoder: Path, probed: Checkpoint) -> None:
    recipe = small(encoder, tuning="lora")
    first, second = (train_text(dataset, recipe, QUIET) for _ in range(2))
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    best = max(c.metrics["validation"]["ndcg@10"] for c in (probed, tune(dataset, recipe, probed, QUIET)))
    assert first.metrics["validation"]["ndcg@10"] == best


def test_a_tuning_that_spoils_the_ranking_is_not_kept(
    dataset: DataSet, encoder: Path, probed: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    kept = train_text(dataset, small(encoder, tuning="full", tuning_rate=10.0), QUIET)
    assert kept.metrics["validation"] == probed.metrics["validation"]
    assert kept.metrics["rejected_tuning"]["ndcg@10"] < kept.metrics["validation"]["ndcg@10"]
    assert "the frozen encoder is kept" in caplog.text


@pytest.fixture(scope="module")
def cold(dataset: DataSet) -> ColdSplit:
    return hold_out_items(dataset, 0.2, seed=0)


def test_cold_items_are_gone_from_training_but_not_from_the_catalogue(dataset: DataSet, cold: ColdSplit) -> None:
    ids = dataset.items["item_id"].to_numpy()[cold.cold - 1]
    assert ids.size == round(0.2 * N_ITEMS)
    assert not np.isin(cold.warm.interactions["item_id"].to_numpy(), ids).any()
    assert cold.warm.items.equals(dataset.items)
    assert np.isin(cold.targets, cold.cold).all()
    assert not np.isin(cold.histories.values, cold.cold).any()
    assert (cold.histories.lengths > 0).all()
    for history, target in zip((cold.histories[row] for row in range(4)), cold.targets, strict=False):
        assert (history % 4 == target % 4).all()  # of one user, who likes one colour


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_share_that_makes_no_sense_is_refused(share: float, dataset: DataSet) -> None:
    with pytest.raises(ValueError, match="expected 0 < share < 1"):
        hold_out_items(dataset, share, seed=0)


@torch.no_grad()
def test_an_item_nobody_consumed_is_found_by_its_text(cold: ColdSplit, encoder: Path) -> None:
    model = probe(cold.warm, small(encoder, epochs=15, learning_rate=1e-2, warmup_steps=0), QUIET).module()
    assert isinstance(model, TextRetriever)
    histories = torch.from_numpy(cold.histories.left_padded(np.arange(len(cold.histories)), 8))
    scores = model.user_tower(torch.zeros(len(histories), dtype=torch.int64), histories) @ model.item_vectors().T
    scores[torch.from_numpy(cold.histories.row_of_value), torch.from_numpy(cold.histories.values - 1)] = -torch.inf
    top = scores.topk(10, dim=1).indices + 1
    hit_rate = (top == torch.from_numpy(cold.targets)[:, None]).any(dim=1).float().mean()
    # 10 of the some 73 items that are left is chance, 0.14; of the user's colour there are some 12 left.
    assert hit_rate > 0.5, f"HR@10 of cold items is {hit_rate:.2f}"


def test_texts_of_items() -> None:
    items = pl.DataFrame(
        {
            "item_id": [1, 2, 3, 4],
            "title": ["Heat", "Heat", " ", "Alien"],
            "genres": [["Crime", "Drama"], [], [], ["Horror"]],
            "year": [1995, None, None, 1979],
            "text": ["", " Two men. ", "", None],
        }
    )
    assert item_texts(items) == ["Heat. Crime, Drama. 1995", " Two men. ", "", "Alien. Horror. 1979"]
    assert item_texts(items.drop("text"))[1] == "Heat"


def test_nothing_is_printed_while_an_encoder_is_loaded(encoder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_pretrained(str(encoder))
    assert capfd.readouterr() == ("", "")


def test_an_encoder_that_is_nowhere_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "no-such/encoder"
    with pytest.raises(DataError, match=f"encoder '{name}' cannot be loaded .*expected all-MiniLM-L6-v2, a folder"):
        load_pretrained(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning": "some"}, "tuning is 'some'; expected one of frozen, lora, adapter, top, full"),
        ({"encoded_items": 0}, "encoded_items is 0"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"n_heads": 3}, "multiple of n_heads"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextRecipe(**options)


@pytest.mark.parametrize("options", [{"dim": 64}, {"top_layers": 3}, {"max_tokens": 33}])
def test_options_that_do_not_fit_the_encoder_are_refused(
    options: dict[str, int], dataset: DataSet, encoder: Path
) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=f"{name} is {options[name]}; expected at most"):
        probe(dataset, small(encoder, **options), QUIET)


@pytest.mark.parametrize("tuning", ["adapter", "top"])
def test_an_encoder_of_other_layers_says_which_tunings_it_takes(tuning: str, dataset: DataSet, tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    texts = item_texts(dataset.items)
    write_encoder(tmp_path, texts)  # for its tokenizer
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 32}
    DistilBertModel(DistilBertConfig(vocab_size=400, pad_token_id=0, **sizes)).save_pretrained(tmp_path)
    message = f"tuning is '{tuning}' and encoder .* a 'distilbert'.* expected tuning lora, full or frozen, or one of"
    with pytest.raises(UsageError, match=message):
        probe(dataset, small(tmp_path, tuning=tuning), QUIET)
    assert probe(dataset, small(tmp_path, tuning="frozen", epochs=1), QUIET).architecture == "text"


@pytest.mark.parametrize("name", ["/no/such/encoder", "./encoder", "../encoder"])
def test_a_missing_folder_is_called_one(name: str) -> None:
    with pytest.raises(DataError, match=f"encoder '{name}' is not a folder; expected one with config.json, tokenizer"):
        load_pretrained(name)
