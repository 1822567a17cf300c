"""K-FAC on convolutions against patches cut out by torch's unfold, and on outputs with positions."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from kfac_reference import (
    LOSSES,
    backward,
    build,
    close,
    dense_ggn,
    empirical_factors,
    factors,
    generator,
    normal,
    optimizer_factors,
    targets_for,
    type_2_factors,
)
from torch import nn

from support.optim import KFAC

REFERENCES = {"type-2": type_2_factors, "empirical": empirical_factors}

CONVOLUTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "rectangular": {"kernel_size": (3, 2)},
    "stride": {"stride": (2, 1)},
    "padding": {"padding": (2, 1)},
    "stride that leaves a rest": {"stride": 3, "padding": 1},
    "dilation": {"dilation": (1, 2)},
    "all three": {"stride": (1, 2), "padding": (1, 2), "dilation": (2, 1)},
    "same": {"padding": "same"},
    "same, uneven": {"padding": "same", "kernel_size": (2, 4), "dilation": (3, 1)},
    "valid": {"padding": "valid"},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4, "padding": 1, "stride": 2},
    "groups without bias": {"groups": 2, "bias": False},
    "reflect": {"padding": (2, 1), "padding_mode": "reflect"},
    "circular": {"padding": (1, 2), "padding_mode": "circular", "stride": 2},
    "replicate": {"padding": 1, "padding_mode": "replicate"},
    "reflect, same": {"padding": "same", "padding_mode": "reflect"},
    "1 x 1": {"kernel_size": 1},
}


def convolution(**settings):
    return nn.Conv2d(4, 4, **{"kernel_size": 3} | settings)


def network(layer, head=3):
    """The layer in the middle, so that its inputs and gradients are those of a network."""
    return nn.Sequential(
        build(nn.Conv2d(2, 4, 1), nn.Tanh(), layer, nn.Tanh()),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        build(nn.Linear(16, head), seed=1),
    )


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_factors_are_those_of_the_unfolded_patches(name, sharing, loss):
    model = network(convolution(**CONVOLUTIONS[name]))
    twin = copy.deepcopy(model)
    x, y = normal(3, 2, 7, 6), targets_for(loss, (3, 3))
    optimizer = optimizer_factors(model, loss, y, x, fisher="type-2", sharing=sharing)
    layer, own = model[0][2], twin[0][2]
    A, G = factors(optimizer, layer.weight)
    groups, inputs = layer.groups, layer.weight[0].numel() + (layer.bias is not None)
    assert A.shape == (groups, inputs, inputs)
    assert G.shape == (groups, 4 // groups, 4 // groups)
    close((A, G), type_2_factors(twin, own, loss, y, x, sharing=sharing))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["plain", "stride", "groups", "no bias"])
def test_empirical_factors_are_averages_over_examples(name, sharing, loss):
    model = network(convolution(**CONVOLUTIONS[name]))
    twin = copy.deepcopy(model)
    x, y = normal(3, 2, 7, 6), targets_for(loss, (3, 3))
    optimizer = optimizer_factors(model, loss, y, x, fisher="empirical", sharing=sharing)
    close(
        factors(optimizer, model[0][2].weight),
        empirical_factors(twin, twin[0][2], loss, y, x, sharing=sharing),
    )


@pytest.mark.parametrize("layout", ["channels last", "a view"])
def test_the_layout_of_the_input_in_memory_does_not_matter(layout):
    model, loss = network(convolution(padding=1)), "mse"
    twin = copy.deepcopy(model)
    x, y = normal(3, 2, 7, 6), targets_for(loss, (3, 3))
    other = (
        x.to(memory_format=torch.channels_last)
        if layout == "channels last"
        else F.pad(x, (1, 2, 3, 1))[..., 3:-1, 1:-2]
    )
    optimizer = optimizer_factors(model, loss, y, other, fisher="type-2")
    for layer, own in [(model[0][0], twin[0][0]), (model[0][2], twin[0][2])]:
        close(factors(optimizer, layer.weight), REFERENCES["type-2"](twin, own, loss, y, x))


@pytest.mark.parametrize("fisher", REFERENCES)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("loss", LOSSES)
def test_factors_equal_curvlinops(loss, sharing, fisher):
    """As for Linear layers; groups = 1, since theirs averages the groups of a convolution into one factor."""
    curvlinops = pytest.importorskip("curvlinops")
    model = network(convolution(stride=2, padding=1, dilation=(1, 2)))
    twin, x, y = copy.deepcopy(model), normal(4, 2, 7, 6), targets_for(loss, (4, 3))
    optimizer = optimizer_factors(model, loss, y, x, fisher=fisher, sharing=sharing)
    weight, bias = twin[0][2].weight, twin[0][2].bias
    peer = curvlinops.KFACLinearOperator(
        twin,
        {"cross-entropy": nn.CrossEntropyLoss(), "mse": nn.MSELoss()}[loss],
        [weight, bias],
        [(x, y)],
        fisher_type=fisher,
        kfac_approx=sharing,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    A, G = (factor[0] for factor in factors(optimizer, model[0][2].weight))
    V = normal(4, len(A), seed=5)
    ours = G @ V @ A
    vector = torch.cat([V[:, :-1].flatten(), V[:, -1]])
    factor = 3 if (loss, fisher) == ("mse", "empirical") else 1
    close(factor * torch.cat([ours[:, :-1].flatten(), ours[:, -1]]), peer @ vector, 1e-13)


def test_the_input_factor_does_not_scale_with_the_size_of_the_image():
    results = []
    for side in (4, 12):
        model = build(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"))
        x = normal(5, 2, 1, 1).expand(-1, -1, side, side)
        y = normal(5, 3, side, side, seed=1)
        optimizer = optimizer_factors(model, "mse", y, x, fisher="type-2")
        results.append(factors(optimizer, model[0].weight)[0])
    close(*results, 1e-13)


@pytest.mark.parametrize("name", ["plain", "groups", "no bias", "depthwise"])
def test_one_step_solves_the_damped_kronecker_system_of_every_group(name):
    model, damping = network(convolution(**CONVOLUTIONS[name])), 1e-2
    x, y = normal(3, 2, 7, 6), targets_for("cross-entropy", (3, 3))
    layer = model[0][2]
    optimizer = KFAC(model, lr=0.5, damping=damping, fisher="type-2", weight_decay=0.1)
    backward(model, "cross-entropy", y, x)
    before = [p.detach().clone() for p in layer.parameters()]
    V = [p.grad + 0.1 * p.detach() for p in layer.parameters()]
    optimizer.step()
    U = [(b - p.detach()) / 0.5 for b, p in zip(before, layer.parameters(), strict=True)]
    g = layer.groups
    V, U = (
        torch.cat([part.reshape(g, 4 // g, -1) for part in parts], 2) for parts in (V, U)
    )
    for A, G, v, u in zip(*factors(optimizer, layer.weight), V, U, strict=True):
        pi = math.sqrt(A.trace() / len(A) / (G.trace() / len(G)))
        dense = torch.kron(
            A + pi * math.sqrt(damping) * torch.eye(len(A), dtype=A.dtype),
            G + math.sqrt(damping) / pi * torch.eye(len(G), dtype=G.dtype),
        )
        close(dense @ u.T.flatten(), v.T.flatten())


# Outputs with positions


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", REFERENCES)
def test_a_segmenting_network_has_a_term_for_each_pixel(fisher, sharing):
    model = build(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 2))
    twin = copy.deepcopy(model)
    x, y = normal(2, 2, 3, 3), targets_for("cross-entropy", (2, 3, 2, 2))
    optimizer = optimizer_factors(
        model, "cross-entropy", y, x, fisher=fisher, sharing=sharing
    )
    for index in (0, 2):
        close(
            factors(optimizer, model[index].weight),
            REFERENCES[fisher](twin, twin[index], "cross-entropy", y, x, sharing=sharing),
        )


def test_the_block_of_a_pixel_wise_classifier_is_dense_where_it_can_be():
    """With zero weights all pixels predict the same, so that the Hessian of each term is one matrix."""
    model = build(nn.Conv2d(2, 3, 1))
    for p in model.parameters():
        p.data.zero_()
    twin = copy.deepcopy(model)
    x, y = normal(2, 2, 3, 2), targets_for("cross-entropy", (2, 3, 3, 2))
    optimizer = optimizer_factors(model, "cross-entropy", y, x, fisher="type-2")
    A, G = factors(optimizer, model[0].weight)
    close(torch.kron(A[0], G[0]), dense_ggn(twin, twin[0], "cross-entropy", y, x))


@pytest.mark.parametrize("loss", LOSSES)
def test_sampled_factors_of_pixels_tend_to_type_2(loss):
    """Labels of different pixels are independent. The positions mix in the second layer."""

    def net():
        return build(nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 3, 2))

    x, y = normal(1, 2, 3, 3), targets_for(loss, (1, 3, 2, 2))
    exact, n = net(), 100
    wanted = factors(
        optimizer_factors(exact, loss, y, x, fisher="type-2"), exact[0].weight
    )[1]
    model = net()
    optimizer = KFAC(model, lr=0.0, loss=loss, decay=0.0)
    draws = []
    for _ in range(60):
        backward(
            model, loss, y.expand(n, *y.shape[1:]).contiguous(), x.expand(n, -1, -1, -1)
        )
        optimizer.step()
        draws.append(factors(optimizer, model[0].weight)[1].clone())
    draws = torch.stack(draws)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - wanted).abs() <= 5 * error + 1e-12).all()
    assert (error < 0.1 * wanted.abs().max()).all()


# Sub-sampling of rows


def draws_of(model, layer, loss, y, x, draws=400, **settings):
    optimizer = KFAC(model, lr=0.0, loss=loss, fisher="type-2", decay=0.0, **settings)
    seen = []
    for _ in range(draws):
        backward(model, loss, y, x)
        optimizer.step()
        seen.append([factor.clone() for factor in factors(optimizer, layer.weight)])
    return [torch.stack(part) for part in zip(*seen, strict=True)]


@pytest.mark.parametrize("name", ["plain", "stride", "groups"])
def test_factors_from_some_positions_are_unbiased(name):
    """Also when the grid does not divide the image, so that its corner decides how many points it has."""
    model = network(convolution(**CONVOLUTIONS[name]))
    twin, layer = copy.deepcopy(model), model[0][2]
    x, y = normal(2, 2, 7, 6), targets_for("mse", (2, 3))
    exact = type_2_factors(twin, twin[0][2], "mse", y, x)
    for drawn, wanted in zip(
        draws_of(model, layer, "mse", y, x, rows=8), exact, strict=True
    ):
        error = drawn.std(0) / math.sqrt(len(drawn))
        assert error.max() > 1e-5  # it does draw
        assert ((drawn.mean(0) - wanted).abs() <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("rows", [16, 40, 100])
def test_about_so_many_positions_enter_the_factors(rows):
    """The rank of A tells; 4 images of 12 x 12 are 576 rows, of 201 numbers. A grid may have a corner more."""
    model = nn.Sequential(
        build(nn.Conv2d(8, 3, 5, padding=2)), nn.Flatten(), build(nn.Linear(3 * 144, 2))
    )
    x, y = normal(4, 8, 12, 12), targets_for("mse", (4, 2))
    (A, _) = draws_of(model, model[0][0], "mse", y, x, draws=10, rows=rows)
    ranks = torch.linalg.matrix_rank(A[:, 0], hermitian=True).double()
    assert ranks.mean() <= rows
    assert ranks.min() >= rows / 4
    assert ranks.max() <= 1.5 * rows


# The whole


@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_output_and_gradients_are_the_same_with_and_without_the_hooks(fisher, sharing):
    plain = network(convolution(padding=1, groups=2))
    hooked = copy.deepcopy(plain)
    optimizer = KFAC(hooked, lr=0.1, fisher=fisher, sharing=sharing, rows=10)
    x, y = normal(3, 2, 7, 6), targets_for("cross-entropy", (3, 3))
    outputs = []
    for model in (plain, hooked):
        outputs.append(model(x))
        F.cross_entropy(outputs[-1], y).backward()
    assert torch.equal(*outputs)
    for p, q in zip(plain.parameters(), hooked.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    del optimizer


@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
def test_an_activation_in_place_changes_nothing(fisher):
    results = []
    for inplace in (False, True):
        model = build(
            nn.Conv2d(2, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 3, 3), nn.ReLU(inplace)
        )
        model.append(nn.Flatten())
        x, y = normal(3, 2, 5, 5), targets_for("cross-entropy", (3, 3))
        optimizer = optimizer_factors(model, "cross-entropy", y, x, fisher=fisher)
        results.append([factors(optimizer, model[i].weight) for i in (0, 2)])
    close(*results, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_convolutions_of_lower_precision_learn(sharing, fisher, dtype):
    model = network(convolution(stride=2)).to(dtype)
    draw = generator()
    y = torch.randint(3, (24,), generator=draw)
    x = torch.randn(24, 2, 7, 6, generator=draw)
    x[torch.arange(24), y % 2] += 1.0 + y[:, None, None]
    x = x.to(dtype)
    optimizer = KFAC(model, lr=0.1, damping=1e-2, fisher=fisher, sharing=sharing, rows=100)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(backward(model, "cross-entropy", y, x).item())
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    assert optimizer.state[model[0][2].weight]["A"].dtype == torch.float32
