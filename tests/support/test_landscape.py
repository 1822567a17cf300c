"""Slices of the loss, its Hessian and its rise in a ball, beside formulas and dense matrices in float64."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from support import landscape, models, training
from support.data import Batches
from support.landscape import points
from support.optim import SAM
from support.tasks import Task, classification

pytestmark = pytest.mark.usefixtures("untouched_random_state")
SQUARES = Task(F.mse_loss)


@pytest.fixture(autouse=True)
def _doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def examples(shape=(2, 3), number=22, size=8, seed=0, **how):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(number, *shape, generator=generator)
    targets = torch.randint(3, (number,), generator=generator)
    return Batches(TensorDataset(inputs, targets), size, **how)


def mlp(**more):
    return models.mlp((2, 3), classes=3, hidden=(5, 4), seed=1, **more)


class Odd(nn.Module):
    """Transposed convolution, normalisations of layers and groups, a frozen part, a layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3, 4).requires_grad_(False)
        self.twice = nn.Linear(4, 4)
        self.norm = nn.LayerNorm((2, 4))
        self.up = nn.ConvTranspose1d(2, 3, 2, bias=False)
        self.groups = nn.GroupNorm(3, 3)
        self.side = nn.Conv1d(2, 3, 3)

    def forward(self, x):
        y = self.norm(self.twice(self.twice(self.frozen(x)).tanh()).tanh())
        return self.groups(self.up(y)).mean(2) + self.side(x).mean(2)


def fresh(build, *sizes, **how):
    """Build a layer without the global random state."""
    return models.seeded(build)(*sizes, **how, seed=3)


odd = partial(fresh, Odd)


def residual(skips=True):
    return models.cifar_resnet((1, 8, 8), classes=3, depth=8, skips=skips, seed=2)


def trained_statistics(model, shape):
    """Let batch normalisation see some pictures, so that its statistics are not those of the start."""
    model.train()(torch.randn(20, *shape, generator=torch.Generator().manual_seed(5)) + 0.3)
    return model


NETWORKS = {
    "mlp": (mlp, (2, 3)),
    "mlp_bn": (partial(mlp, batchnorm=True), (2, 3)),
    "odd": (odd, (2, 3)),
    "residual": (residual, (1, 8, 8)),
}


def network(name):
    build, shape = NETWORKS[name]
    return trained_statistics(build(), shape), examples(shape)


def moved(model, found, coordinates):
    """Return a copy of the network at a point."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in other.named_parameters():
            for coordinate, direction in zip(coordinates, found, strict=True):
                if name in direction:
                    value += coordinate * direction[name]
    return other


def state(model, batches):
    """Return all that must stay as it was."""
    none = [float(value.grad is None) for value in model.parameters()]
    modes = [float(part.training) for part in model.modules()]
    return copy.deepcopy(model.state_dict()), none, modes, batches.state_dict()


def assert_unchanged(model, batches, before):
    for ours, theirs in zip(state(model, batches), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# --- directions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp_bn", "residual", "odd"])
def test_filters_have_the_norms_of_the_network_and_biases_stay_still(name):
    model, _ = network(name)
    for direction in landscape.directions(model, 3, seed=0):
        for place, layer in model.named_modules():
            own = {
                n: p for n, p in layer.named_parameters(recurse=False) if p.requires_grad
            }
            for part, value in own.items():
                d = direction[f"{place}.{part}"]
                assert d.shape == value.shape
                if part == "bias" or "Norm" in type(layer).__name__:
                    assert not d.any()
                    continue
                if isinstance(layer, nn.ConvTranspose1d):
                    d, value = d.transpose(0, 1), value.transpose(0, 1)
                for filters in zip(d, value, strict=True):
                    ours, theirs = (part.square().sum().sqrt().item() for part in filters)
                    assert ours == pytest.approx(theirs, rel=1e-12)
    if name == "odd":
        assert "frozen.weight" not in direction


def test_layers_and_nothing_are_the_other_ways_to_normalise():
    model = mlp()
    plain = landscape.directions(model, seed=0, normalise="none")[0]
    layer = landscape.directions(model, seed=0, normalise="layer")[0]
    for name, value in model.named_parameters():
        assert plain[name].any()
        if value.dim() == 1:
            assert not layer[name].any()
        else:
            factor = layer[name] / plain[name]
            torch.testing.assert_close(factor, factor[:1, :1].expand_as(factor))
            torch.testing.assert_close(layer[name].norm(), value.detach().norm())
    assert not torch.equal(plain["1.weight"], model[1].weight)


def test_the_seed_alone_decides_the_directions_and_they_differ():
    model = mlp()
    first, second = landscape.directions(model, seed=4)
    again = landscape.directions(model, seed=4)
    for name in first:
        assert torch.equal(first[name], again[0][name])
    assert not torch.equal(first["1.weight"], second["1.weight"])
    other = landscape.directions(model, seed=5)[0]
    assert not torch.equal(first["1.weight"], other["1.weight"])


def test_a_filter_of_zeros_stays_still():
    model = mlp()
    with torch.no_grad():
        model[1].weight[2] = 0
    direction = landscape.directions(model, 1, seed=0)[0]
    assert not direction["1.weight"][2].any()
    still = landscape.normalised(model, {})
    assert not any(part.any() for part in still.values())


# --- surfaces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("normalise", ["filter", "none"])
def test_on_a_quadratic_model_the_surface_equals_the_formula(together, normalise):
    model = fresh(nn.Linear, 4, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    X, Y = (torch.randn(22, width, generator=generator) for width in (4, 3))
    found = landscape.directions(model, seed=1, normalise=normalise)
    xs, ys = np.linspace(-1, 1, 5), np.linspace(-2, 1, 4)
    values = landscape.surface(
        model,
        Batches(TensorDataset(X, Y), 8),
        found,
        [xs, ys],
        task=SQUARES,
        together=together,
    )
    # L(theta + d) = L + g d + d H d / 2, with the inputs and a one for the bias in the rows of A
    A = torch.cat([X, torch.ones(22, 1)], 1).numpy()

    def joined(parts):
        return torch.cat([parts["weight"], parts["bias"][:, None]], 1).detach().numpy().T

    W, directions = joined(dict(model.named_parameters())), [joined(d) for d in found]
    left = A @ W - Y.numpy()
    for i, a in enumerate(xs):
        for j, b in enumerate(ys):
            d = a * directions[0] + b * directions[1]
            loss = np.sum(left**2) + 2 * np.sum(left * (A @ d)) + np.sum(d * (A.T @ A @ d))
            assert values["loss"][i, j] == pytest.approx(loss / 66, rel=1e-12)


@pytest.mark.parametrize("together", [1, 2, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_value_is_that_of_the_network_at_the_point(name, together):
    model, batches = network(name)
    batches = batches.reseeded(3)
    before = state(model, batches)
    found = landscape.directions(model, 2, seed=0, normalise="none")
    grid = [[-0.5, 0.0, 1.0], [0.0, 0.3]]
    values = landscape.surface(model, batches, found, grid, together=together)
    assert set(values) == {"loss", "accuracy"}
    for i, a in enumerate(grid[0]):
        for j, b in enumerate(grid[1]):
            expected = training.evaluate(
                moved(model, found, (a, b)), examples(batches.shape)
            )
            for metric, value in expected.items():
                assert values[metric][i, j] == pytest.approx(value, rel=1e-12)
    assert_unchanged(model, batches, before)


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("name", ["mlp_bn", "residual"])
def test_statistics_are_estimated_again_at_each_point(name, together):
    model, batches = network(name)
    found = landscape.directions(model, 1, seed=0)
    line = [-0.5, 0.0, 0.4, 1.0]
    how = {"grid": [line], "together": together}
    kept = landscape.surface(model, batches, found, **how)["loss"]
    again = landscape.surface(model, batches, found, statistics="re-estimated", **how)
    assert np.abs(kept - again["loss"]).min() > 1e-4
    for coordinate, ours in zip(line, again["loss"], strict=True):
        other = moved(model, found, (coordinate,))
        inputs = [(batch[0],) for batch in examples(batches.shape)]
        torch.optim.swa_utils.update_bn(inputs, other)
        expected = training.evaluate(other, examples(batches.shape))["loss"]
        assert ours == pytest.approx(expected, rel=1e-12)


def test_the_order_of_the_batches_is_that_of_the_data_whatever_their_seed():
    model, batches = network("mlp_bn")
    found = landscape.directions(model, 1, seed=0)
    ours, theirs = (
        landscape.surface(model, some, found, [[0.0, 1.0]], statistics="re-estimated")
        for some in (batches, batches.reseeded(1))
    )
    assert np.array_equal(ours["loss"], theirs["loss"])


def test_both_treatments_agree_without_batch_normalisation():
    model, batches = network("mlp")
    found = landscape.directions(model, 1, seed=0)
    kept, again = (
        landscape.surface(model, batches, found, [[0.0, 1.0]], statistics=statistics)[
            "loss"
        ]
        for statistics in ("kept", "re-estimated")
    )
    assert np.array_equal(kept, again)


@pytest.mark.parametrize("together", [1, 4])
def test_a_rotated_basis_of_the_plane_gives_the_rotated_surface(together):
    model, batches = network("mlp")
    found = landscape.directions(model, 2, seed=0)
    cos, sin = np.cos(0.7), np.sin(0.7)
    rotated = [
        {name: cos * found[0][name] + sin * found[1][name] for name in found[0]},
        {name: -sin * found[0][name] + cos * found[1][name] for name in found[0]},
    ]
    xs, ys = [-1.0, 0.2, 1.0], [-0.4, 0.7]
    values = landscape.surface(model, batches, rotated, [xs, ys], together=together)["loss"]
    for i, a in enumerate(xs):
        for j, b in enumerate(ys):
            point = [[cos * a - sin * b], [sin * a + cos * b]]
            alone = landscape.surface(model, batches, found, point)["loss"]
            assert values[i, j] == pytest.approx(alone.item(), rel=1e-12)


@pytest.mark.parametrize(("normalise", "equal"), [("filter", True), ("none", False)])
def test_scaling_one_layer_by_c_and_the_next_by_its_inverse_changes_nothing(
    normalise, equal
):
    model, batches = network("mlp")
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[1].weight *= 7
        scaled[1].bias *= 7
        scaled[3].weight /= 7
    grid = [np.linspace(-1, 1, 5)] * 2
    ours, theirs = (
        landscape.surface(
            some, batches, landscape.directions(some, seed=0, normalise=normalise), grid
        )["loss"]
        for some in (model, scaled)
    )
    assert np.allclose(ours, theirs, rtol=1e-12) == equal


def test_a_line_and_a_space_have_as_many_dimensions():
    model, batches = network("mlp")
    found = landscape.directions(model, 3, seed=0)
    line = landscape.surface(model, batches, found[:1], [[0.0, 1.0]])["loss"]
    space = landscape.surface(model, batches, found, [[0.0, 1.0], [0.0], [0.0, 0.5, 1.0]])
    assert line.shape == (2,)
    assert line.dtype == np.float64
    assert space["loss"].shape == (2, 1, 3)
    assert space["loss"][1, 0, 0] == pytest.approx(line[1], rel=1e-12)


def test_layers_that_see_the_data_are_shared_and_no_others():
    def shared(model, shape):
        found = landscape.directions(model, 1, seed=0)
        job = points._Points(model, examples(shape), found, classification, "kept")
        return set(job.shapes) - set(job.moved[True][0])

    assert shared(mlp(), (2, 3)) == {"1.weight", "1.bias"}
    assert shared(residual(), (1, 8, 8)) == {"0.weight"}
    assert shared(odd(), (2, 3)) == {"side.weight", "side.bias"}
    tied = mlp()
    tied.append(fresh(nn.Linear, 3, 5))
    tied[-1].bias = tied[1].bias  # one parameter, two layers
    assert shared(tied, (2, 3)) == set()


class SecondUse(nn.Module):
    """The weights of the first layer are used once more, without a call of the layer."""

    def __init__(self):
        super().__init__()
        self.layer = fresh(nn.Linear, 6, 3)

    def forward(self, x):
        return F.linear(self.layer(x.flatten(1)) @ self.layer.weight, self.layer.weight)


def test_a_layer_whose_weights_are_used_elsewhere_is_not_shared():
    model, batches = SecondUse(), examples()
    found = landscape.directions(model, seed=0)
    ours, expected = (
        landscape.surface(
            model, batches, found, [[0.0, 1.0], [0.5, 2.0]], together=together
        )
        for together in (4, 1)
    )
    assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-12)


# --- the faster way, chosen by measurement -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("together", "pays"), [([0.9, 0.9], True), ([1.1], False), ([0.9, 1.1], False)]
)
def test_points_go_together_if_that_is_faster_on_few_examples_and_on_a_batch(
    monkeypatch, together, pays
):
    model, batches = network("mlp")
    monkeypatch.setattr(points, "WORTH", 2200)
    left = list(together)

    def seconds(self, some, share, batches, times):
        self(some, share, batches)
        return left.pop(0) if share else 1.0

    monkeypatch.setattr(points._Points, "_seconds", seconds)
    sizes = []
    call = points._Points.__call__

    def counted(self, some, share, batches=None):
        sizes.append(len(some))
        return call(self, some, share, batches)

    monkeypatch.setattr(points._Points, "__call__", counted)
    found = landscape.directions(model, seed=0)
    grid = [np.linspace(-1, 1, 10)] * 2
    landscape.surface(model, batches, found, grid)
    assert not left
    rest = sizes[2 * len(together) :]
    assert rest == ([32, 32, 32, 4] if pays else [1] * 100)


def test_the_measurement_is_of_real_batches_and_not_made_for_little_work(monkeypatch):
    model, batches = network("mlp")
    found = landscape.directions(model, seed=0)
    job = points._Points(model, batches, found, classification, "kept")
    monkeypatch.setattr(points, "WORTH", 2200)
    assert job.pays(torch.zeros(100, 2)) in (True, False)
    monkeypatch.setattr(points._Points, "_seconds", None)
    assert not job.pays(torch.zeros(99, 2))


def test_what_vmap_refuses_goes_one_by_one(monkeypatch):
    monkeypatch.setattr(points, "WORTH", 0)

    class Refused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = mlp()[1]

        def forward(self, x):
            y = self.layer(x.flatten(1))
            return y if y.sum().item() > 0 else -y

    model = Refused()
    batches = examples()
    found = landscape.directions(model, seed=0)
    values = landscape.surface(model, batches, found, [np.linspace(-1, 1, 10)] * 2)
    expected = training.evaluate(moved(model, found, (-1.0, 1.0)), batches)["loss"]
    assert values["loss"][0, -1] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(RuntimeError, match="vmap"):
        landscape.surface(model, batches, found, [[0.0], [1.0, 2.0]], together=2)


# --- interruptions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("statistics", ["kept", "re-estimated"])
@pytest.mark.parametrize("together", [1, 5, None])
def test_an_interrupted_surface_goes_on_to_the_same_numbers(
    tmp_path, monkeypatch, together, statistics, dtype
):
    model, batches = network("mlp_bn")
    batches.tensors = (batches.tensors[0].to(dtype), batches.tensors[1])
    model = model.to(dtype)
    found = landscape.directions(model, seed=0)
    grid = [np.linspace(-1, 1, 8), np.linspace(0, 1, 6)]
    if together is None:  # what was chosen stays, whatever a second measurement would say
        monkeypatch.setattr(points._Points, "pays", lambda self, some: True)
    run = partial(
        landscape.surface, model, batches, found, grid,
        statistics=statistics, together=together,
    )  # fmt: skip
    whole = run()
    file = tmp_path / "surface.pt"
    calls, call = [], points._Points.__call__

    def breaks(self, *arguments):
        calls.append(len(arguments[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, *arguments)

    monkeypatch.setattr(points._Points, "__call__", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=file)
    first = calls[0]
    if together is None:
        monkeypatch.setattr(points._Points, "pays", lambda self, some: False)
    resumed = run(checkpoint=file)
    assert sum(calls[2:]) == 48 - first
    for name, values in whole.items():
        assert np.array_equal(values, resumed[name])
    number = len(calls)
    finished = run(checkpoint=file)
    assert len(calls) == number
    assert np.array_equal(finished["loss"], whole["loss"])


def test_a_checkpoint_is_written_on_the_way(tmp_path, monkeypatch):
    model, batches = network("mlp")
    found = landscape.directions(model, 1, seed=0)
    clock = iter(range(100))
    monkeypatch.setattr(points.time, "monotonic", lambda: 0.6 * next(clock))
    written = []
    monkeypatch.setattr(training, "save", lambda path, state: written.append(
        len(state["values"]["loss"])
    ))  # fmt: skip
    line = [[0.0, 1.0, 2.0, 3.0, 4.0]]
    landscape.surface(model, batches, found, line, together=1, checkpoint=tmp_path / "a")
    assert written[-1] == 5
    assert len(written) > 1


@pytest.mark.parametrize("what", ["weights", "grid", "data", "statistics", "directions"])
def test_the_checkpoint_of_another_surface_is_refused(tmp_path, what):
    model, batches = network("mlp_bn")
    file = tmp_path / "surface.pt"
    found, line = landscape.directions(model, 1, seed=0), [0.0, 1.0]
    landscape.surface(model, batches, found, [line], checkpoint=file)
    how = {"statistics": "kept"}
    if what == "weights":
        model[2].running_mean += 1
    elif what == "grid":
        line = [0.0, 2.0]
    elif what == "data":
        batches = examples(seed=1)
    elif what == "statistics":
        how = {"statistics": "re-estimated"}
    else:
        found = landscape.directions(model, 1, seed=1)
    with pytest.raises(ValueError, match=r"must be of this surface; .*surface\.pt is of"):
        landscape.surface(model, batches, found, [line], checkpoint=file, **how)


# --- the path of the training ------------------------------------------------------------------------------------


def path_in_a_plane(model, coordinates):
    """Return states at given coordinates along two orthonormal directions, and these."""
    generator = torch.Generator().manual_seed(0)
    size = sum(value.numel() for value in model.parameters())
    axes = torch.linalg.qr(torch.randn(size, 2, generator=generator))[0].T
    found = [landscape.as_direction(model, axis) for axis in axes]
    return [moved(model, found, pair).state_dict() for pair in coordinates], axes


def test_the_plane_of_a_path_that_lies_in_one_is_found():
    model = mlp(batchnorm=True)
    coordinates = np.array([[9.0, 1.0], [6, -1], [4, 0.5], [1, -0.2], [0, 0]])
    path, axes = path_in_a_plane(model, coordinates)
    plane = landscape.principal_plane(model, path)
    assert plane.distances == pytest.approx(0, abs=1e-12)
    assert plane.shares.sum() == pytest.approx(1)
    ours = torch.stack([landscape.as_vector(model, d) for d in plane.directions])
    torch.testing.assert_close(ours @ ours.T, torch.eye(2))
    torch.testing.assert_close((ours @ axes.T) @ (ours @ axes.T).T, torch.eye(2))
    centred = coordinates - coordinates.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    assert plane.shares == pytest.approx(values[::-1] / values.sum())
    expected = coordinates @ vectors[:, ::-1]
    expected = expected * np.where(expected[0] < 0, -1, 1)
    assert plane.coordinates == pytest.approx(expected, abs=1e-12)
    assert (plane.coordinates[0] >= 0).all()
    assert plane.coordinates[-1] == pytest.approx(0, abs=1e-12)


def test_the_surface_of_the_plane_holds_the_losses_of_the_path():
    model, batches = network("mlp")
    path, _ = path_in_a_plane(model, [[2.0, 1.0], [1, -1], [0.4, 0.5], [0, 0]])
    plane = landscape.principal_plane(model, path)
    for (a, b), one in zip(plane.coordinates, path, strict=True):
        value = landscape.surface(model, batches, plane.directions, [[a], [b]])["loss"]
        other = copy.deepcopy(model)
        other.load_state_dict(one)
        expected = training.evaluate(other, batches)["loss"]
        assert value.item() == pytest.approx(expected, rel=1e-10)


def test_states_beside_the_plane_have_a_distance():
    model = mlp()
    path, axes = path_in_a_plane(model, [[9.0, 1.0], [6, -1], [4, 0.5], [1, -0.2], [0, 0]])
    aside = torch.randn(axes.shape[1], generator=torch.Generator().manual_seed(1))
    aside -= axes.T @ (axes @ aside)
    aside *= 1e-4 / aside.norm()
    path[2] = moved(
        model, [landscape.as_direction(model, 4 * axes[0] + aside)], (1,)
    ).state_dict()
    plane = landscape.principal_plane(model, path)
    assert plane.distances[2] == pytest.approx(1e-4, rel=0.3)
    assert 0 < 1 - plane.shares.sum() < 1e-8


def test_toward_another_state_leads_there():
    model, other = mlp(), models.mlp((2, 3), classes=3, hidden=(5, 4), seed=9)
    batches = examples()
    direction = landscape.toward(model, other.state_dict())
    ends = landscape.surface(model, batches, [direction], [[0.0, 1.0]])["loss"]
    expected = [training.evaluate(some, batches)["loss"] for some in (model, other)]
    assert ends == pytest.approx(expected, rel=1e-12)


# --- curvature --------------------------------------------------------------------------------------------------


def dense_hessian(model, batches, task=classification):
    """Differentiate the loss of all examples at once, entry by entry."""
    model = copy.deepcopy(model).eval()
    inputs, targets = batches.tensors
    parameters = [value for value in model.parameters() if value.requires_grad]
    loss = task.loss(model(inputs), targets)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    rows = []
    for entry in torch.cat([part.flatten() for part in gradient]):
        row = torch.autograd.grad(
            entry, parameters, retain_graph=True, materialize_grads=True
        )
        rows.append(torch.cat([part.flatten() for part in row]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["mlp", "mlp_bn", "odd"])
def test_products_are_those_of_the_dense_hessian(name):
    model, batches = network(name)
    batches = batches.reseeded(3)
    before = state(model, batches)
    H = dense_hessian(model, batches)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        v = torch.randn(len(H), generator=generator)
        product = landscape.hessian_vector_product(model, batches, v)
        torch.testing.assert_close(product, H @ v, rtol=1e-10, atol=1e-12)
    assert_unchanged(model, batches, before)


def test_a_linear_loss_has_no_curvature():
    model, batches = nn.Sequential(nn.Flatten(), fresh(nn.Linear, 6, 3)), examples()
    task = Task(lambda outputs, targets: outputs.mean())
    product = landscape.hessian_vector_product(model, batches, torch.ones(21), task)
    assert not product.any()


@pytest.fixture(scope="module")
def hessian():
    torch.set_default_dtype(torch.float64)
    model, batches = network("mlp_bn")
    found = model, batches, dense_hessian(model, batches)
    torch.set_default_dtype(torch.float32)
    return found


def start(size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_lanczos_finds_the_extreme_eigenvalues_of_a_network(hessian):
    model, batches, H = hessian
    dense = torch.linalg.eigvalsh(H).numpy()
    product = partial(landscape.hessian_vector_product, model, batches)
    ritz = landscape.lanczos(product, start(len(H)), 40)
    assert len(ritz.values) < len(dense)
    assert ritz.values[[0, 1, -2, -1]] == pytest.approx(dense[[0, 1, -2, -1]], abs=1e-6)
    assert abs(dense).max() > 0.1
    for index in (0, -1):
        v = ritz.vector(index)
        assert v.norm().item() == pytest.approx(1)
        residual = (H @ v - ritz.values[index] * v).norm().item()
        assert residual == pytest.approx(ritz.residuals[index], abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 60, "all"])
def test_ritz_values_stay_inside_the_spectrum_and_none_is_double(hessian, steps):
    _, _, H = hessian
    steps = len(H) if steps == "all" else steps
    dense = torch.linalg.eigvalsh(H).numpy()
    ritz = landscape.lanczos(lambda v: H @ v, start(len(H)), steps)
    assert ritz.values.min() >= dense[0] - 1e-12
    assert ritz.values.max() <= dense[-1] + 1e-12
    assert ritz.weights.sum() == pytest.approx(1)
    m = len(ritz.values)
    torch.testing.assert_close(ritz.basis @ ritz.basis.T, torch.eye(m), rtol=0, atol=1e-12)
    for value, residual in zip(ritz.values, ritz.residuals, strict=True):
        assert np.abs(dense - value).min() <= residual + 1e-12
    for value in dense[
        np.abs(dense) > 1e-3
    ]:  # a double one would stand for one of these twice
        assert (np.abs(ritz.values - value) < 1e-9).sum() <= 1


def test_all_steps_find_all_eigenvalues_and_multiple_ones_once():
    values = torch.cat([torch.linspace(-1, 3, 30), torch.full((10,), 2.0), torch.zeros(10)])
    Q = torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(1)))[0]
    A = Q @ torch.diag(values) @ Q.T
    ritz = landscape.lanczos(lambda v: A @ v, start(50), 50)
    assert ritz.values == pytest.approx(np.unique(values.numpy()), abs=1e-6)
    assert len(ritz.values) == 32
    assert ritz.residuals == pytest.approx(0, abs=1e-9)


def test_a_cluttered_spectrum_of_small_curvature_in_single_precision():
    """Where deflation gives double eigenvalues, and values outside the spectrum."""
    values = torch.cat([torch.logspace(-9, -3, 180), torch.tensor([0.5, 1.0, 10.0])])
    Q = torch.linalg.qr(torch.randn(183, 183, generator=torch.Generator().manual_seed(1)))[
        0
    ]
    A = (Q @ torch.diag(values) @ Q.T).float()
    ritz = landscape.lanczos(lambda v: A @ v, start(183).float(), 100)
    assert ritz.values.min() > -1e-5
    assert ritz.values.max() < 10 * (1 + 1e-6)
    assert (ritz.values > 0.1).sum() == 3


def test_the_quadrature_has_the_moments_of_the_hessian(hessian):
    model, batches, H = hessian
    size, generator = len(H), torch.Generator().manual_seed(7)
    found = landscape.spectrum(model, batches, seed=7, steps=6, starts=3)
    assert (np.diff(found.values) >= 0).all()
    vectors = [torch.randn(size, generator=generator) for _ in range(3)]
    for power in range(12):  # Gauss quadrature with 6 nodes is exact up to degree 11
        moments = [v @ torch.linalg.matrix_power(H, power) @ v / (v @ v) for v in vectors]
        ours = (found.weights * found.values**power).sum()
        assert ours == pytest.approx(float(sum(moments) / 3), rel=1e-8)


def test_the_density_is_that_of_the_eigenvalues(hessian):
    model, batches, H = hessian
    found = landscape.spectrum(model, batches, seed=0, steps=40, starts=40)
    dense = torch.linalg.eigvalsh(H).numpy()
    assert found.values[[0, -1]] == pytest.approx(dense[[0, -1]], abs=1e-6)
    width = 0.05
    axis = np.linspace(dense[0] - 1, dense[-1] + 1, 2001)
    density = found.density(axis, width)
    assert np.trapezoid(density, axis) == pytest.approx(1, abs=1e-6)
    expected = np.exp(-(((axis[:, None] - dense) / width) ** 2) / 2).mean(1)
    expected /= width * np.sqrt(2 * np.pi)
    assert np.trapezoid(np.abs(density - expected), axis) < 0.1


def test_the_estimate_of_the_trace_has_the_error_that_it_states(hessian):
    model, batches, H = hessian
    found = landscape.trace(model, batches, seed=0, probes=400)
    exact = torch.trace(H).item()
    off = H - torch.diag(torch.diag(H))
    error = (2 * off.square().sum() / 400).sqrt().item()
    assert found.standard_error == pytest.approx(error, rel=0.15)
    assert abs(found.value - exact) < 3 * found.standard_error
    again = landscape.trace(model, batches, seed=0, probes=400)
    assert again == found
    assert landscape.trace(model, batches, seed=1, probes=2) != found


def test_the_trace_of_a_diagonal_hessian_is_exact():
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, x):
            return self.theta

    task = Task(lambda theta, targets: (torch.tensor([1.0, 2.0, 5.0]) * theta**2).sum())
    found = landscape.trace(Squares(), examples(), seed=0, probes=3, task=task)
    assert found.value == pytest.approx(16)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


# --- sharpness --------------------------------------------------------------------------------------------------


def quadratic():
    """Return a linear model with mean square error: (model, batches, gradient, Hessian)."""
    model = fresh(nn.Linear, 4, 1, bias=False)
    generator = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(22, width, generator=generator) for width in (4, 1))
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 4, generator=generator))
    left = X @ model.weight.detach().T - Y
    return (
        model,
        Batches(TensorDataset(X, Y), 8, seed=2),
        2 * X.T @ left[:, 0] / 22,
        2 * X.T @ X / 22,
    )


@pytest.mark.parametrize("rho", [0.05, 1.0, 30.0])
def test_on_a_quadratic_sharpness_is_what_the_formulas_say(rho):
    model, batches, g, H = quadratic()
    found = landscape.sharpness(model, batches, rho, steps=200, task=SQUARES)
    bar = rho * g / g.norm()
    assert found.loss == pytest.approx(
        training.evaluate(model, examples_of(batches), SQUARES)["loss"]
    )
    assert found.first_order == pytest.approx(
        (g @ bar + bar @ H @ bar / 2).item(), rel=1e-10
    )
    # the largest value on the sphere: (mu - H) e = g with |e| = rho and mu above all eigenvalues
    values, Q = torch.linalg.eigh(H)
    low, high = values[-1].item(), values[-1].item() + g.norm().item() / rho + 1
    for _ in range(200):
        mu = (low + high) / 2
        longer = (Q.T @ g / (mu - values)).norm().item() > rho
        low, high = (mu, high) if longer else (low, mu)
    e = Q @ (Q.T @ g / (high - values))
    best = (g @ e + e @ H @ e / 2).item()
    assert found.ascent == pytest.approx(best, rel=1e-8)
    assert found.ascent >= found.first_order
    assert found.ascent > found.first_order + 1e-6 or rho < 1


def examples_of(batches):
    return Batches(TensorDataset(*batches.tensors), 8)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_first_point_is_that_of_sam(adaptive):
    model, batches = network("mlp_bn")
    before = state(model, batches)
    found = landscape.sharpness(model, batches, 0.1, adaptive=adaptive, steps=0)
    assert found.ascent == found.first_order
    assert_unchanged(model, batches, before)
    model.eval()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1, adaptive=adaptive)
    inputs, targets = batches.tensors
    F.cross_entropy(model(inputs), targets).backward()
    with torch.no_grad():
        for value, step in zip(model.parameters(), optimizer.perturbation(), strict=True):
            value += step
    risen = F.cross_entropy(model(inputs), targets).item()
    assert found.first_order == pytest.approx(risen - found.loss, rel=1e-10)
    assert found.first_order > 1e-3


def test_the_ascent_stays_in_the_ball_and_rises_with_its_steps(monkeypatch):
    from support.landscape import ball

    model, batches = network("mlp")
    theta = landscape.as_vector(model, dict(model.named_parameters()))
    met, gradient = [], ball._gradient

    def noted(model, batches, point, task):
        met.append((point - theta).norm().item())
        return gradient(model, batches, point, task)

    monkeypatch.setattr(ball, "_gradient", noted)
    rises = [landscape.sharpness(model, batches, 2.0, steps=n).ascent for n in (0, 3, 10)]
    assert rises == sorted(rises)
    assert rises[0] < rises[-1]
    assert max(met) <= 2 * (1 + 1e-12)


def test_the_largest_rise_counts_also_where_the_ascent_goes_back():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.t = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.t

    model = Single()
    task = Task(lambda t, targets: (t - 0.9 * t**2).sum())  # the second step returns to 0
    found = landscape.sharpness(model, examples(), 1.0, steps=1, task=task)
    assert found.first_order == pytest.approx(0.1)
    assert found.ascent == found.first_order


def test_at_a_critical_point_nothing_rises_to_first_order():
    model, batches = (
        fresh(nn.Linear, 3, 1, bias=False),
        Batches(TensorDataset(torch.zeros(5, 3), torch.zeros(5, 1)), 5),
    )
    found = landscape.sharpness(model, batches, 0.5, task=SQUARES)
    assert (found.loss, found.first_order, found.ascent) == (0, 0, 0)


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, b, d: landscape.directions(m, 0, seed=0),
            "count must be positive; got 0",
        ),
        (
            lambda m, b, d: landscape.normalised(m, d, "row"),
            'must be "filter", "layer" or "none"; got \'row\'',
        ),
        (
            lambda m, b, d: landscape.normalised(m, {"1.wait": d["1.weight"]}),
            r"direction must name parameters .* got 1\.wait",
        ),
        (
            lambda m, b, d: landscape.normalised(m, {"1.bias": torch.ones(3)}),
            r"direction\['1.bias'\] must have shape \(5,\); got \(3,\)",
        ),
        (lambda m, b, d: landscape.surface(m, b, d, [[0.0]]), "directions must be a list"),
        (lambda m, b, d: landscape.surface(m, b, [], []), "directions must be a list"),
        (
            lambda m, b, d: landscape.surface(m, b, [d], [[0.0], [1.0]]),
            "each of the 1 directions; got 2 entries",
        ),
        (
            lambda m, b, d: landscape.surface(m, b, [d], [[0.0, np.nan]]),
            r"grid\[0\] must be a list of finite coordinates; got \[0.0, nan\]",
        ),
        (lambda m, b, d: landscape.surface(m, b, [d], [[]]), r"grid\[0\] must .* got \[\]"),
        (lambda m, b, d: landscape.surface(m, b, [d], [3.0]), r"grid\[0\] must .* got 3.0"),
        (
            lambda m, b, d: landscape.surface(m, b, [d], [[0.0]], statistics="new"),
            'must be "kept" or "re-estimated"; got \'new\'',
        ),
        (
            lambda m, b, d: landscape.surface(m, b, [d], [[0.0]], together=0),
            "together must be positive or None; got 0",
        ),
        (
            lambda m, b, d: landscape.principal_plane(m, [m.state_dict()] * 2),
            "path must have at least three states; got 2",
        ),
        (
            lambda m, b, d: landscape.principal_plane(
                m, [moved(m, [d], (a,)).state_dict() for a in (0, 1, 2, 5)]
            ),
            "path must span a plane",
        ),
        (
            lambda m, b, d: landscape.toward(m, {"1.bias": torch.zeros(5)}),
            "state must hold every parameter; it lacks 1.weight, 3.weight",
        ),
        (
            lambda m, b, d: landscape.toward(m, m.state_dict() | {"1.bias": torch.ones(1)}),
            r"state\['1.bias'\] must have shape \(5,\); got \(1,\)",
        ),
        (
            lambda m, b, d: landscape.hessian_vector_product(m, b, torch.ones(7)),
            r"vector must have shape \(74,\); got \(7,\)",
        ),
        (
            lambda m, b, d: landscape.as_direction(m, torch.ones(75)),
            r"vector must have shape \(74,\); got \(75,\)",
        ),
        (
            lambda m, b, d: landscape.lanczos(lambda v: v, torch.ones(3), 4),
            "steps must lie between 1 and 3; got 4",
        ),
        (
            lambda m, b, d: landscape.lanczos(lambda v: v, torch.zeros(3), 1),
            "start must be a finite vector other than zero",
        ),
        (
            lambda m, b, d: landscape.lanczos(lambda v: v / 0, torch.ones(3), 2),
            "product must be finite; step 1 gave inf",
        ),
        (lambda m, b, d: landscape.spectrum(m, b, seed=0, starts=0), "starts .*; got 0"),
        (
            lambda m, b, d: landscape.spectrum(m, b, seed=0, steps=2).density([0.0], 0),
            "width must be positive; got 0",
        ),
        (lambda m, b, d: landscape.trace(m, b, seed=0, probes=1), "at least 2; got 1"),
        (lambda m, b, d: landscape.sharpness(m, b, -1.0), r"rho must be .*; got -1.0"),
        (lambda m, b, d: landscape.sharpness(m, b, eta=-1.0), r"eta must be .*; got -1.0"),
        (
            lambda m, b, d: landscape.sharpness(m, b, steps=-1),
            "steps must not be negative; got -1",
        ),
        (
            lambda m, b, d: landscape.directions(m.requires_grad_(False), seed=0),
            "no parameter that requires a gradient",
        ),
    ],
)
def test_errors_name_the_argument_its_value_and_what_would_be_right(call, message):
    model = mlp()
    direction = landscape.directions(model, 1, seed=0)[0]
    with pytest.raises(ValueError, match=message):
        call(model, examples(), direction)
