"""Gram matrices: the strips of a large one, what is mirrored, and the appended ones give the plain product."""

import pytest
import torch

from support.optim.gram import gram


@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize(
    ("groups", "d", "rows"),
    [
        (1, 1, 5),
        (2, 127, 3),
        (1, 128, 3),
        (3, 129, 2),
        (2, 300, 7),
        (1, 1100, 4),
        (2, 3, 0),
    ],
)
def test_a_gram_matrix_is_the_product_with_the_transpose(groups, d, rows, ones):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(groups, d, rows, generator=generator, dtype=torch.double)
    whole = torch.cat([x, torch.ones(groups, ones, rows, dtype=x.dtype)], 1)
    expected = torch.einsum("gir,gjr->gij", whole, whole)
    torch.testing.assert_close(gram(x, ones), expected, rtol=0, atol=1e-12)
