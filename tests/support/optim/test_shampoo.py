"""Shampoo against Algorithms 1 and 2 of Gupta, Koren, Singer (2018), written out with explicit matrix roots."""

import copy
import io
import math

import numpy as np
import pytest
import torch

from support.optim import Shampoo

STEPS = 50
SHAPES = [(), (1,), (5,), (4, 3), (3, 1), (1, 4), (2, 3, 4), (3, 1, 2), (2, 3, 2, 2)]
PRODUCTS = {
    1: "a,ai->i",
    2: "ab,ai,bj->ij",
    3: "abc,ai,bj,ck->ijk",
    4: "abcd,ai,bj,ck,dl->ijkl",
}


def power(H, exponent):
    values, vectors = np.linalg.eigh(H.numpy())
    return torch.from_numpy((vectors * values**exponent) @ vectors.T)


def gram(G, mode):
    unfolded = G.movedim(mode, 0).reshape(G.shape[mode], -1)
    return unfolded @ unfolded.T


def reference(
    start,
    gradients,
    lr,
    eps=1e-4,
    momentum=0.0,
    weight_decay=0.0,
    interval=1,
    graft=None,
):
    """Positions of one tensor after every step; gradients are functions of the position."""
    x = start.clone()
    k = max(x.ndim, 1)
    H = [eps * torch.eye(d, dtype=x.dtype) for d in x.reshape(x.shape or (1,)).shape]
    squares, b, roots, path = torch.zeros_like(x), torch.zeros_like(x), [], []
    for t, gradient in enumerate(gradients):
        G = gradient(x) + weight_decay * x
        tensor = G.reshape(G.shape or (1,))
        H = [H[i] + gram(tensor, i) for i in range(k)]
        if t % interval == 0:
            roots = [power(M, -1 / (2 * k)) for M in H]
        U = torch.einsum(PRODUCTS[k], tensor, *roots).reshape(G.shape)
        squares = squares + G**2
        if graft == "sgd":
            U = U * G.norm() / U.norm()
        if graft == "adagrad":
            U = U * (G / (squares.sqrt() + 1e-10)).norm() / U.norm()
        b = momentum * b + U
        x = x - lr * b
        path.append(x)
    return path


def problem(shape, steps=STEPS, seed=0):
    """A start and noisy gradients that depend on the position, so that an early error is seen later."""
    draw = torch.Generator().manual_seed(seed)
    start = torch.randn(shape, generator=draw, dtype=torch.float64)
    noise = torch.randn((steps, *shape), generator=draw, dtype=torch.float64)
    return start, [lambda x, e=e: torch.sin(x) + e for e in noise]


def run(optimizer, parameters, gradients):
    """Positions of all parameters after every step."""
    path = []
    for step in zip(*gradients, strict=True):
        for p, gradient in zip(parameters, step, strict=True):
            p.grad = gradient(p.detach())
        optimizer.step()
        path.append([p.detach().clone() for p in parameters])
    return path


def parameters_of(problems):
    return [torch.nn.Parameter(start.clone()) for start, _ in problems]


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.3},
        {"lr": 0.1, "eps": 1e-2, "momentum": 0.9, "weight_decay": 0.05},
        # a stale root meets gradients in its null space, where an eigenvalue eps has the error 1e-16 |H|
        {"lr": 0.1, "interval": 7, "weight_decay": 0.01, "eps": 0.1},
        {"lr": 0.05, "graft": "sgd", "momentum": 0.5},
        {"lr": 0.1, "graft": "adagrad", "interval": 4, "weight_decay": 0.1, "eps": 0.1},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_fifty_steps_equal_the_explicit_matrix_roots(shape, settings):
    start, gradients = problem(shape)
    (p,) = parameters_of([(start, gradients)])
    path = run(Shampoo([p], **settings), [p], [gradients])
    for (actual,), expected in zip(
        path, reference(start, gradients, **settings), strict=True
    ):
        close(actual, expected)


def test_groups_have_their_own_hyper_parameters_and_equal_shapes_their_own_statistics():
    shapes = [(4, 3), (4, 3), (5,), (2, 3, 4), ()]
    own = [
        {"lr": 0.2},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-2},
        {"lr": 0.1, "interval": 3},
        {"lr": 0.1, "graft": "sgd"},
    ]
    problems = [problem(shape, seed=i) for i, shape in enumerate(shapes)]
    parameters = parameters_of(problems)
    groups = [{"params": [p], **s} for p, s in zip(parameters, own, strict=True)]
    path = run(Shampoo(groups), parameters, [gradients for _, gradients in problems])
    expected = [
        reference(start, gradients, **s)
        for (start, gradients), s in zip(problems, own, strict=True)
    ]
    for actual, *wanted in zip(path, *expected, strict=True):
        close(actual, wanted)


@pytest.mark.parametrize("shape", [(4, 3), (3, 5)], ids=str)
def test_a_step_of_a_matrix_is_algorithm_1_with_scipys_matrix_power(shape):
    fractional = pytest.importorskip("scipy.linalg").fractional_matrix_power
    start, (gradient, *_) = problem(shape)
    (p,) = parameters_of([(start, None)])
    run(Shampoo([p], lr=0.1, eps=0.01), [p], [[gradient]])
    G = gradient(start).numpy()
    L = 0.01 * np.eye(shape[0]) + G @ G.T
    R = 0.01 * np.eye(shape[1]) + G.T @ G
    update = fractional(L, -1 / 4) @ G @ fractional(R, -1 / 4)
    close(p.detach(), start - 0.1 * torch.from_numpy(update))


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_the_exponents_of_all_modes_add_up_to_minus_a_half(order):
    """On a diagonal tensor the first update is then the sign; with -1/k instead of -1/(2k) it were 1/g."""
    values = torch.tensor([-3.0, 0.5, 20.0], dtype=torch.float64)
    g, wanted = values[1], torch.tensor(1.0, dtype=torch.float64)
    if order == 1:  # H = eps I + g g^T has the one root |g| along g
        g, wanted = values, values / values.norm()
    if order > 1:
        g = torch.zeros([3] * order, dtype=torch.float64)
        wanted = torch.zeros_like(g)
        for i, value in enumerate(values):
            g[(i,) * order] = value
            wanted[(i,) * order] = value.sign()
    p = torch.nn.Parameter(torch.zeros_like(g))
    p.grad = g.clone()
    Shampoo([p], lr=1.0, eps=1e-8).step()
    close(-p.detach(), wanted, 1e-6)


def test_the_first_update_of_a_matrix_has_all_singular_values_near_lr():
    draw = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
    p.grad = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    g = p.grad.clone()
    Shampoo([p], lr=0.25, eps=1e-8).step()
    values = torch.linalg.svdvals(p.detach())
    close(values, torch.full_like(values, 0.25), 1e-6)
    # and the singular vectors are those of the gradient: the update is its polar factor
    left, _, right = torch.linalg.svd(g, full_matrices=False)
    close(p.detach(), -0.25 * left @ right, 1e-6)


def test_roots_are_stale_between_their_renewals_but_statistics_are_not():
    draw = torch.Generator().manual_seed(0)
    G = torch.randn(4, 4, 3, generator=draw, dtype=torch.float64)
    p = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    optimizer = Shampoo([p], lr=1.0, eps=1e-3, interval=3)
    updates = []
    for g in G:
        before = p.detach().clone()
        p.grad = g.clone()
        optimizer.step()
        updates.append(before - p.detach())

    def update(g, seen):
        L = 1e-3 * torch.eye(4, dtype=g.dtype) + sum(s @ s.T for s in seen)
        R = 1e-3 * torch.eye(3, dtype=g.dtype) + sum(s.T @ s for s in seen)
        return power(L, -1 / 4) @ g @ power(R, -1 / 4)

    for g, actual, renewed in zip(G, updates, [1, 1, 1, 4], strict=True):
        close(actual, update(g, G[:renewed]))


def test_a_block_as_large_as_the_tensor_changes_nothing():
    problems = [problem(shape, seed=i) for i, shape in enumerate(SHAPES)]
    gradients = [g for _, g in problems]
    one, other = parameters_of(problems), parameters_of(problems)
    close(
        run(Shampoo(one, lr=0.1, block=5, momentum=0.9), one, gradients),
        run(Shampoo(other, lr=0.1, momentum=0.9), other, gradients),
    )


@pytest.mark.parametrize(
    ("shape", "block"), [((10,), 4), ((10, 3), 4), ((7, 9), 5), ((5, 2, 4), 2)], ids=str
)
def test_blocks_are_tensors_of_their_own(shape, block):
    settings = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.5, "interval": 3}
    start, gradients = problem(shape)

    def cut(tensor):
        pieces = [tensor]
        for mode in range(len(shape)):
            pieces = [part for piece in pieces for part in piece.split(block, mode)]
        return pieces

    (whole,) = parameters_of([(start, None)])
    path = run(Shampoo([whole], block=block, **settings), [whole], [gradients])
    pieces = [torch.nn.Parameter(piece.clone()) for piece in cut(start)]
    optimizer = Shampoo(pieces, **settings)
    for (actual,), gradient in zip(path, gradients, strict=True):
        for p, value in zip(pieces, cut(gradient(stitch(whole, pieces, cut))), strict=True):
            p.grad = value.clone()
        optimizer.step()
        close(actual, stitch(whole, pieces, cut))


def stitch(whole, pieces, cut):
    out = torch.empty_like(whole)
    for place, piece in zip(cut(out), pieces, strict=True):
        place.copy_(piece.detach())
    return out.detach()


@pytest.mark.parametrize("block", [1024, 3])
@pytest.mark.parametrize("graft", ["sgd", "adagrad"])
def test_grafting_gives_the_whole_tensors_update_the_norm_of_the_graft(graft, block):
    start, gradients = problem((7, 4), steps=5)
    grafted, plain = parameters_of([(start, None), (start, None)])
    optimizers = [
        Shampoo([grafted], lr=1.0, graft=graft, block=block, weight_decay=0.1),
        Shampoo([plain], lr=1.0, block=block, weight_decay=0.1),
    ]
    total = torch.zeros_like(start)
    for gradient in gradients:
        x = grafted.detach().clone()
        with torch.no_grad():
            plain.copy_(x)
        for p, optimizer in zip([grafted, plain], optimizers, strict=True):
            p.grad = gradient(x)
            optimizer.step()
        g = gradient(x) + 0.1 * x
        total += g**2
        wanted = g if graft == "sgd" else g / (total.sqrt() + 1e-10)
        update, direction = x - grafted.detach(), x - plain.detach()
        close(update.norm(), wanted.norm())
        close(update / update.norm(), direction / direction.norm())


@pytest.mark.parametrize("graft", [None, "sgd", "adagrad"])
def test_a_zero_gradient_leaves_everything_where_it_is(graft):
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in [(), (3,), (2, 3)]]
    optimizer = Shampoo(parameters, lr=0.1, graft=graft)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    for _ in range(3):
        optimizer.step()
    for p in parameters:
        assert torch.equal(p.detach(), torch.ones_like(p))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fifty_steps_equal_pytorch_optimizer(weight_decay):
    """Their ``preconditioning_compute_steps=1``, ``matrix_eps`` = our eps, ``weight_decouple=False``.

    Without momentum, where the conventions differ: theirs mixes the last preconditioned gradient into the
    gradient before the statistics are taken. Theirs does not precondition scalars and renews the roots at steps
    T, 2T, ... (zero roots before that), ours at 1, 1 + T, ...; their versions before 4.0 have exponent -1/k.
    """
    theirs = pytest.importorskip("pytorch_optimizer").Shampoo
    shapes = [(1,), (5,), (4, 3), (3, 1), (2, 3, 4), (2, 3, 2, 2)]
    problems = [problem(shape, seed=i) for i, shape in enumerate(shapes)]
    gradients = [g for _, g in problems]
    one, other = parameters_of(problems), parameters_of(problems)
    settings = {"lr": 0.1, "weight_decay": weight_decay}
    peer = theirs(other, matrix_eps=1e-4, preconditioning_compute_steps=1, **settings)
    close(
        run(Shampoo(one, eps=1e-4, **settings), one, gradients),
        run(peer, other, gradients),
    )


def test_a_failed_eigendecomposition_is_tried_again_in_float64(monkeypatch):
    start, gradients = problem((4, 3), steps=6)
    eigh, refused = torch.linalg.eigh, []

    def fails_in_float32(matrix, *args, **kwargs):
        if matrix.dtype != torch.float64:
            refused.append(matrix.dtype)
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return eigh(matrix, *args, **kwargs)

    monkeypatch.setattr(torch.linalg, "eigh", fails_in_float32)
    p = torch.nn.Parameter(start.float())
    optimizer = Shampoo([p], lr=0.1)
    path = run(optimizer, [p], [[lambda x, f=f: f(x).float() for f in gradients]])
    assert refused
    assert p.dtype == torch.float32
    assert all(
        v.dtype == torch.float32
        for v in optimizer.state[p].values()
        if torch.is_tensor(v) and v.ndim > 0
    )
    for (actual,), expected in zip(path, reference(start, gradients, lr=0.1), strict=True):
        close(actual, expected.float(), 1e-5)


def test_an_eigendecomposition_that_fails_in_float64_too_is_an_error(monkeypatch):
    def fails(matrix, *args, **kwargs):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    p = torch.nn.Parameter(torch.ones(3, 2))
    p.grad = torch.ones(3, 2)
    optimizer = Shampoo([p], lr=0.1)
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(torch.linalg.LinAlgError):
        optimizer.step()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (2, 3, 2)], ids=str)
def test_a_gradient_that_is_not_finite_makes_its_tensor_nan_and_no_other(bad, dtype, shape):
    hit, spared = (torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for _ in range(2))
    hit.grad, spared.grad = torch.ones_like(hit), torch.ones_like(spared)
    hit.grad.view(-1)[0] = bad
    optimizer = Shampoo([hit, spared], lr=0.1)
    optimizer.step()
    optimizer.step()
    # NaN spreads over every entry: each root mixes them
    assert hit.isnan().all()
    assert spared.isfinite().all()
    assert not torch.equal(spared.detach(), torch.ones_like(spared))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_restart_within_an_interval_gives_the_same_path_to_the_bit(cut, dtype):
    settings = {"lr": 0.1, "momentum": 0.9, "interval": 4, "graft": "adagrad", "block": 3}
    problems = [problem(s, steps=9, seed=i) for i, s in enumerate([(4, 3), (5,), ()])]
    gradients = [[lambda x, f=f: f(x).to(dtype) for f in g] for _, g in problems]
    whole = [torch.nn.Parameter(start.to(dtype, copy=True)) for start, _ in problems]
    path = run(Shampoo(whole, **settings), whole, gradients)

    first = [torch.nn.Parameter(start.to(dtype, copy=True)) for start, _ in problems]
    optimizer = Shampoo(first, **settings)
    run(optimizer, first, [g[:cut] for g in gradients])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    resumed = Shampoo(second, lr=1.0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    rest = run(resumed, second, [g[cut:] for g in gradients])
    for actual, expected in zip(rest, path[cut:], strict=True):
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_a_deep_copy_goes_the_same_way_on_its_own():
    start, gradients = problem((4, 3), steps=6)
    (p,) = parameters_of([(start, None)])
    optimizer = Shampoo([p], lr=0.1, momentum=0.9, interval=2)
    run(optimizer, [p], [gradients[:3]])
    q, twin = copy.deepcopy((p, optimizer))
    path = run(twin, [q], [gradients[3:]])
    close(run(optimizer, [p], [gradients[3:]]), path, 0.0)


def test_bfloat16_parameters_are_stepped_in_float32_and_rounded_once():
    start, gradients = problem((4, 3), steps=1)
    p = torch.nn.Parameter(start.bfloat16())
    g = gradients[0](start).bfloat16()
    expected = reference(p.detach().double(), [lambda x: g.double()], lr=0.1)[0]
    optimizer = Shampoo([p], lr=0.1)
    p.grad = g.clone()
    optimizer.step()
    assert torch.equal(p.detach(), expected.bfloat16())
    tensors = [v for v in optimizer.state[p].values() if torch.is_tensor(v)]
    assert all(v.dtype == torch.float32 for v in tensors if v.is_floating_point())


def test_gradients_are_left_as_they_are_and_missing_ones_skipped():
    settings = {"lr": 0.1, "weight_decay": 0.5, "momentum": 0.9, "graft": "sgd"}
    stepped, skipped = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    stepped.grad = torch.full((2, 3), 2.0)
    optimizer = Shampoo([stepped, skipped], **settings)
    optimizer.step()
    assert torch.equal(stepped.grad, torch.full((2, 3), 2.0))
    assert torch.equal(skipped.detach(), torch.ones(2, 3))


def test_a_tensor_that_joins_within_an_interval_starts_with_its_own_root():
    start, gradients = problem((4, 3), steps=3)
    early, late = parameters_of([(start, None), (start, None)])
    optimizer = Shampoo([early, late], lr=0.1, interval=5)
    early.grad = gradients[0](start)
    optimizer.step()
    late.grad = gradients[1](start)
    early.grad = None
    optimizer.step()
    (expected,) = reference(start, [gradients[1]], lr=0.1)
    close(late.detach(), expected)


def test_a_closure_gives_the_loss_and_the_gradient():
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))

    def closure():
        p.grad = None
        loss = (p**2).sum() / 2
        loss.backward()
        return loss

    assert Shampoo([p], lr=0.5, eps=1e-14).step(closure).item() == 12.5
    close(p.detach(), torch.tensor([2.7, 3.6], dtype=torch.float64), 1e-9)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lr", -1.0),
        ("eps", 0.0),
        ("eps", -1e-3),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -0.1),
        ("interval", 0),
        ("interval", 1.5),
        ("block", 0),
        ("graft", "adam"),
    ],
)
def test_a_bad_argument_is_refused_by_name_and_value(argument, value):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=rf"{argument}.*{value}"):
        Shampoo([p], **{argument: value})
    with pytest.raises(ValueError, match=rf"{argument}.*{value}"):
        Shampoo([{"params": [p], argument: value}])
    optimizer = Shampoo([p])
    with pytest.raises(ValueError, match=rf"{argument}.*{value}"):
        optimizer.add_param_group(
            {"params": [torch.nn.Parameter(p.clone())], argument: value}
        )


def test_sparse_gradients_and_complex_parameters_are_refused():
    p = torch.nn.Parameter(torch.ones(3, 2))
    p.grad = torch.eye(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        Shampoo([p]).step()
    with pytest.raises(ValueError, match="complex"):
        Shampoo([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))])
