"""Products of float32 matrices, by either library."""

from __future__ import annotations

import pytest
import torch

from mobile_export.model import products


@pytest.fixture(params=["as it comes", "without oneDNN"])
def library(request, monkeypatch):
    if request.param == "without oneDNN":
        monkeypatch.setattr(products, "ONEDNN", False)


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("leading", [(), (1,), (7,), (2, 3)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_linear_is_torchs(leading, biased):
    x, weight, bias = drawn(*leading, 96), drawn(40, 96), drawn(40) if biased else None
    want = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    got = products.linear(x, weight, bias)
    assert got.shape == (*leading, 40)
    assert (got - want).abs().max() < 1e-4


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_is_torchs_whichever_way_the_memory_lies(turned):
    a, b = drawn(33, 50), drawn(50, 20)
    if turned:
        a, b = a.t().contiguous().t(), b.t().contiguous().t()
    assert (products.product(a, b) - a.double() @ b.double()).abs().max() < 1e-4
