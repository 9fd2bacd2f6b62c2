"""Every sequential architecture keeps the promises of a retriever."""

from __future__ import annotations

import pytest
import torch

from fuserec.models.attention import SelfAttention, attention_mask
from fuserec.models.registry import ARCHITECTURES
from fuserec.models.retriever import Retriever
from fuserec.models.sequential import BERT4Rec, Sequential, SequentialConfig

NAMES = ["sasrec", "gru4rec", "lstm", "conv", "bert4rec"]
N_ITEMS, DIM, MAX_HISTORY = 30, 8, 12


def built(name: str, **options: int) -> Sequential:
    torch.manual_seed(0)
    module = ARCHITECTURES[name].module_type(SequentialConfig(N_ITEMS, DIM, MAX_HISTORY, **options))
    assert isinstance(module, Sequential)
    for parameter in module.parameters():  # zeros and ones, as some begin, would hide what depends on them
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    for attention in module.modules():
        if isinstance(attention, SelfAttention):
            torch.nn.init.normal_(attention.distance_bias.weight)
    return module.eval()


def histories(batch: int, length: int) -> torch.Tensor:
    return torch.randint(1, N_ITEMS + 1, (batch, length), generator=torch.Generator().manual_seed(1))


def encoded(module: Retriever, history: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        vectors: torch.Tensor = module.user_tower(torch.zeros(len(history), dtype=torch.int64), history)
    return vectors


@pytest.mark.parametrize("n_blocks", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name: str, n_blocks: int) -> None:
    module, history = built(name, n_blocks=n_blocks), histories(4, 5)
    padded = torch.nn.functional.pad(history, (MAX_HISTORY - 5, 0))
    assert torch.allclose(encoded(module, history), encoded(module, padded), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_order_and_every_item_matter(name: str) -> None:
    module, history = built(name), histories(1, 6)
    base = encoded(module, history)
    assert not torch.allclose(base, encoded(module, history.flip(1)), atol=1e-4)
    for place in range(6):
        other = history.clone()
        other[0, place] = other[0, place] % N_ITEMS + 1
        assert not torch.allclose(base, encoded(module, other), atol=1e-5), f"place {place}"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bert4rec"])
def test_no_position_sees_what_comes_later(name: str) -> None:
    tower, history = built(name).user_tower, histories(3, 9)
    with torch.no_grad():
        whole, start = tower.all_positions(history), tower.all_positions(history[:, :4])
    assert torch.allclose(whole[:, :4], start, atol=1e-5)


def test_masked_positions_see_both_ways_and_not_themselves() -> None:
    module = built("bert4rec")
    assert isinstance(module, BERT4Rec)
    tower, history = module.user_tower, histories(1, 6)
    masked = history.clone()
    masked[0, 2] = tower.mask_row
    later = masked.clone()
    later[0, 5] = later[0, 5] % N_ITEMS + 1
    with torch.no_grad():
        assert not torch.allclose(tower.all_positions(masked)[:, 2], tower.all_positions(later)[:, 2], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_history_is_finite_and_like_any_other_of_its_kind(name: str) -> None:
    vectors = encoded(built(name), torch.zeros(2, 7, dtype=torch.int64))
    assert vectors.isfinite().all()
    assert torch.equal(vectors[0], vectors[1])


@pytest.mark.parametrize("name", NAMES)
def test_item_vectors_are_the_table_without_padding_and_mask(name: str) -> None:
    module = built(name)
    assert module.item_vectors().shape == (N_ITEMS, DIM)
    assert torch.equal(module.item_vectors()[0], module.user_tower.item_embedding.weight[1])


def test_attention_that_looks_both_ways_tells_before_from_after() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(DIM, 2, 5, causal=False)
    torch.nn.init.normal_(attention.distance_bias.weight)
    x = torch.randn(1, 5, DIM)
    mask = attention_mask(torch.ones(1, 5, dtype=torch.bool), causal=False)
    assert not torch.allclose(attention(x, mask), attention(x.flip(1), mask).flip(1), atol=1e-4)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("n_heads", [1, 2, 4])
@torch.no_grad()
def test_the_last_position_alone_is_the_last_of_all(n_heads: int, length: int, causal: bool) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(DIM, n_heads, 7, causal=causal)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, length, DIM)
    present = torch.ones(3, length, dtype=torch.bool)
    present[1, : length // 2] = False
    alone = attention(x, present, last=True)
    assert alone.shape == (3, DIM)
    torch.testing.assert_close(alone, attention(x, attention_mask(present, causal=causal))[:, -1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_blocks", [1, 3])
@torch.no_grad()
def test_an_encoder_asked_for_the_last_position_returns_the_last_of_all(name: str, n_blocks: int) -> None:
    tower, x = built(name, n_blocks=n_blocks).user_tower, torch.randn(3, 6, DIM)
    present = torch.ones(3, 6, dtype=torch.bool)
    present[1, :4] = False
    x = x * present[..., None]
    alone, together = tower.encoder(x, present, last=True), tower.encoder(x, present)
    assert alone.shape == (3, DIM)
    torch.testing.assert_close(alone, together[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dim": 0}, "dim is 0"), ({"dim": 9}, "multiple of n_heads"), ({"dropout": 1.0}, "dropout is 1.0")],
)
def test_sizes_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequentialConfig(N_ITEMS, **options)  # type: ignore[arg-type]
