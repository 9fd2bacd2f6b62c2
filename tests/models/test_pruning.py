"""Units of least weight are masked, and taking masked ones out changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fuserec.models.pruning import choose_units, drop_masked_, mask_units_, masked_units, pairs, shrink_
from fuserec.models.sequential import GRU4Rec, SASRec, SequentialConfig

CONFIG = SequentialConfig(n_items=12, dim=8, max_history=6)


def test_the_units_of_least_weight_are_chosen() -> None:
    """By the product of both lengths: unit 1 has a short row, and a column that makes up for it."""
    weight_in = torch.diag(torch.tensor([1.0, 0.1, 3.0, 1.0]))
    weight_out = torch.tensor([[0.5, 40.0, 0.1, 2.0]])
    assert choose_units(weight_in, weight_out, 0.5).tolist() == [0, 2]
    assert choose_units(weight_in, weight_out, 0.74).tolist() == [0, 2]
    assert choose_units(weight_in, weight_out, 0.0).tolist() == []


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=f"share is {share}; expected 0 <= share < 1"):
        choose_units(torch.ones(4, 2), torch.ones(2, 4), share)


def test_weights_that_do_not_meet_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight_out is \(2, 5\); expected \(n_out, 4\)"):
        choose_units(torch.ones(4, 2), torch.ones(2, 5), 0.5)


def test_every_block_of_attention_has_a_pair_and_recurrence_has_none() -> None:
    assert [(pair.inner.out_features, pair.outer.out_features) for pair in pairs(SASRec(CONFIG))] == [(16, 8)] * 2
    assert list(pairs(GRU4Rec(CONFIG))) == []


def test_shrinking_takes_out_what_was_masked_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model = SASRec(CONFIG).eval()
    for _, inner, outer in pairs(model):
        units = choose_units(inner.weight, outer.weight, 0.5)
        mask_units_(inner, outer, units)
        assert masked_units(inner, outer).nonzero()[:, 0].tolist() == units.tolist()
    history = torch.tensor([[0, 0, 3, 1, 12, 7]])
    before = model.positions(torch.tensor([1]), history)

    assert shrink_(model, 0.5) == 16
    assert [(pair.inner.out_features, pair.outer.in_features) for pair in pairs(model)] == [(8, 8)] * 2
    torch.testing.assert_close(model.positions(torch.tensor([1]), history), before, rtol=1e-5, atol=1e-6)


def test_a_bias_counts_and_may_be_missing() -> None:
    """GELU of a bias is not zero; a masked unit must not leave it behind."""
    torch.manual_seed(0)
    for bias in (True, False):
        model = nn.Sequential(nn.Linear(3, 4, bias=bias), nn.GELU(), nn.Linear(4, 2, bias=bias))
        [(_, inner, outer)] = pairs(model)
        mask_units_(inner, outer, torch.tensor([0, 3]))
        x = torch.randn(5, 3)
        before = model(x)
        assert shrink_(model, 0.5) == 2
        torch.testing.assert_close(model(x), before)


def test_dropping_masked_units_is_exact() -> None:
    """Whole numbers through ReLU are added without rounding, in whatever order: what is returned is the same bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    for parameter in model.parameters():
        parameter.data = torch.randint(-9, 10, parameter.shape).float()
    [(_, inner, outer)] = pairs(model)
    # Masked by what leaves them alone: their own weights and biases are not zero.
    outer.weight.data[:, [1, 2, 6]] = 0.0
    x = torch.randint(-9, 10, (5, 3)).float()
    before = model(x)
    assert drop_masked_(model) == 3
    assert [part.weight.shape for part in model if isinstance(part, nn.Linear)] == [(5, 3), (2, 5)]
    assert torch.equal(model(x), before)
    assert drop_masked_(model) == 0


def test_a_pair_that_says_nothing_keeps_one_unit() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2))
    [(_, inner, outer)] = pairs(model)
    outer.weight.data.zero_()
    x = torch.randn(5, 3)
    before = model(x)
    assert drop_masked_(model) == 7
    assert torch.equal(model(x), before)


def test_a_model_without_masked_units_stays_as_it_is() -> None:
    model = SASRec(CONFIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert drop_masked_(model) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
