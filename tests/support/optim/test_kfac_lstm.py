"""K-FAC on nn.LSTM against a cell unrolled with explicit matrices, whose gates have gradients of their own."""

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
    factors,
    generator,
    lstm_factors,
    normal,
    optimizer_factors,
    targets_for,
    unrolled,
)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from support.optim import KFAC

KINDS = {
    "one layer": {},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "both": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True, "bidirectional": True},
}
N, T, INPUTS, HIDDEN = 3, 4, 2, 3


class Reader(nn.Module):
    """Classifies a sequence by the mean of its hidden states and the final states."""

    def __init__(self, **settings):
        super().__init__()
        lstm = nn.LSTM(INPUTS, HIDDEN, **settings)
        self.lstm = build(lstm)[0]
        features = HIDDEN * (2 if lstm.bidirectional else 1)
        states = features * lstm.num_layers
        self.head = build(nn.Linear(features + 2 * states, 3), seed=1)[0]

    def forward(self, x, state=None, lengths=None):
        """``x`` is (N, T, d), whatever the layer's layout."""
        lstm, n = self.lstm, len(x)
        if not lstm.batch_first:
            x = x.transpose(0, 1)
        if lengths is not None:
            x = pack_padded_sequence(
                x, lengths, batch_first=lstm.batch_first, enforce_sorted=False
            )
        out, (h, c) = lstm(x) if state is None else lstm(x, state)
        if lengths is not None:
            out, _ = pad_packed_sequence(out, batch_first=lstm.batch_first)
        if not lstm.batch_first:
            out = out.transpose(0, 1)
        lengths = torch.tensor([T] * n if lengths is None else lengths)
        return self.classify(out.sum(1) / lengths[:, None], h, c)

    def classify(self, mean, h, c):
        n = len(mean)
        states = [part.transpose(0, 1).reshape(n, -1) for part in (h, c)]
        return self.head(torch.cat([mean, *states], 1))

    def explicit(self, x, state=None, lengths=None):
        """The same from the unrolled cells, and what the cells saw."""
        lengths = [T] * len(x) if lengths is None else lengths
        outputs, h, c, cells = unrolled(self.lstm, x, lengths, state)
        return self.classify(torch.stack([o.mean(0) for o in outputs]), h, c), cells


class Tagger(Reader):
    """Classifies every element: the output is (N, C, T)."""

    def __init__(self, **settings):
        super().__init__(**settings)
        features = HIDDEN * (2 if self.lstm.bidirectional else 1)
        self.head = build(nn.Linear(features, 3), seed=1)[0]

    def forward(self, x):
        out, _ = self.lstm(x if self.lstm.batch_first else x.transpose(0, 1))
        out = out if self.lstm.batch_first else out.transpose(0, 1)
        return self.head(out).transpose(1, 2)

    def explicit(self, x):
        outputs, _, _, cells = unrolled(self.lstm, x, [T] * len(x))
        return self.head(torch.stack(outputs)).transpose(1, 2), cells


def check(optimizer, model, twin, loss, y, *inputs):
    f, cells = twin.explicit(*inputs)
    expected = lstm_factors(cells, f, loss, y, twin.lstm.bias)
    for suffix, (A_input, A_hidden, G) in expected.items():
        of_input = model.lstm.get_parameter(f"weight_ih_{suffix}")
        of_hidden = model.lstm.get_parameter(f"weight_hh_{suffix}")
        close(factors(optimizer, of_input), (A_input, G))
        close(factors(optimizer, of_hidden), (A_hidden, G))


def start_of(model):
    layers = model.lstm.num_layers * (2 if model.lstm.bidirectional else 1)
    return tuple(0.5 * normal(layers, N, HIDDEN, seed=s) for s in (7, 8))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("given", [(), ("state",), ("lengths",), ("state", "lengths")])
@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_those_of_the_unrolled_cell(kind, given, loss):
    model = Reader(**KINDS[kind])
    twin = copy.deepcopy(model)
    x, y = normal(N, T, INPUTS), targets_for(loss, (N, 3))
    state = start_of(model) if "state" in given else None
    lengths = [2, 4, 1] if "lengths" in given else None
    explicit, _ = twin.explicit(x, state, lengths)
    close(explicit, twin(x, state, lengths), 1e-12)  # or the reference itself is wrong
    optimizer = optimizer_factors(model, loss, y, x, state, lengths, fisher="type-2")
    check(optimizer, model, twin, loss, y, x, state, lengths)


@pytest.mark.parametrize("kind", ["one layer", "both", "batch first"])
def test_a_tagger_has_a_term_for_each_element(kind):
    model = Tagger(**KINDS[kind])
    twin = copy.deepcopy(model)
    x, y = normal(N, T, INPUTS), targets_for("cross-entropy", (N, 3, T))
    optimizer = optimizer_factors(model, "cross-entropy", y, x, fisher="type-2")
    check(optimizer, model, twin, "cross-entropy", y, x)


def test_empirical_factors_are_averages_over_examples():
    model, loss = Reader(num_layers=2, bidirectional=True), "cross-entropy"
    twin = copy.deepcopy(model)
    x, y = normal(N, T, INPUTS), targets_for(loss, (N, 3))
    optimizer = optimizer_factors(model, loss, y, x, fisher="empirical")
    sums = {}
    for n in range(N):
        f, cells = twin.explicit(x[n : n + 1])
        value = F.cross_entropy(f, y[n : n + 1])
        for suffix, rows in cells.items():
            z = [row[2] for row in rows]
            g = torch.stack(torch.autograd.grad(value, z, retain_graph=True))
            sums[suffix] = sums.get(suffix, 0) + g.T @ g
    for suffix, total in sums.items():
        for kind in ("ih", "hh"):
            weight = model.lstm.get_parameter(f"weight_{kind}_{suffix}")
            close(factors(optimizer, weight)[1][0], total / N)


@pytest.mark.parametrize("loss", LOSSES)
def test_sampled_factors_tend_to_type_2(loss):
    x, y = normal(1, T, INPUTS), targets_for(loss, (1, 3))
    exact, n = Reader(num_layers=2), 100
    wanted = optimizer_factors(exact, loss, y, x, fisher="type-2")
    model = Reader(num_layers=2)
    optimizer = KFAC(model, lr=0.0, loss=loss, decay=0.0)
    names, draws = ["weight_ih_l0", "weight_hh_l1"], []
    for _ in range(40):
        backward(model, loss, y.expand(n, *y.shape[1:]).contiguous(), x.expand(n, -1, -1))
        optimizer.step()
        found = [factors(optimizer, model.lstm.get_parameter(p))[1] for p in names]
        draws.append([G.clone() for G in found])
    for name, drawn in zip(names, zip(*draws, strict=True), strict=True):
        drawn = torch.stack(drawn)
        error = drawn.std(0) / math.sqrt(len(drawn))
        G = factors(wanted, exact.lstm.get_parameter(name))[1]
        assert ((drawn.mean(0) - G).abs() <= 5 * error + 1e-12).all()
        assert (error < 0.1 * G.abs().max()).all()


@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
@pytest.mark.parametrize("given", [(), ("state",), ("state", "lengths")])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_the_same_with_and_without_the_hooks(kind, given, fisher):
    plain = Reader(**KINDS[kind])
    hooked = copy.deepcopy(plain)
    optimizer = KFAC(hooked, lr=0.1, fisher=fisher, factor_interval=2)
    y = targets_for("cross-entropy", (N, 3))
    gradients = []
    for model in (plain, hooked):
        x = normal(N, T, INPUTS).requires_grad_()
        state = tuple(s.requires_grad_() for s in start_of(model))
        f = model(
            x,
            state if "state" in given else None,
            [2, 4, 1] if "lengths" in given else None,
        )
        F.cross_entropy(f, y).backward()
        own = [p.grad for p in model.parameters()]
        gradients.append([f.detach(), x.grad, *(s.grad for s in state), *own])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            close(one, other, 1e-13)
    optimizer.step()  # and when no factors are due, torch's own layer runs, to the bit
    plain.load_state_dict(hooked.state_dict())
    assert torch.equal(plain(x.detach()), hooked(x.detach()))


def test_an_output_keeps_its_form():
    """Packed and unbatched sequences come back as torch's layer returns them."""
    plain = build(nn.LSTM(INPUTS, HIDDEN, 2, bidirectional=True))[0]
    seen = []

    class Spy(nn.Module):
        def __init__(self, lstm):
            super().__init__()
            self.lstm = lstm

        def forward(self, *inputs):
            seen.append(self.lstm(*inputs))
            data = seen[-1][0]
            return (data if torch.is_tensor(data) else data.data).reshape(1, -1)[:, :3]

    hooked = Spy(copy.deepcopy(plain))
    optimizer = KFAC(hooked, lr=0.1)
    x = normal(T, N, INPUTS)
    state = tuple(normal(4, HIDDEN, seed=s) for s in (1, 2))
    for inputs in (
        (pack_padded_sequence(x, [2, 4, 1], enforce_sorted=False),),
        (pack_padded_sequence(x, [4, 2, 1]),),
        (x[:, 0],),
        (x[:, 0], state),
    ):
        hooked(*inputs)
        actual, expected = seen[-1], plain(*inputs)
        close(actual[1], expected[1], 1e-13)
        if torch.is_tensor(expected[0]):
            close(actual[0], expected[0], 1e-13)
        else:
            close(actual[0].data, expected[0].data, 1e-13)
            assert torch.equal(actual[0].batch_sizes, expected[0].batch_sizes)
            for name in ("sorted_indices", "unsorted_indices"):
                ours, theirs = getattr(actual[0], name), getattr(expected[0], name)
                assert (ours is None) == (theirs is None)
                assert ours is None or torch.equal(ours, theirs)
    del optimizer


@pytest.mark.parametrize("bias", [True, False])
def test_one_step_solves_the_damped_kronecker_system_of_every_block(bias):
    model, damping = Reader(num_layers=2, bias=bias), 1e-2
    x, y = normal(N, T, INPUTS), targets_for("cross-entropy", (N, 3))
    optimizer = KFAC(model, lr=0.5, damping=damping, fisher="type-2", unknown="raise")
    backward(model, "cross-entropy", y, x)
    before = {k: p.detach().clone() for k, p in model.lstm.named_parameters()}
    optimizer.step()
    for kind in ("ih_l0", "hh_l0", "ih_l1", "hh_l1"):
        names = [f"weight_{kind}", f"bias_{kind}"][: 1 + bias]
        new = [model.lstm.get_parameter(name) for name in names]
        V = torch.cat([p.grad.reshape(4 * HIDDEN, -1) for p in new], 1)
        moved = [before[k] - p.detach() for k, p in zip(names, new, strict=True)]
        U = torch.cat([m.reshape(4 * HIDDEN, -1) for m in moved], 1) / 0.5
        A, G = (f[0] for f in factors(optimizer, new[0]))
        pi = math.sqrt(A.trace() / len(A) / (G.trace() / len(G)))
        dense = torch.kron(
            A + pi * math.sqrt(damping) * torch.eye(len(A), dtype=A.dtype),
            G + math.sqrt(damping) / pi * torch.eye(len(G), dtype=G.dtype),
        )
        close(dense @ U.T.flatten(), V.T.flatten())


def test_factors_from_some_rows_are_unbiased():
    model = Reader(bidirectional=True)
    twin = copy.deepcopy(model)
    x, y, lengths = normal(N, T, INPUTS), targets_for("mse", (N, 3)), [2, 4, 3]
    f, cells = twin.explicit(x, None, lengths)
    A_input, A_hidden, G = lstm_factors(cells, f, "mse", y, True)["l0_reverse"]
    optimizer = KFAC(model, lr=0.0, loss="mse", fisher="type-2", decay=0.0, rows=4)
    drawn = []
    for _ in range(400):
        backward(model, "mse", y, x, None, lengths)
        optimizer.step()
        pairs = [
            factors(optimizer, model.lstm.get_parameter(f"weight_{k}_l0_reverse"))
            for k in ("ih", "hh")
        ]
        drawn.append([factor.clone() for pair in pairs for factor in pair])
    for some, wanted in zip(
        zip(*drawn, strict=True), (A_input, G, A_hidden, G), strict=True
    ):
        some = torch.stack(some)
        error = some.std(0) / math.sqrt(len(some))
        assert error.max() > 1e-5
        assert ((some.mean(0) - wanted).abs() <= 5 * error + 1e-12).all()


def test_projections_are_not_known():
    model = nn.LSTM(INPUTS, HIDDEN, proj_size=2)
    optimizer = KFAC(model, lr=0.1, unknown="ignore")
    assert set(optimizer.unknown) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fisher", ["sampled", "type-2", "empirical"])
def test_a_recurrent_network_learns_the_sign_of_a_sum(fisher, dtype):
    model = Reader(num_layers=2).to(dtype)
    x = torch.randn(48, T, INPUTS, generator=generator(), dtype=torch.float64).to(dtype)
    y = (x.float().sum((1, 2)) > 0).long()
    optimizer = KFAC(
        model, lr=0.1, damping=0.1, fisher=fisher, momentum=0.5, inverse_interval=1
    )
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        losses.append(backward(model, "cross-entropy", y, x).item())
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    A = optimizer.state[model.lstm.weight_hh_l1]["A"]
    assert A.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
