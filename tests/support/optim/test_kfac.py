"""K-FAC on Linear layers against dense Gauss-Newton matrices and Kronecker products, and as an optimizer."""

import copy
import gc
import io
import math
import pickle
import weakref

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
    normal,
    optimizer_factors,
    targets_for,
    type_2_factors,
)
from torch import nn

from support.optim import KFAC


def mlp(seed=0):
    return build(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), seed=seed)


def linear_net(bias=True):
    widths = [(4, 3), (3, 5), (5, 2)]
    return build(*(nn.Linear(i, o, bias=bias) for i, o in widths))


def layers_of(model):
    return [m for m in model.modules() if getattr(m, "weight", None) is not None]


def train(model, optimizer, batches, loss="cross-entropy"):
    """Positions of all parameters after every step."""
    path = []
    for x, y in batches:
        optimizer.zero_grad()
        backward(model, loss, y, x)
        optimizer.step()
        path.append([p.detach().clone() for p in model.parameters()])
    return path


def batches_for(loss, steps, n=6, inputs=4, outputs=3):
    return [
        (normal(n, inputs, seed=10 + t), targets_for(loss, (n, outputs), seed=50 + t))
        for t in range(steps)
    ]


def same(path, other):
    assert len(path) == len(other)
    for ours, theirs in zip(path, other, strict=True):
        for p, q in zip(ours, theirs, strict=True):
            assert torch.equal(p, q)


# The factors


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [1, 7])
def test_type_2_is_the_dense_block_of_deep_linear_nets_with_square_loss(n, bias):
    model, x, y = linear_net(bias), normal(n, 4), normal(n, 2, seed=1)
    twin = copy.deepcopy(model)
    optimizer = optimizer_factors(model, "mse", y, x, fisher="type-2")
    for layer, own in zip(layers_of(model), layers_of(twin), strict=True):
        A, G = factors(optimizer, layer.weight)
        assert A.shape == (1, *[layer.in_features + bias] * 2)
        assert G.shape == (1, *[layer.out_features] * 2)
        close(torch.kron(A[0], G[0]), dense_ggn(twin, own, "mse", y, x))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("loss", LOSSES)
def test_type_2_is_the_dense_block_of_any_net_on_one_datum(loss, activation):
    model = build(
        nn.Linear(4, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 3)
    )
    x, y = normal(1, 4), targets_for(loss, (1, 3))
    twin = copy.deepcopy(model)
    optimizer = optimizer_factors(model, loss, y, x, fisher="type-2")
    for layer, own in zip(layers_of(model), layers_of(twin), strict=True):
        A, G = factors(optimizer, layer.weight)
        close(torch.kron(A[0], G[0]), dense_ggn(twin, own, loss, y, x))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
@pytest.mark.parametrize("positions", [(), (3,), (2, 3)])
def test_factors_of_a_batch_are_averages_of_per_example_products(
    positions, fisher, sharing, loss
):
    """With extra dimensions between the batch and the features, averaged before the last layer."""
    model = nn.Sequential(
        build(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh()),
        Average(),
        build(nn.Linear(4, 3), seed=1),
    )
    x, y = normal(5, *positions, 4), targets_for(loss, (5, 3))
    twin = copy.deepcopy(model)
    optimizer = optimizer_factors(model, loss, y, x, fisher=fisher, sharing=sharing)
    reference = type_2_factors if fisher == "type-2" else empirical_factors
    for layer, own in zip(layers_of(model), layers_of(twin), strict=True):
        close(
            factors(optimizer, layer.weight),
            reference(twin, own, loss, y, x, sharing=sharing),
        )


class Average(nn.Module):
    def forward(self, x):
        return x.flatten(1, -2).mean(1) if x.ndim > 2 else x


class ClassesFirst(nn.Module):
    def forward(self, x):
        return x.movedim(-1, 1)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
def test_outputs_with_positions_count_every_term_of_the_mean_loss(fisher, sharing):
    """A classifier of tokens: (N, C, T) with N T terms. Positions mix on the way, so that a row has many terms."""
    model = nn.Sequential(
        build(nn.Linear(4, 5), nn.Tanh()),
        Mix(),
        build(nn.Linear(5, 3), seed=1),
        ClassesFirst(),
    )
    x, y = normal(3, 2, 4), targets_for("cross-entropy", (3, 3, 2))
    twin = copy.deepcopy(model)
    optimizer = optimizer_factors(
        model, "cross-entropy", y, x, fisher=fisher, sharing=sharing
    )
    reference = type_2_factors if fisher == "type-2" else empirical_factors
    for layer, own in zip(layers_of(model), layers_of(twin), strict=True):
        close(
            factors(optimizer, layer.weight),
            reference(twin, own, "cross-entropy", y, x, sharing=sharing),
        )


class Mix(nn.Module):
    def forward(self, x):
        return x.cumsum(1)


def test_type_2_of_square_loss_counts_all_outputs_of_an_example():
    model = nn.Sequential(build(nn.Linear(4, 5), nn.Tanh()), Mix(), build(nn.Linear(5, 3)))
    x, y = normal(3, 2, 4), normal(3, 2, 3, seed=1)
    twin = copy.deepcopy(model)
    optimizer = optimizer_factors(model, "mse", y, x, fisher="type-2")
    for layer, own in zip(layers_of(model), layers_of(twin), strict=True):
        close(
            factors(optimizer, layer.weight), type_2_factors(twin, own, "mse", y, x), 1e-10
        )


@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
def test_square_loss_takes_outputs_without_a_second_dimension(fisher):
    """A regression that squeezes its output is the same as one that does not."""
    results = []
    for layers in ([], [nn.Flatten(0)]):
        model = build(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        model.extend(layers)
        x, y = normal(6, 4), normal(6, 1, seed=1)
        y = y.flatten() if layers else y
        optimizer = optimizer_factors(model, "mse", y, x, fisher=fisher)
        results.append([factors(optimizer, m.weight) for m in layers_of(model)])
    close(*results, 1e-14)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
def test_factors_do_not_scale_with_the_batch(fisher, loss):
    model, twin = mlp(), mlp()
    x, y = normal(5, 4), targets_for(loss, (5, 3))
    one = optimizer_factors(model, loss, y, x, fisher=fisher)
    two = optimizer_factors(
        twin, loss, torch.cat([y, y, y]), torch.cat([x, x, x]), fisher=fisher
    )
    for layer, other in zip(layers_of(model), layers_of(twin), strict=True):
        close(factors(one, layer.weight), factors(two, other.weight), 1e-13)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_input_factors_do_not_scale_with_the_positions(sharing):
    results = []
    for times in (1, 4):
        model = nn.Sequential(build(nn.Linear(4, 5)), Average(), build(nn.Linear(5, 3)))
        x, y = normal(5, 2, 4).repeat(1, times, 1), targets_for("mse", (5, 3))
        optimizer = optimizer_factors(model, "mse", y, x, fisher="type-2", sharing=sharing)
        results.append(factors(optimizer, layers_of(model)[0].weight)[0])
    close(*results, 1e-13)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_sampled_factors_tend_to_type_2_at_the_monte_carlo_rate(loss, seed):
    """One datum copied n times gives the mean of n samples. Root mean square over 40 weights' entries and 30 draws.

    Four times the samples must halve the error; the ratio of two such averages scatters by less than 15 %.
    """
    x, y = normal(1, 4, seed=seed), targets_for(loss, (1, 3))
    exact = mlp(seed)
    wanted = factors(
        optimizer_factors(exact, loss, y, x, fisher="type-2"), exact[0].weight
    )[1]
    errors = {}
    for n in (25, 100, 400):
        model = mlp(seed)
        optimizer = KFAC(model, lr=0.0, loss=loss, decay=0.0, seed=seed)
        draws = []
        for _ in range(60):
            backward(model, loss, y.expand(n, *y.shape[1:]), x.expand(n, -1))
            optimizer.step()
            draws.append(factors(optimizer, model[0].weight)[1].clone())
        draws = torch.stack(draws)
        errors[n] = (draws - wanted).square().sum((1, 2, 3)).mean().sqrt().item()
        # and the mean of all is the exact one, within five standard errors
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((draws.mean(0) - wanted).abs() <= 5 * error + 1e-12).all()
    assert errors[25] / errors[100] == pytest.approx(2, rel=0.3)
    assert errors[100] / errors[400] == pytest.approx(2, rel=0.3)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_forward_pass_draws_fresh_labels_from_the_seed(loss):
    def draws(seed):
        model = mlp()
        before = torch.get_rng_state()
        optimizer = KFAC(model, lr=0.0, loss=loss, decay=0.0, seed=seed)
        x, y = normal(40, 4), targets_for(loss, (40, 3))
        seen = []
        for _ in range(2):
            backward(model, loss, y, x)
            optimizer.step()
            seen.append(factors(optimizer, model[0].weight)[1].clone())
        assert torch.equal(
            torch.get_rng_state(), before
        )  # the global generator is left alone
        return seen

    first, second = draws(0)
    assert not torch.allclose(first, second)
    assert torch.equal(first, draws(0)[0])
    assert not torch.allclose(first, draws(1)[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_sampled_labels_are_the_models_and_not_the_given_ones(loss):
    seen = []
    for label in (0, 2):
        model, x = mlp(), normal(5, 4)
        y = torch.full((5,), label) if loss == "cross-entropy" else normal(5, 3) + label
        optimizer = optimizer_factors(model, loss, y, x, seed=3)
        seen.append(factors(optimizer, model[0].weight)[1])
    assert torch.equal(*seen)


@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_equal_curvlinops(sharing, loss, fisher):
    """Their Kronecker product as a dense matrix, weight and bias joint (``separate_weight_and_bias=False``).

    Their parameters are vectorised row by row with the bias at the end, ours column by column. Their empirical
    Fisher of the square loss is that of sqrt(C) times the loss, so that it is C times ours.
    """
    curvlinops = pytest.importorskip("curvlinops")
    model = nn.Sequential(
        build(nn.Linear(4, 5), nn.Tanh()), Average(), build(nn.Linear(5, 3), seed=1)
    )
    twin, x, y = copy.deepcopy(model), normal(6, 2, 4), targets_for(loss, (6, 3))
    optimizer = optimizer_factors(model, loss, y, x, fisher=fisher, sharing=sharing)
    peer = curvlinops.KFACLinearOperator(
        twin,
        {"cross-entropy": nn.CrossEntropyLoss(), "mse": nn.MSELoss()}[loss],
        list(twin.parameters()),
        [(x, y)],
        fisher_type=fisher,
        kfac_approx=sharing,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    total = sum(p.numel() for p in twin.parameters())
    theirs = peer @ torch.eye(total, dtype=torch.float64)
    start = 0
    for layer in layers_of(model):
        A, G = factors(optimizer, layer.weight)
        out, columns = len(G[0]), len(A[0])
        K = torch.kron(A[0], G[0]).reshape(columns, out, columns, out)
        K = K.permute(1, 0, 3, 2)  # (out, in) twice
        size, end = out * (columns - 1), out * columns
        order = torch.arange(end).reshape(out, columns)
        order = torch.cat([order[:, :-1].flatten(), order[:, -1]])
        ours = K.reshape(end, end)[order][:, order]
        factor = 3 if (loss, fisher) == ("mse", "empirical") else 1
        close(factor * ours, theirs[start : start + end, start : start + end], 1e-13)
        start += end
        assert size + out == end


@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
def test_an_activation_in_place_changes_nothing(activation, fisher):
    results = []
    for inplace in (False, True):
        model = build(
            nn.Linear(4, 5),
            activation(inplace=inplace),
            nn.Linear(5, 4),
            activation(inplace=inplace),
            nn.Linear(4, 3),
        )
        x, y = normal(6, 4), targets_for("cross-entropy", (6, 3))
        optimizer = KFAC(model, lr=0.1, fisher=fisher)
        path = train(model, optimizer, [(x, y)] * 3)
        results.append(([factors(optimizer, m.weight) for m in layers_of(model)], path[-1]))
    close(*results, 1e-14)


@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
def test_output_and_gradients_are_the_same_with_and_without_the_hooks(fisher):
    plain, hooked = mlp(), mlp()
    optimizer = KFAC(hooked, lr=0.1, fisher=fisher)
    x, y = normal(6, 4), targets_for("cross-entropy", (6, 3))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for model, given in zip([plain, hooked], inputs, strict=True):
        F.cross_entropy(model(given), y).backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    for p, q in zip(plain.parameters(), hooked.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    optimizer.step()  # it has seen the pass


# The step


def explicit_step(model, A, G, damping, weight_decay):
    """Solve (A + pi sqrt(l) I) (x) (G + sqrt(l)/pi I) vec(U) = vec([V v]) for each Linear layer."""
    directions = []
    for layer, a, g in zip(layers_of(model), A, G, strict=True):
        V = torch.cat(
            [
                layer.weight.grad + weight_decay * layer.weight.detach(),
                (layer.bias.grad + weight_decay * layer.bias.detach())[:, None],
            ],
            1,
        )
        pi = math.sqrt(a.trace() / len(a) / (g.trace() / len(g)))
        dense = torch.kron(
            a + pi * math.sqrt(damping) * torch.eye(len(a), dtype=a.dtype),
            g + math.sqrt(damping) / pi * torch.eye(len(g), dtype=g.dtype),
        )
        u = torch.linalg.solve(dense, V.T.flatten())
        directions.append((V, u.reshape(V.T.shape).T))
    return directions


@pytest.mark.parametrize("damping", [1e-1, 1e-3])
@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_step_solves_the_damped_kronecker_system(loss, fisher, damping):
    model, x, y = mlp(), normal(6, 4), targets_for(loss, (6, 3))
    optimizer = KFAC(
        model, lr=0.5, damping=damping, loss=loss, fisher=fisher, weight_decay=0.1
    )
    backward(model, loss, y, x)
    before = copy.deepcopy(model)
    for p, q in zip(before.parameters(), model.parameters(), strict=True):
        p.grad = q.grad.clone()
    optimizer.step()
    A, G = zip(*(factors(optimizer, m.weight) for m in layers_of(model)), strict=True)
    expected = explicit_step(before, [a[0] for a in A], [g[0] for g in G], damping, 0.1)
    for layer, old, (_, U) in zip(
        layers_of(model), layers_of(before), expected, strict=True
    ):
        close((old.weight - layer.weight).detach() / 0.5, U[:, :-1])
        close((old.bias - layer.bias).detach() / 0.5, U[:, -1])
        assert torch.equal(layer.weight.grad, old.weight.grad)


def test_the_trace_splits_the_damping_so_that_scaling_the_input_back_changes_nothing():
    """x -> s x, W -> W / s with l -> l: A scales by s^2, and so must its share of the damping."""
    updates = []
    for s in (1.0, 100.0):
        model = build(nn.Linear(4, 3, bias=False))
        with torch.no_grad():
            model[0].weight.div_(s)
        before = model[0].weight.detach().clone()
        optimizer = KFAC(model, lr=1.0, loss="mse", fisher="type-2", damping=1e-2 * s**2)
        backward(model, "mse", normal(6, 3, seed=1), s * normal(6, 4))
        optimizer.step()
        updates.append(s * (before - model[0].weight.detach()))
    close(*updates)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.05, "damping": 1e-2},
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "damping": 1e-2},
        {"lr": 0.1, "factor_interval": 2, "inverse_interval": 3, "decay": 0.7},
        {"lr": 0.1, "factor_interval": 5, "inverse_interval": 2, "momentum": 0.5},
        {"lr": 0.5, "norm_constraint": 1e-2, "momentum": 0.9, "decay": 0.0},
    ],
    ids=lambda s: "-".join(s),
)
def test_fifty_steps_equal_the_algorithm_written_out(settings, fisher, loss):
    """Factors by per-example Jacobians, dense Kronecker solves; T = 10 is the default."""
    lr, damping = settings["lr"], settings.get("damping", 1e-1)
    S, T = settings.get("factor_interval", 1), settings.get("inverse_interval", 10)
    mu, wd = settings.get("momentum", 0.0), settings.get("weight_decay", 0.0)
    decay, kappa = settings.get("decay", 0.95), settings.get("norm_constraint")
    batches = batches_for(loss, 50)
    model, twin = mlp(), mlp()
    optimizer = KFAC(model, loss=loss, fisher=fisher, **{"damping": damping, **settings})
    path = train(model, optimizer, batches, loss)

    reference = type_2_factors if fisher == "type-2" else empirical_factors
    layers = layers_of(twin)
    averages, used, b = {}, {}, {m: 0 for m in layers}
    for t, (x, y) in enumerate(batches):
        twin.zero_grad()
        backward(twin, loss, y, x)
        if t % S == 0:
            k = t // S + 1
            epsilon = min(1 - 1 / k, decay)
            for m in layers:
                new = [factor[0] for factor in reference(twin, m, loss, y, x)]
                averages[m] = [
                    epsilon * old + (1 - epsilon) * n
                    for old, n in zip(averages.get(m, new), new, strict=True)
                ]
        if t % T == 0:
            used = dict(averages)
        A, G = zip(*(used[m] for m in layers), strict=True)
        solved = explicit_step(twin, A, G, damping, wd)
        nu = 1.0
        if kappa:
            product = sum((U * V).sum() for V, U in solved)
            nu = min(1.0, math.sqrt(kappa / (lr**2 * product)))
        with torch.no_grad():
            for m, (_, U) in zip(layers, solved, strict=True):
                b[m] = mu * b[m] + nu * U
                m.weight -= lr * b[m][:, :-1]
                m.bias -= lr * b[m][:, -1]
        close(path[t], [p.detach() for p in twin.parameters()], 1e-12)


def test_the_norm_constraint_scales_all_layers_by_one_factor():
    steps = []
    for kappa in (None, 1e-6, 1e6):
        model, x, y = mlp(), normal(6, 4), targets_for("mse", (6, 3))
        start = [p.detach().clone() for p in model.parameters()]
        optimizer = KFAC(model, lr=0.3, loss="mse", fisher="type-2", norm_constraint=kappa)
        backward(model, "mse", y, x)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        optimizer.step()
        moved = [s - p.detach() for s, p in zip(start, model.parameters(), strict=True)]
        steps.append(torch.cat([m.flatten() for m in moved]))
    free, held, loose = steps
    assert torch.equal(free, loose)
    close(held / held.norm(), free / free.norm())
    # lr^2 U F U = kappa with F the damped matrix: lr U . V lr = kappa
    factor = held.norm() / free.norm()
    close(factor**2 * 0.3 * (free @ gradient), torch.tensor(1e-6, dtype=torch.float64))


def test_groups_have_their_own_step_and_only_given_parameters_move():
    model, x, y = mlp(), normal(6, 4), targets_for("mse", (6, 3))
    first, second = layers_of(model)
    start = copy.deepcopy(model)
    optimizer = KFAC(
        model,
        lr=0.1,
        loss="mse",
        fisher="type-2",
        params=[{"params": list(first.parameters()), "lr": 0.3}],
    )
    backward(model, "mse", y, x)
    optimizer.step()
    assert torch.equal(second.weight, start[2].weight)

    other = mlp()
    optimizer = KFAC(
        other,
        lr=0.1,
        loss="mse",
        fisher="type-2",
        params=[
            {"params": list(other[0].parameters())},
            {"params": list(other[2].parameters()), "lr": 0.2},
        ],
    )
    backward(other, "mse", y, x)
    optimizer.step()
    close(
        (start[0].weight - first.weight).detach(),
        3 * (start[0].weight - other[0].weight).detach(),
    )
    assert not torch.equal(other[2].weight, start[2].weight)


def test_a_change_of_lr_by_a_scheduler_takes_effect():
    model, twin = mlp(), mlp()
    optimizer, other = KFAC(model, lr=0.1), KFAC(twin, lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    (batch,) = batches_for("cross-entropy", 1)
    same(train(model, optimizer, [batch]), train(twin, other, [batch]))
    scheduler.step()
    ((one, *_),) = train(model, optimizer, [batch])
    old = twin[0].weight.detach().clone()
    ((two, *_),) = train(twin, other, [batch])
    close(2 * (one - old), two - old)


def test_a_closure_gives_the_same_step_and_its_loss():
    model, twin = mlp(), mlp()
    batches = batches_for("cross-entropy", 5)
    optimizer, other = KFAC(model, lr=0.1), KFAC(twin, lr=0.1)
    path = train(model, optimizer, batches)
    for (x, y), expected in zip(batches, path, strict=True):

        def closure(x=x, y=y):
            other.zero_grad()
            return backward(twin, "cross-entropy", y, x)

        before = F.cross_entropy(copy.deepcopy(twin)(x), y)
        assert torch.equal(other.step(closure), before)
        same([[p.detach() for p in twin.parameters()]], [expected])


@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
def test_accumulated_batches_count_as_one(fisher):
    whole, parts = mlp(), mlp()
    x, y = normal(6, 4), targets_for("cross-entropy", (6, 3))
    optimizer, other = (KFAC(m, lr=0.1, fisher=fisher) for m in (whole, parts))
    backward(whole, "cross-entropy", y, x)
    optimizer.step()
    for half in (slice(0, 3), slice(3, 6)):
        # the mean over six is half the sum of the means over three
        (F.cross_entropy(parts(x[half]), y[half]) / 2).backward()
    if fisher == "type-2":  # the empirical one sees the scaled gradient
        other.step()
        close(
            [p.detach() for p in parts.parameters()],
            [p.detach() for p in whole.parameters()],
        )
    close([p.grad for p in parts.parameters()], [p.grad for p in whole.parameters()], 1e-13)


# Hooks


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
def test_evaluation_without_gradients_between_steps_disturbs_nothing(fisher, mode):
    batches = batches_for("cross-entropy", 6)
    model, twin = mlp(), mlp()
    path = train(model, KFAC(model, lr=0.1, fisher=fisher, inverse_interval=2), batches)
    optimizer = KFAC(twin, lr=0.1, fisher=fisher, inverse_interval=2)
    for (x, y), expected in zip(batches, path, strict=True):
        with mode():
            twin(normal(50, 4))
        optimizer.zero_grad()
        loss = F.cross_entropy(twin(x), y)
        with mode():
            twin(normal(50, 4))
        loss.backward()
        with mode():
            twin(normal(50, 4))
        optimizer.step()
        same([[p.detach() for p in twin.parameters()]], [expected])


def test_a_pass_that_no_loss_follows_does_not_rescale_the_gradients_of_one_that_has():
    """Fifty other examples between forward and backward; what enters G is still M times each gradient."""
    x, y = normal(5, 4), targets_for("cross-entropy", (5, 3))
    sizes = []
    for others in (5, 50):
        model = mlp()
        optimizer = KFAC(model, lr=0.0, fisher="empirical")
        loss = F.cross_entropy(model(x), y)
        model(normal(others, 4, seed=3))
        loss.backward()
        optimizer.step()
        sizes.append(factors(optimizer, model[0].weight)[1])
    close(*sizes)


def test_a_step_without_a_forward_pass_is_an_error_when_factors_are_due():
    model = mlp()
    optimizer = KFAC(model, lr=0.1, factor_interval=2)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="forward"):
        optimizer.step()
    train(model, optimizer, batches_for("cross-entropy", 1))
    optimizer.step()  # the second: factors are not due
    with pytest.raises(RuntimeError, match="forward"):
        optimizer.step()
    # and the error has spoiled nothing
    train(model, optimizer, batches_for("cross-entropy", 3))


def test_a_forward_pass_without_gradients_does_not_count_as_one():
    model = mlp()
    optimizer = KFAC(model, lr=0.1)
    with torch.no_grad():
        model(normal(3, 4))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="forward"):
        optimizer.step()


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_a_deep_copy_of_the_model_alone_carries_no_live_hook(fisher):
    batches = batches_for("cross-entropy", 6)
    model, twin = mlp(), mlp()
    path = train(model, KFAC(model, lr=0.1, fisher=fisher), batches)
    optimizer = KFAC(twin, lr=0.1, fisher=fisher)
    for (x, y), expected in zip(batches, path, strict=True):
        snapshot = copy.deepcopy(twin)
        optimizer.zero_grad()
        loss = F.cross_entropy(twin(x), y)
        F.cross_entropy(snapshot(normal(50, 4)), torch.zeros(50, dtype=int)).backward()
        loss.backward()
        optimizer.step()
        same([[p.detach() for p in twin.parameters()]], [expected])
    snapshot = copy.deepcopy(twin)
    backward(snapshot, "cross-entropy", y, x)
    with pytest.raises(RuntimeError, match="forward"):
        optimizer.step()


def test_a_copy_of_the_model_can_have_an_optimizer_of_its_own():
    batches = batches_for("cross-entropy", 4)
    model = mlp()
    optimizer = KFAC(model, lr=0.1)
    twin = copy.deepcopy(model)
    same(train(model, optimizer, batches), train(twin, KFAC(twin, lr=0.1), batches))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_model_and_optimizer_copied_together_go_on_by_themselves(fisher, way):
    batches = batches_for("cross-entropy", 8)
    model = mlp()
    settings = {"momentum": 0.9, "factor_interval": 2, "inverse_interval": 3}
    optimizer = KFAC(model, lr=0.1, fisher=fisher, **settings)
    train(model, optimizer, batches[:4])
    pair = (model, optimizer)
    twin, other = (
        copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    )
    copied = train(twin, other, batches[4:])
    here = [p.detach().clone() for p in model.parameters()]
    assert not torch.equal(here[0], twin[0].weight)  # the copy alone has moved
    same(train(model, optimizer, batches[4:]), copied)


def test_a_model_with_an_optimizer_can_be_saved_whole():
    model = mlp()
    optimizer = KFAC(model, lr=0.1)
    train(model, optimizer, batches_for("cross-entropy", 2))
    loaded = pickle.loads(pickle.dumps(model))
    x = normal(5, 4)
    assert torch.equal(loaded(x), model(x))


def test_an_optimizer_that_is_gone_leaves_the_model_free():
    model, plain = mlp(), mlp()
    optimizer = KFAC(model, lr=0.1)
    train(model, optimizer, batches_for("cross-entropy", 1))
    model.load_state_dict(plain.state_dict())
    model.zero_grad()
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None  # the model does not keep it
    x, y = normal(5, 4), targets_for("cross-entropy", (5, 3))
    for m in (model, plain):
        backward(m, "cross-entropy", y, x)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


# State


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 6])
def test_a_restart_gives_the_same_path_to_the_bit(cut, fisher, dtype):
    settings = {"momentum": 0.9, "factor_interval": 2, "inverse_interval": 3, "rows": 4}
    batches = [(x.to(dtype), y) for x, y in batches_for("cross-entropy", 9)]
    model = mlp().to(dtype)
    path = train(model, KFAC(model, lr=0.1, fisher=fisher, seed=5, **settings), batches)

    first = mlp().to(dtype)
    optimizer = KFAC(first, lr=0.1, fisher=fisher, seed=5, **settings)
    train(first, optimizer, batches[:cut])
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second = mlp(seed=9).to(dtype)
    second.load_state_dict(weights)
    resumed = KFAC(second, lr=1.0, seed=77)
    resumed.load_state_dict(state)
    same(train(second, resumed, batches[cut:]), path[cut:])
    # and what is loaded is a copy
    train(first, optimizer, batches[cut : cut + 1])
    same([[p.detach() for p in second.parameters()]], path[-1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
@pytest.mark.parametrize("loss", LOSSES)
def test_models_of_lower_precision_learn_with_a_state_in_float32(loss, fisher, dtype):
    model = mlp().to(dtype)
    x = normal(64, 4).to(dtype)
    teacher = x.float() @ normal(4, 3, seed=3).float()
    y = teacher.argmax(1) if loss == "cross-entropy" else teacher.to(dtype)
    optimizer = KFAC(model, lr=0.1, damping=1e-2, loss=loss, fisher=fisher, momentum=0.5)
    start = LOSSES[loss](model(x), y).item()
    train(model, optimizer, [(x, y)] * 20, loss)
    assert LOSSES[loss](model(x), y).item() < start / 2
    for p in model.parameters():
        assert p.dtype == dtype
        tensors = [v for v in optimizer.state[p].values() if torch.is_tensor(v)]
        assert all(v.dtype == torch.float32 for v in tensors if v.is_floating_point())


@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
def test_a_gradient_that_is_not_finite_gives_nan_and_no_exception(fisher):
    model = mlp()
    optimizer = KFAC(model, lr=0.1, fisher=fisher)
    x, y = normal(5, 4), targets_for("cross-entropy", (5, 3))
    train(model, optimizer, [(x, y)])
    x[0, 0] = math.nan
    train(model, optimizer, [(x, y)] * 12)
    assert model[0].weight.isnan().all()


@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_diverges_raises_nothing(dtype, fisher):
    """Rounding errors of factors that have grown are larger than any damping."""
    model = build(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 3)).to(dtype)
    optimizer = KFAC(model, lr=1e3, loss="mse", fisher=fisher, inverse_interval=1)
    x, y = normal(5, 30).to(dtype), normal(5, 3, seed=1).to(dtype)
    train(model, optimizer, [(x, y)] * 40, "mse")


# Parameters of other layers


def mixed():
    return nn.Sequential(
        nn.Embedding(7, 4),
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).double()


def tokens(steps):
    draw = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(7, (6, 2), generator=draw),
            torch.randint(3, (6,), generator=draw),
        )
        for _ in range(steps)
    ]


UNKNOWN = ["0.weight", "3.weight", "3.bias"]


def test_parameters_of_unknown_layers_are_named_in_one_warning():
    with pytest.warns(UserWarning, match=r"3\.bias") as caught:
        optimizer = KFAC(mixed(), lr=0.1)
    (warning,) = caught
    assert all(name in str(warning.message) for name in UNKNOWN)
    assert "2.weight" not in str(warning.message)
    assert list(optimizer.unknown) == UNKNOWN


def test_they_can_be_ignored_or_refused(recwarn):
    assert list(KFAC(mixed(), lr=0.1, unknown="ignore").unknown) == UNKNOWN
    assert not [w for w in recwarn if w.category is UserWarning]
    with pytest.raises(ValueError, match=r"0\.weight.*3\.weight.*3\.bias"):
        KFAC(mixed(), lr=0.1, unknown="raise")
    assert not list(KFAC(mlp(), lr=0.1, unknown="raise").unknown)


@pytest.mark.parametrize("kappa", [None, 1e-4])
def test_parameters_of_unknown_layers_are_stepped_by_sgd_exactly(kappa):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    torch.manual_seed(0)
    model = mixed()
    optimizer = KFAC(model, unknown="ignore", norm_constraint=kappa, **settings)
    unknown = [model.get_parameter(name) for name in UNKNOWN]
    clones = [nn.Parameter(p.detach().clone()) for p in unknown]
    sgd = torch.optim.SGD(clones, **settings)
    for x, y in tokens(12):
        optimizer.zero_grad()
        backward(model, "cross-entropy", y, x)
        for p, clone in zip(unknown, clones, strict=True):
            clone.grad = p.grad.clone()
        optimizer.step()
        sgd.step()
        for p, clone in zip(unknown, clones, strict=True):
            assert torch.equal(p, clone)


def test_a_frozen_layer_stays_and_the_others_move():
    model = build(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    for frozen in (model[0], model[2]):
        frozen.requires_grad_(False)
    model[2].weight.requires_grad_(True)  # the bias alone is frozen here
    before = copy.deepcopy(model)
    optimizer = KFAC(model, lr=0.1, fisher="type-2", unknown="ignore")
    train(model, optimizer, batches_for("cross-entropy", 3))
    assert torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[2].bias, before[2].bias)
    for index in (2, 4):
        assert not torch.equal(model[index].weight, before[index].weight)


@pytest.mark.parametrize("way", ["no known layer", "frozen", "not given"])
@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
def test_without_a_known_layer_to_step_the_rest_still_takes_its_steps_of_sgd(fisher, way):
    model = mixed()
    if way == "no known layer":
        model = nn.Sequential(model[0], nn.Flatten(), nn.BatchNorm1d(8)).double()
    elif way == "frozen":
        model[2].requires_grad_(False)
        model[5].requires_grad_(False)
    rest = list(model[0].parameters())
    optimizer = KFAC(
        model,
        lr=0.1,
        fisher=fisher,
        unknown="ignore",
        params=rest if way == "not given" else None,
    )
    x, y = tokens(1)[0]
    backward(model, "cross-entropy", y, x)
    expected = rest[0] - 0.1 * rest[0].grad
    optimizer.step()
    close(rest[0].detach(), expected.detach(), 1e-15)


@pytest.mark.parametrize("way", ["frozen later", "under no_grad"])
@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
def test_a_layer_whose_output_needs_no_gradient_is_left_alone(fisher, way):
    model = Backbone(frozen=way == "under no_grad")
    optimizer = KFAC(model, lr=0.1, fisher=fisher)
    if way == "frozen later":
        model.backbone.requires_grad_(False)
    before = copy.deepcopy(model)
    train(model, optimizer, batches_for("cross-entropy", 3))
    assert torch.equal(model.backbone.weight, before.backbone.weight)
    assert not torch.equal(model.head.weight, before.head.weight)


class Backbone(nn.Module):
    def __init__(self, frozen):
        super().__init__()
        self.frozen = frozen
        self.backbone, _, self.head = mlp()

    def forward(self, x):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = self.backbone(x)
        return self.head(x)


def test_a_layer_that_joins_within_an_interval_is_preconditioned_from_its_first_step():
    """Not by a step of SGD until the next inverses are due."""
    model, twin = Forked(), Forked()
    twin.late = True
    x, y = normal(6, 4), targets_for("cross-entropy", (6, 3))
    settings = {"lr": 0.1, "fisher": "empirical", "damping": 0.1}
    optimizer = KFAC(model, **settings)
    backward(model, "cross-entropy", y, x)
    optimizer.step()
    model.load_state_dict(twin.state_dict())
    model.late = True
    for m, o in [(model, optimizer), (twin, KFAC(twin, **settings))]:
        o.zero_grad()
        backward(m, "cross-entropy", y, x)
        o.step()
    close(model.unused.weight.detach(), twin.unused.weight.detach())


def test_a_layer_that_the_loss_does_not_use_is_skipped():
    model = Forked()
    before = copy.deepcopy(model)
    optimizer = KFAC(model, lr=0.1)
    train(model, optimizer, batches_for("cross-entropy", 3))
    assert torch.equal(model.unused.weight, before.unused.weight)
    assert not torch.equal(model.used.weight, before.used.weight)


class Forked(nn.Module):
    def __init__(self):
        super().__init__()
        self.late = False
        self.used = build(nn.Linear(4, 3))[0]
        self.unused = build(nn.Linear(4, 3))[0]

    def forward(self, x):
        other = self.unused(x)
        return self.used(x) + (other if self.late else 0)


# Sub-sampling of rows


def draws_of(model, loss, y, *inputs, rows, weight, draws=400, **settings):
    optimizer = KFAC(
        model, lr=0.0, loss=loss, fisher="type-2", decay=0.0, rows=rows, **settings
    )
    seen = []
    for _ in range(draws):
        optimizer.zero_grad()
        backward(model, loss, y, *inputs)
        optimizer.step()
        seen.append([factor.clone() for factor in factors(optimizer, weight)])
    return [torch.stack(part) for part in zip(*seen, strict=True)]


@pytest.mark.parametrize("positions", [(), (3,)])
def test_factors_from_some_rows_are_unbiased(positions):
    model = nn.Sequential(
        build(nn.Linear(4, 5), nn.Tanh()), Average(), build(nn.Linear(5, 3), seed=1)
    )
    x, y = normal(12, *positions, 4), targets_for("mse", (12, 3))
    twin = copy.deepcopy(model)
    exact = type_2_factors(twin, twin[0][0], "mse", y, x)
    for drawn, wanted in zip(
        draws_of(model, "mse", y, x, rows=5, weight=model[0][0].weight), exact, strict=True
    ):
        error = drawn.std(0) / math.sqrt(len(drawn))
        assert error.max() > 1e-4  # it does draw
        assert ((drawn.mean(0) - wanted).abs() <= 5 * error + 1e-12).all()


def test_at_most_so_many_rows_enter_the_factors():
    model = build(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3))
    x, y = normal(40, 30), targets_for("cross-entropy", (40, 3))
    optimizer = optimizer_factors(model, "cross-entropy", y, x, rows=8)
    A, G = factors(optimizer, model[0].weight)
    assert torch.linalg.matrix_rank(A[0], hermitian=True) <= 8
    assert torch.linalg.matrix_rank(G[0], hermitian=True) <= 8


@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
def test_more_rows_than_there_are_means_all(fisher):
    results = []
    for rows in (None, 6, 1000):
        model = mlp()
        optimizer = KFAC(model, lr=0.1, fisher=fisher, rows=rows)
        results.append(train(model, optimizer, batches_for("cross-entropy", 3))[-1])
    close(results[0], results[1], 1e-13)
    close(results[0], results[2], 1e-13)


# Bad arguments


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lr", -1.0),
        ("damping", -1e-3),
        ("loss", "hinge"),
        ("fisher", "exact"),
        ("sharing", "none"),
        ("momentum", 1.0),
        ("weight_decay", -0.1),
        ("decay", 1.0),
        ("decay", -0.1),
        ("factor_interval", 0),
        ("inverse_interval", 0),
        ("norm_constraint", 0.0),
        ("rows", 0),
        ("unknown", "sgd"),
    ],
)
def test_a_bad_argument_is_refused_by_name_and_value(argument, value):
    with pytest.raises(ValueError, match=rf"{argument}.*{value}"):
        KFAC(mlp(), **{"lr": 0.1, argument: value})


@pytest.mark.parametrize(
    ("argument", "value"), [("lr", -1.0), ("momentum", 1.0), ("weight_decay", -0.1)]
)
def test_a_bad_value_in_a_group_is_refused_too(argument, value):
    model = mlp()
    with pytest.raises(ValueError, match=rf"{argument}.*{value}"):
        KFAC(model, lr=0.1, params=[{"params": list(model.parameters()), argument: value}])
