"""The text interest model: vectors depend on the text and not on padding, and untrained users are means."""

import json

import pytest
import torch

from fuserec.errors import CheckpointError
from fuserec.models.text import TextConfig, TextRetriever
from fuserec.tokens import Tokenizer
from tests.conftest import TINY_ENCODER, tiny_tokenizer

TEXTS = ["a red car", "a blue car", "the war of the worlds", "war"]


@pytest.fixture
def model() -> TextRetriever:
    torch.manual_seed(0)
    model = TextRetriever(TextConfig(n_items=4, encoder=TINY_ENCODER, dim=32, max_tokens=8, max_history=6)).eval()
    tokens = torch.from_numpy(Tokenizer(tiny_tokenizer(TEXTS), max_tokens=8, pad_id=0)(TEXTS))
    model.tokens[1:, : tokens.shape[1]] = tokens
    model.refresh()
    return model


def test_vectors_are_unit_and_independent_of_padding(model: TextRetriever) -> None:
    vectors = model.item_vectors()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    alone = torch.cat([model.encode_items(torch.tensor([row])) for row in (1, 2, 3, 4)])
    torch.testing.assert_close(alone, vectors, atol=1e-6, rtol=0)


def test_user_vector_is_independent_of_padding_and_positions_are_prefixes(model: TextRetriever) -> None:
    history = torch.tensor([[0, 0, 3, 1, 2]])
    user = torch.tensor([0])
    with torch.no_grad():
        torch.testing.assert_close(
            model.user_tower(user, history), model.user_tower(user, history[:, 2:]), atol=1e-6, rtol=0
        )
        at_once = model.positions(user, history)
        for end in (2, 3, 4):
            torch.testing.assert_close(
                at_once[:, end], model.user_tower(user, history[:, : end + 1]), atol=1e-6, rtol=0
            )


def test_without_blocks_a_user_is_the_mean_of_the_history() -> None:
    model = TextRetriever(TextConfig(n_items=4, encoder=TINY_ENCODER, dim=32, n_blocks=0)).eval()
    model.user_tower.item_table[1:] = torch.nn.functional.normalize(torch.randn(4, 32), dim=1)
    want = torch.nn.functional.normalize(model.user_tower.item_table[[2, 4]].mean(dim=0), dim=0)
    got = model.user_tower(torch.tensor([0]), torch.tensor([[0, 2, 4]]))[0]
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_an_untrained_adapter_changes_nothing() -> None:
    torch.manual_seed(0)
    plain = TextRetriever(TextConfig(n_items=1, encoder=TINY_ENCODER, dim=32)).eval()
    adapted = TextRetriever(TextConfig(n_items=1, encoder=TINY_ENCODER, dim=32, adapter=4)).eval()
    state = {
        name.replace(".output.dense", ".output.output.dense").replace(".output.LayerNorm", ".output.output.LayerNorm")
        if ".attention." not in name
        else name: tensor
        for name, tensor in plain.state_dict().items()
    }
    missing, unexpected = adapted.load_state_dict(state, strict=False)
    assert not unexpected and all("adapter" in name for name in missing)
    tokens = torch.tensor([[2, 3, 4, 0]])
    torch.testing.assert_close(adapted.encoder(tokens), plain.encoder(tokens))


@pytest.mark.parametrize("encoder", ["{", "[]", "{}", json.dumps({"model_type": "no-such-thing"})])
def test_an_encoder_that_is_none_is_refused(encoder: str) -> None:
    with pytest.raises(ValueError, match=r"model_type|encoder is not JSON|encoder holds a JSON list|no-such-thing"):
        TextConfig(n_items=1, encoder=encoder)


def test_texts_are_cut_and_filled_up() -> None:
    tokenizer = Tokenizer(tiny_tokenizer(TEXTS), max_tokens=4, pad_id=0)
    tokens = tokenizer(["the war of the worlds", "car", "", "x" * 1_000_000])
    assert tokens.shape == (4, 4)
    assert tokens[1, 1:].tolist() == [0, 0, 0] and tokens[2].tolist() == [0] * 4
    assert tokenizer([]).shape[0] == 0


def test_a_document_that_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        Tokenizer("{}", max_tokens=4, pad_id=0)
