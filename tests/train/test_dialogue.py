"""The dialogue recipe learns which replies belong to which questions, of conversations that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from fuserec.models.checkpoint import Checkpoint
from fuserec.models.text import TextRetriever
from fuserec.tokens import Tokenizer
from fuserec.train.dialogue import DialogueRecipe, read_from_end, train_dialogue
from fuserec.train.dialogues import Dialogues
from fuserec.train.run import Run
from tests.conftest import tiny_tokenizer
from tests.train.pretrained_folder import write_pretrained

N_TOPICS, N_WAYS = 16, 8


@pytest.fixture(scope="module")
def dialogues() -> Dialogues:
    """Each topic is asked for in eight ways and has one reply, which shares no word with the questions."""
    rows = [
        (N_WAYS * topic + way, turn, speaker, text)
        for topic in range(N_TOPICS)
        for way in range(N_WAYS)
        for turn, (speaker, text) in enumerate([("user", f"way{way} ask{topic}"), ("agent", f"say{topic} so")])
    ]
    return Dialogues(pl.DataFrame(rows, schema=["dialogue_id", "turn", "speaker", "text"], orient="row"))


@pytest.fixture(scope="module")
def encoder(dialogues: Dialogues, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    write_pretrained(folder, dialogues.turns["text"].to_list())
    return folder


def small(encoder: Path, **options: Any) -> DialogueRecipe:
    defaults = {"dim": 32, "max_tokens": 8, "batch_size": 32, "learning_rate": 1e-2, "patience": 20, "epochs": 1}
    return DialogueRecipe(**{"encoder": str(encoder), **defaults, **options})


@pytest.fixture(scope="module")
def learned(dialogues: Dialogues, encoder: Path) -> Checkpoint:
    return train_dialogue(dialogues, small(encoder, epochs=12, lora_rank=0), Run(progress=False))


def test_replies_to_questions_in_other_words_are_found(learned: Checkpoint) -> None:
    metrics = learned.metrics
    assert metrics["baselines"]["random"]["hr@1"] == pytest.approx(1 / N_TOPICS)
    assert metrics["baselines"]["untuned"]["hr@1"] < 0.4, "the toy is too easy to show anything"
    assert metrics["test"]["hr@1"] > 0.8
    # The words of the questions that a reply answered are all that is needed here.
    assert metrics["baselines"]["words"]["hr@1"] > 0.9
    assert metrics["test_by_reply"]["known"]["n"] == metrics["n_test_users"]


def test_the_checkpoint_holds_replies_and_no_users(learned: Checkpoint, tmp_path: Path) -> None:
    learned.save(tmp_path / "checkpoint")
    checkpoint = Checkpoint.load(tmp_path / "checkpoint")
    module = checkpoint.module()
    assert checkpoint.architecture == "text" and isinstance(module, TextRetriever)
    assert checkpoint.users.is_empty()
    assert checkpoint.items["title"].to_list() == [f"say{topic} so" for topic in range(N_TOPICS)]
    assert checkpoint.items["count"].to_list() == [N_WAYS] * N_TOPICS
    torch.testing.assert_close(module.user_tower.item_table[1:], module.item_vectors(), atol=1e-5, rtol=0)
    # As the server asks: tokens of a text through the encoder, against the catalogue.
    assert checkpoint.tokenizer is not None
    tokens = torch.from_numpy(Tokenizer(checkpoint.tokenizer, max_tokens=8, pad_id=0)(["way3 ask5"]))
    with torch.no_grad():
        best = int((module.encoder(tokens) @ module.item_vectors().T).argmax())
    assert best == 5


def test_lora_changes_the_weights_it_should_under_their_old_names(dialogues: Dialogues, encoder: Path) -> None:
    from transformers import BertModel

    checkpoint = train_dialogue(dialogues, small(encoder, lora_rank=2), Run(progress=False))
    prefix = "encoder.transformer."
    before = {prefix + name: tensor for name, tensor in BertModel.from_pretrained(encoder).state_dict().items()}
    names = {name for name in checkpoint.state if name.startswith(prefix)}
    assert names == {name for name in before if ".pooler." not in name}
    changed = {name for name in names if not torch.equal(checkpoint.state[name], before[name])}
    assert changed == {name for name in names if ".layer." in name and "LayerNorm" not in name and "weight" in name}
    assert 0 < checkpoint.metrics["tuned_parameters"] < checkpoint.metrics["parameters"]


def test_equal_seeds_give_equal_weights(dialogues: Dialogues, encoder: Path) -> None:
    first, second, other = (
        train_dialogue(dialogues, small(encoder, seed=seed), Run(progress=False)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert first.metrics["test"] == second.metrics["test"]
    assert any(not torch.equal(first.state[name], other.state[name]) for name in first.state)


def test_of_a_long_conversation_the_end_is_read() -> None:
    document = tiny_tokenizer(["one two three four"])
    end = Tokenizer(read_from_end(document), max_tokens=2, pad_id=0)(["one two three four"])
    assert end.tolist() == Tokenizer(document, max_tokens=2, pad_id=0)(["three four"]).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"held_out": 0.5}, "held_out is 0.5"),
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"max_turns": 0}, "max_turns is 0"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DialogueRecipe(**options)
