"""Products in C are those of float64, in every part of a tile and of a panel, on every number of threads."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from vllm_cls.runtime.native import product
from vllm_cls.runtime.native.compiler import library
from vllm_cls.runtime.native.product import PanelProduct, compiled, panel_linear

pytestmark = pytest.mark.skipif(not shutil.which("cc") and not shutil.which("gcc"), reason="there is no C compiler")


@pytest.fixture(params=[1, 5])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr("vllm_cls.runtime.native.product.WORTH_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86's instructions")
@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3"])
def test_for_older_processors(level: str) -> None:
    made, own = library("product", (*product.FLAGS, f"-march={level}")), compiled()
    assert made is not None and own is not None
    made.panel_width.restype, made.multiply.argtypes = own.panel_width.restype, own.multiply.argtypes
    x, weight, bias = torch.randn(39, 1100), torch.randn(100, 1100), torch.randn(100)
    found = PanelProduct(made, weight, bias, "none")(x)
    torch.testing.assert_close(found, F.gelu(F.linear(x, weight, bias)), atol=2e-4, rtol=1e-5)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 14, 31, 290])
@pytest.mark.parametrize("shape", [(1, 1), (33, 17), (128, 48), (257, 101), (900, 384)])
def test_it_is_what_float64_gives(rows: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, shape[0]), torch.randn(shape[1], shape[0]), torch.randn(shape[1])
    for each, gelu in ((bias, None), (None, None), (bias, "none"), (None, "tanh")):
        expected = F.linear(x.double(), weight.double(), None if each is None else each.double())
        if gelu is not None:
            expected = F.gelu(expected, approximate=gelu)
        found = panel_linear(weight, each, gelu)(x).double()
        torch.testing.assert_close(found, expected, atol=3e-7 * shape[0] + 2e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_of_other_types_are_read_as_what_they_are(dtype: torch.dtype) -> None:
    x, weight = torch.randn(31, 64).to(dtype), torch.randn(48, 64)
    found = panel_linear(weight, None)(x)
    torch.testing.assert_close(found, F.linear(x.float(), weight), atol=1e-4, rtol=1e-5)


def test_gelu_is_right_from_end_to_end() -> None:
    x = torch.cat([torch.linspace(-30, 30, 20_001), torch.tensor([-1e30, 1e30, 0.0, -0.0])])[:, None]
    one = torch.ones(1, 1)
    for gelu in ("none", "tanh"):
        found = panel_linear(one, None, gelu)(x)
        torch.testing.assert_close(found, F.gelu(x, approximate=gelu), atol=1.5e-6, rtol=1e-6)


def test_what_is_not_finite_stays_in_its_row() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(9, 300), torch.randn(50, 300).abs()
    x[2, 7], x[5, 299] = float("nan"), float("inf")
    for gelu in (None, "none", "tanh"):
        found = panel_linear(weight, None, gelu)(x)
        assert found[2].isnan().all() and (found[5] == float("inf")).all()
        rest = [0, 1, 3, 4, 6, 7, 8]
        torch.testing.assert_close(found[rest], panel_linear(weight, None, gelu)(x[rest]), atol=0, rtol=0)


def test_a_row_does_not_see_what_shares_its_batch() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(40, 300), torch.randn(100, 300), torch.randn(100)
    product = panel_linear(weight, bias, "none")
    assert isinstance(product, PanelProduct)
    whole = product(x)
    assert all(torch.equal(product(x[i : i + 1]), whole[i : i + 1]) for i in range(40))
