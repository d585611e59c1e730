import pytest
import torch
from torch import tensor

from ticket_search.pruning.masks import apply_mask, density, full_mask, kept_weights, pack, prunable_weights, unpack


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (3, 5), (2, 3, 3, 3), (0,), (4, 0)])
def test_unpack_inverts_pack(shape):
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.5
    packed = pack(kept)
    assert (packed.dtype, len(packed)) == (torch.uint8, -(-kept.numel() // 8))
    assert torch.equal(unpack(packed, shape), kept)


def test_the_first_weight_is_the_highest_bit():
    assert pack(tensor([True, False, True, False, False, False, False, True, True])).tolist() == [
        0b10100001,
        0b10000000,
    ]


def test_a_noncontiguous_tensor_is_packed_in_element_order():
    kept = tensor([[True, False], [True, True], [False, False]]).T
    assert unpack(pack(kept), (2, 3)).tolist() == [[True, True, False], [False, True, False]]


def test_counts():
    mask = {"a": tensor([True, False, True]), "b": tensor([[True], [False]])}
    assert (kept_weights(mask), prunable_weights(mask), density(mask)) == (3, 5, 0.6)


def test_a_dense_mask_keeps_all_of_the_named_tensors():
    weights = {"a": torch.zeros(2), "bias": torch.zeros(3), "b": torch.zeros(1, 2)}
    mask = full_mask(weights, ["b", "a"])
    assert {name: kept.tolist() for name, kept in mask.items()} == {"b": [[True, True]], "a": [True, True]}
    assert list(mask) == ["b", "a"]


def test_masked_weights_are_plus_zero_even_if_they_were_nan():
    weights = {"a": tensor([-1.0, 2.0, float("nan"), float("-inf")]), "n": tensor(3)}
    masked = apply_mask({"a": tensor([False, True, False, False])}, weights)
    assert masked["a"].tolist() == [0.0, 2.0, 0.0, 0.0]
    assert torch.signbit(masked["a"]).tolist() == [False] * 4
    weights["n"] += 1
    assert masked["n"].item() == 3
