"""Networks: their sizes, and initial weights that depend on the seed alone."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.vgg import cfgs as vgg_plans
from torchvision.models.vgg import make_layers

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


def _build(name: str, seed: int) -> nn.Module:
    """Build a network of MODELS, the largest of them with fewer maps."""
    narrow = {"width": 1 / 16} if name == "fcn32s" else {}
    shape = (20,) if name == "tagger" else (3, 32, 32)
    return MODELS[name](shape=shape, seed=seed, **narrow)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_alone_decides_the_weights(name):
    first = _weights(_build(name, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        torch.rand(5)
        again = _weights(_build(name, 3))
    assert torch.equal(first, again)
    drawn = first != _weights(_build(name, 4))
    constant = sum(
        part.weight.numel() + part.bias.numel()  # which start from one and zero
        for part in _build(name, 3).modules()
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)
    )
    assert (~drawn).sum() - constant < 0.02 * len(first)  # also biases that start from zero


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
    _build(name, 0)
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


# --- networks for pictures ------------------------------------------------------------------------------------


def test_resnet18_is_that_of_torchvision():
    ours = models.resnet18(classes=100, seed=0)
    with torch.random.fork_rng(devices=[]):
        theirs = torchvision.models.resnet18(num_classes=100)
    theirs.load_state_dict(ours.state_dict())
    assert _parameters(ours) == 11_227_812
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.eval()(pictures), theirs.eval()(pictures))


def test_the_stem_for_small_pictures_keeps_their_size():
    model = MODELS["resnet18_cifar"](classes=10, shape=(3, 32, 32), seed=0)
    assert _parameters(model) == 11_173_962
    seen = []
    model.layer1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    model(torch.zeros(2, 3, 32, 32))
    assert seen == [(2, 64, 32, 32)]
    deviation = model.conv1.weight.std().item()  # He's initialisation for 9 * 64 outputs
    assert deviation == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.1)


def test_other_stems_and_grey_pictures_are_refused():
    with pytest.raises(ValueError, match=r"\"imagenet\" or \"cifar\"; got 'mnist'"):
        models.resnet18(stem="mnist", seed=0)
    for build in (models.resnet18, models.fcn32s):
        with pytest.raises(ValueError, match=r"\(3, height, width\); got \(1, 28, 28\)"):
            build((1, 28, 28), seed=0)


def _fcn(classes: int = 5) -> nn.Module:
    return models.fcn32s(classes=classes, width=1 / 32, seed=0)


@pytest.mark.parametrize("sides", [(32, 32), (64, 96), (50, 37), (1, 33)])
def test_fcn32s_answers_for_each_pixel_and_starts_undecided(sides):
    logits = _fcn().eval()(
        torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(0))
    )
    assert logits.shape == (2, 5, *sides)
    assert not logits.any()


def test_fcn32s_on_vgg16_has_the_parameters_counted_by_hand():
    model = models.fcn32s(width=1 / 16, classes=21, seed=0)
    widths = [(3, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (16, 16), (16, 32)]
    widths += [(32, 32)] * 5
    convolutions = sum(9 * a * b + b for a, b in widths)
    head = 49 * 32 * 256 + 256 + 256 * 256 + 256 + 256 * 21 + 21
    assert _parameters(model) == convolutions + head


def test_fcn32s_interpolates_its_scores_bilinearly():
    model = _fcn().eval()
    scores = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    model.features, model.fc6, model.fc7 = nn.Identity(), nn.Identity(), nn.Identity()
    model.score.forward = lambda _: scores
    large = model(torch.zeros(2, 3, 128, 96))
    theirs = F.interpolate(scores, scale_factor=32, mode="bilinear")
    inside = (..., slice(16, -16), slice(16, -16))  # where no neighbour is missing
    torch.testing.assert_close(large[inside], theirs[inside])


def test_fcn32s_is_the_classifier_whose_weights_it_takes_over():
    model, vgg = _fcn().eval(), nn.Module()
    plan = [entry if entry == "M" else entry // 32 for entry in vgg_plans["D"]]
    with torch.random.fork_rng(devices=[]):
        vgg.features = make_layers(plan)
        vgg.classifier = nn.Sequential(
            nn.Linear(16 * 49, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 128), nn.ReLU()
        )
    model.load_vgg16(vgg.eval())
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    answers = []
    model.score.register_forward_hook(lambda _, inputs, __: answers.append(inputs[0]))
    model(pictures)
    theirs = vgg.classifier(vgg.features(pictures).flatten(1))
    assert theirs.count_nonzero() > 20
    torch.testing.assert_close(answers[0][:, :, 3, 3], theirs)


def test_trained_weights_are_refused_for_another_width():
    with pytest.raises(ValueError, match=r"for width 1 only; got 0\.5"):
        models.fcn32s(width=0.5, pretrained=True, seed=0)


def test_espcn_is_convolutions_tanh_and_a_shuffle_as_written_down():
    model = models.espcn(seed=0)
    assert _parameters(model) == 75 * 64 + 64 + 576 * 32 + 32 + 288 * 48 + 48
    x = small = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    w = {name.removeprefix("layers."): p for name, p in model.named_parameters()}
    for name, border in (("0", 2), ("2", 1), ("4", 1)):
        x = torch.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=border)
        x = x if name == "4" else x.tanh()
    large = torch.zeros(2, 3, 20, 28)
    for channel in range(3):
        for i in range(4):
            for j in range(4):
                large[:, channel, i::4, j::4] = x[:, 16 * channel + 4 * i + j]
    torch.testing.assert_close(model(small), large)
    skipping = models.espcn(skip=True, seed=0)
    bicubic = F.interpolate(small, scale_factor=4, mode="bicubic")
    torch.testing.assert_close(skipping(small), large + bicubic)


# --- residual networks for CIFAR --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "number"),  # the paper: 0.27, 0.85 and 1.7 million; counted by hand below
    [(20, 269_722), (56, 853_018), (110, 1_727_962)],
)
@pytest.mark.parametrize("skips", ["", "_noskip"])
def test_residual_networks_have_the_parameters_and_layers_of_the_paper(
    depth, number, skips
):
    model, n = MODELS[f"resnet{depth}{skips}"]((3, 32, 32), seed=0), (depth - 2) // 6
    counted = 27 * 16 + 2 * 16 + 650
    inputs = 16
    for maps in (16, 32, 64):
        convolutions = 9 * maps * (inputs + (2 * n - 1) * maps)
        counted, inputs = counted + convolutions + 2 * n * 2 * maps, maps
    assert _parameters(model) == number == counted
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_resnet20_is_convolutions_and_skips_as_written_down():
    model = models.cifar_resnet((3, 16, 16), classes=4, seed=0)
    x = pictures = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model.train()(pictures)  # so that the running statistics are not those of the start
    model.eval()

    def norm(x, layer):
        mean, variance = (v[:, None, None] for v in (layer.running_mean, layer.running_var))
        return (x - mean) / (variance + layer.eps).sqrt()  # scale one, shift zero

    x = norm(torch.conv2d(x, model[0].weight, padding=1), model[1]).clamp(min=0)
    sides = [x.shape[-1]]
    for place in range(3, 12):
        block, stride = model[place], 2 if place in (6, 9) else 1
        y = torch.conv2d(x, block.conv1.weight, padding=1, stride=stride)
        y = norm(y, block.norm1).clamp(min=0)
        y = norm(torch.conv2d(y, block.conv2.weight, padding=1), block.norm2)
        skip = torch.zeros_like(y)
        skip[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
        x = (y + skip).clamp(min=0)
        sides.append(x.shape[-1])
    assert sides == [16] * 4 + [8] * 3 + [4] * 3
    logits = x.mean((2, 3)) @ model[-1].weight.T + model[-1].bias
    torch.testing.assert_close(model(pictures), logits, rtol=1e-4, atol=1e-4)


def test_without_skips_a_block_that_gives_nothing_blocks():
    pictures = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for skips in (True, False):
        model = models.cifar_resnet((3, 8, 8), depth=8, skips=skips, seed=0).eval()
        nn.init.zeros_(model[4].norm2.weight)
        outputs.append(model(pictures))
    assert outputs[0].any()
    assert not outputs[1].any()


def test_the_weights_of_residual_networks_are_those_of_he():
    weight = models.cifar_resnet(depth=110, seed=0)[-4].conv2.weight  # 64 maps of 3 x 3
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("depth", [2, 18, 21, -4])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=rf"depth must be 6 n \+ 2, .*; got {depth}"):
        models.cifar_resnet(depth=depth, seed=0)


def test_pictures_without_channels_are_refused():
    with pytest.raises(ValueError, match=r"\(channels, height, width\); got \(32, 32\)"):
        models.cifar_resnet((32, 32), seed=0)
