"""Networks: their sizes, and initial weights that depend on the seed alone."""

import math

import pytest
import torch
from torch import nn

from support import models
from support.models import MODELS, lenet5, mlp, seeded

pytestmark = pytest.mark.usefixtures("untouched_random_state")


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _weights(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_lenet5_has_61706_parameters():
    assert _parameters(lenet5(seed=0)) == 61_706


def test_lenet5_has_the_layer_sizes_of_e5():
    model, shapes = lenet5(seed=0), {}
    for name, layer in model.named_children():
        layer.register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    model(torch.zeros(2, 1, 32, 32))
    assert {
        name: shapes[name] for name in ("c1", "s2", "c3", "s4", "c5", "f6", "output")
    } == {
        "c1": (6, 28, 28),
        "s2": (6, 14, 14),
        "c3": (16, 10, 10),
        "s4": (16, 5, 5),
        "c5": (120, 1, 1),
        "f6": (84,),
        "output": (10,),
    }


def test_lenet5_is_convolutions_relu_and_pooling_as_written_down():
    model = lenet5(seed=1)
    x = pictures = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    w = dict(model.named_parameters())
    for name in ("c1", "c3", "c5"):
        x = torch.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"]).clamp(min=0)
        if name != "c5":  # the largest of each block of 2 x 2
            x = torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
    x = (x[:, :, 0, 0] @ w["f6.weight"].T + w["f6.bias"]).clamp(min=0)
    logits = x @ w["output.weight"].T + w["output.bias"]
    torch.testing.assert_close(model(pictures), logits)


def test_lenet5_takes_other_channels_and_classes():
    model = lenet5((3, 32, 32), classes=100, seed=0)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
    assert _parameters(model) == 61_706 + 2 * 6 * 25 + 90 * (84 + 1)


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (1, 32, 31), (32, 32), (1, 8, 8), (1, 32, 32, 32)]
)
def test_lenet5_refuses_other_sides(shape):
    with pytest.raises(ValueError, match=r"\(channels, 32, 32\); got"):
        lenet5(shape, seed=0)


@pytest.mark.parametrize(
    ("shape", "number"), [((1, 28, 28), 99_710), ((3, 32, 32), 328_510)]
)
def test_mlp_with_three_layers_of_100_has_as_many_parameters_as_in_the_source(
    shape, number
):
    model = mlp(shape, hidden=(100, 100, 100), seed=0)
    assert _parameters(model) == number
    assert _parameters(mlp(shape, seed=0)) == number
    assert model(torch.zeros(4, *shape)).shape == (4, 10)


def test_mlp_is_matrix_products_and_relu_as_written_down():
    model = mlp((2, 3), classes=4, hidden=(7, 5), seed=0)
    x = inputs = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    x = x.reshape(6, 6)
    *hidden, last = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in hidden] == [7, 5]
    for layer in hidden:
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(model(inputs), x @ last.weight.T + last.bias)


def test_mlp_without_hidden_layers_is_linear():
    assert _parameters(mlp((1, 8, 8), hidden=(), seed=0)) == 64 * 10 + 10


@pytest.mark.parametrize(
    ("build", "shape", "number"),
    [  # chabanenko, section 3: counted by hand
        (models.deep_mlp, (1, 28, 28), 785 * 30 + 19 * 31 * 30 + 31 * 10),
        (models.deep_mlp, (3, 32, 32), 3073 * 30 + 19 * 31 * 30 + 31 * 10),
        (models.cnn, (1, 28, 28), 26 * 32 + 801 * 32 + (1568 + 1) * 256 + 2570),
        (models.cnn, (3, 32, 32), 76 * 32 + 801 * 32 + (2048 + 1) * 256 + 2570),
        (models.deep_cnn, (3, 32, 32), 7_989_770),
    ],
)
def test_networks_of_the_batch_normalisation_study_have_their_parameters(
    build, shape, number
):
    assert _parameters(build(shape, seed=0)) == number
    normed = build(shape, seed=0, batchnorm=True)
    scales = [m for m in normed.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert _parameters(normed) == number + 2 * sum(m.num_features for m in scales)
    assert normed(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("name", ["mlp_bn", "deep_mlp_bn", "cnn_bn", "deep_cnn_bn"])
def test_batch_normalisation_stands_before_each_activation(name):
    layers = list(MODELS[name]((1, 32, 32), seed=0))
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.ReLU):
            norm, linear = layers[place - 1], layers[place - 2]
            assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
            assert isinstance(linear, nn.Linear | nn.Conv2d)
            assert norm.num_features == linear.weight.shape[0]
    assert isinstance(layers[-1], nn.Linear)
    assert len(layers) - len(list(MODELS[name[:-3]]((1, 32, 32), seed=0))) == sum(
        isinstance(layer, nn.ReLU) for layer in layers
    )


def test_a_picture_too_small_for_the_poolings_is_refused():
    with pytest.raises(ValueError, match=r"5 poolings .* shape \(1, 28, 28\)"):
        models.deep_cnn((1, 28, 28), seed=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_alone_decides_the_weights(name):
    shape = (1, 32, 32)
    first = _weights(MODELS[name](shape, seed=3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        torch.rand(5)
        again = _weights(MODELS[name](shape=shape, seed=3))
    assert torch.equal(first, again)
    drawn = first != _weights(MODELS[name](shape, seed=4))
    constant = sum(
        part.weight.numel() + part.bias.numel()  # which start from one and zero
        for part in MODELS[name](shape, seed=3).modules()
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)
    )
    assert (~drawn).sum() - constant < 0.01 * len(first)


def test_the_weights_are_torchs_own_for_the_seed():
    model = mlp((5,), classes=2, hidden=(), seed=7)
    generator = torch.Generator().manual_seed(7)
    bound = 1 / math.sqrt(5)  # what torch documents for a linear layer with five inputs
    for parameter, shape in zip(model.parameters(), [(2, 5), (2,)], strict=True):
        drawn = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        torch.testing.assert_close(parameter.detach(), drawn)


@pytest.mark.parametrize("name", MODELS)
def test_building_a_model_leaves_the_global_random_state_alone(name):
    before = torch.get_rng_state()
    MODELS[name]((1, 32, 32), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_building_a_model_does_not_seed_the_accelerator(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", calls.append)
    mlp(seed=0)
    assert calls == []


def test_the_global_random_state_is_restored_when_a_constructor_fails():
    before = torch.get_rng_state()

    def broken() -> nn.Module:
        torch.rand(1)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        seeded(broken)(seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_names_of_configurations_lead_to_the_models():
    assert models.MODELS["lenet5"] is lenet5
    assert models.MODELS["mlp"] is mlp
