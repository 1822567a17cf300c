"""Kronecker factors and Fisher blocks written out: Jacobians, Hessians, patches and LSTM cells."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call, jacrev

from support.optim import KFAC

LOSSES = {"cross-entropy": F.cross_entropy, "mse": F.mse_loss}


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def targets_for(loss, shape, seed=1):
    """Random targets for outputs of this shape: (N, C, ...) for cross-entropy."""
    if loss == "mse":
        return normal(*shape, seed=seed)
    n, c, *rest = shape
    return torch.randint(c, (n, *rest), generator=generator(seed))


def build(*layers, seed=0):
    """A float64 network with reproducible weights."""
    model = nn.Sequential(*layers).double()
    draw = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return model


def backward(model, loss, y, *inputs):
    value = LOSSES[loss](model(*inputs), y)
    value.backward()
    return value


def optimizer_factors(model, loss, y, *inputs, **settings):
    """The optimizer after one step of length zero on a batch."""
    optimizer = KFAC(model, lr=0.0, loss=loss, **settings)
    backward(model, loss, y, *inputs)
    optimizer.step()
    return optimizer


def factors(optimizer, weight):
    return optimizer.state[weight]["A"], optimizer.state[weight]["G"]


# The dense Gauss-Newton matrix of one block


def name_of(model, module):
    return next(name for name, m in model.named_modules() if m is module)


def dense_ggn(model, layer, loss, y, x):
    """J^T H J of the mean loss for vec([W b]), columns stacked: the order in which A (x) G acts."""
    name = name_of(model, layer)
    others = {k: v.detach() for k, v in model.named_parameters()}
    shape = layer.weight.shape
    joint = layer.weight.detach().flatten(1)
    if layer.bias is not None:
        joint = torch.cat([joint, layer.bias.detach()[:, None]], 1)

    def outputs(joint):
        own = {f"{name}.weight": joint[:, : shape[1:].numel()].reshape(shape)}
        if layer.bias is not None:
            own[f"{name}.bias"] = joint[:, -1]
        return functional_call(model, others | own, x)

    f = outputs(joint)
    J = jacrev(outputs)(joint).reshape(f.numel(), *joint.shape)
    J = J.transpose(1, 2).flatten(1)
    return J.T @ loss_hessian(loss, f, y) @ J


def loss_hessian(loss, f, y):
    """Hessian of the mean loss with respect to all outputs of the batch."""
    shape = f.shape
    return hessian(lambda v: LOSSES[loss](v.reshape(shape), y), f.detach().flatten())


# Factors of Linear and Conv2d from Jacobians of the layer's outputs


def record(model, layer, *inputs):
    """Input and output of one layer, the latter still in the graph, and the output of the network."""
    seen = []
    handle = layer.register_forward_hook(
        lambda module, args, out: seen.append((args[0], out))
    )
    try:
        f = model(*inputs)
    finally:
        handle.remove()
    ((a, z),) = seen
    return a.detach(), z, f


def patches(layer, x):
    """(groups, N, positions, inputs of a filter): what each output position sees."""
    k, s, d, g = layer.kernel_size, layer.stride, layer.dilation, layer.groups
    if layer.padding == "same":
        totals = [d[i] * (k[i] - 1) for i in range(2)]
        sides = [(t // 2, t - t // 2) for t in totals]
    elif layer.padding == "valid":
        sides = [(0, 0), (0, 0)]
    else:
        sides = [(p, p) for p in layer.padding]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, (*sides[1], *sides[0]), mode=mode)
    groups = [F.unfold(part, k, dilation=d, stride=s) for part in x.chunk(g, 1)]
    return torch.stack(groups).transpose(2, 3)


def rows_of(layer, a, z):
    """Homogeneous inputs and a function that sorts outputs alike: (groups, N, positions, dimension)."""
    if isinstance(layer, nn.Linear):
        rows = a.reshape(1, a.shape[0], -1, a.shape[-1])

        def sort(out):
            return out.reshape(1, out.shape[0], -1, out.shape[-1])
    else:
        rows = patches(layer, a)

        def sort(out):
            n, g = out.shape[0], layer.groups
            return out.reshape(n, g, out.shape[1] // g, -1).permute(1, 0, 3, 2)

    W = layer.weight.detach().reshape(rows.shape[0], -1, rows.shape[-1])
    if layer.bias is not None:
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
        W = torch.cat([W, layer.bias.detach().reshape(W.shape[0], -1, 1)], -1)
    # the layer is the product of its weight with these rows, or the reference itself is wrong
    close(torch.einsum("goi,gnpi->gnpo", W, rows), sort(z.detach()), 1e-12)
    return rows, sort


def input_factor(rows, sharing):
    if sharing == "reduce":
        rows = rows.mean(2, keepdim=True)
    rows = rows.flatten(1, 2)
    return rows.transpose(1, 2) @ rows / rows.shape[1]


def type_2_factors(model, layer, loss, y, *inputs, sharing="expand"):
    """A = mean of a a^T; G = sum over rows of J^T H J, H the Hessian of the mean loss (its 1/M included)."""
    a, z, f = record(model, layer, *inputs)
    rows, sort = rows_of(layer, a, z)
    J = torch.stack(
        [sort(torch.autograd.grad(v, z, retain_graph=True)[0]) for v in f.flatten()]
    )
    if sharing == "reduce":
        J = J.sum(3, keepdim=True)
    G = torch.einsum("kgnpi,kl,lgnpj->gij", J, loss_hessian(loss, f, y), J)
    return input_factor(rows, sharing), G.contiguous()


def empirical_factors(model, layer, loss, y, *inputs, sharing="expand"):
    """The same with gradients of the examples' own losses, one backward pass for each."""
    every, G, terms = [], 0, 0
    for n in range(len(y)):
        a, z, f = record(model, layer, *(x[n : n + 1] for x in inputs))
        rows, sort = rows_of(layer, a, z)
        every.append(rows)
        own = 1 if loss == "mse" else y[n : n + 1].numel()
        terms += own
        (g,) = torch.autograd.grad(own * LOSSES[loss](f, y[n : n + 1]), z)
        g = sort(g)
        if sharing == "reduce":
            g = g.sum(2, keepdim=True)
        G = G + torch.einsum("gnpi,gnpj->gij", g, g)
    return input_factor(torch.cat(every, 1), sharing), G / terms


# The LSTM, unrolled


def unrolled(lstm, x, lengths, state=None):
    """Outputs of every example and the cells' inputs and gate pre-activations.

    ``x`` is (N, T, d), ``state`` a pair of (layers * directions, N, hidden). Returns a list of (length, features),
    h_n and c_n, and for each suffix such as l1_reverse the rows (x 1), (h 1) and z of all cells.
    """
    directions = 2 if lstm.bidirectional else 1
    cells, finals, outputs = {}, {}, []
    for n, length in enumerate(lengths):
        layer_input = [x[n, t] for t in range(length)]
        for layer in range(lstm.num_layers):
            per_direction = []
            for direction in range(directions):
                suffix = f"l{layer}" + "_reverse" * direction
                index = layer * directions + direction
                h = c = x.new_zeros(lstm.hidden_size)
                if state is not None:
                    h, c = state[0][index, n], state[1][index, n]
                order = range(length)[::-1] if direction else range(length)
                out = [None] * length
                for t in order:
                    u = layer_input[t]
                    z = lstm.get_parameter(f"weight_ih_{suffix}") @ u
                    z = z + lstm.get_parameter(f"weight_hh_{suffix}") @ h
                    if lstm.bias:
                        z = z + lstm.get_parameter(f"bias_ih_{suffix}")
                        z = z + lstm.get_parameter(f"bias_hh_{suffix}")
                    cells.setdefault(suffix, []).append((u.detach(), h.detach(), z))
                    i, f, g, o = z.chunk(4)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh()
                    out[t] = h
                finals[index, n] = h, c
                per_direction.append(out)
            layer_input = [torch.cat(hs) for hs in zip(*per_direction, strict=True)]
        outputs.append(torch.stack(layer_input))
    h_n, c_n = (
        torch.stack(
            [
                torch.stack([finals[index, n][part] for n in range(len(lengths))])
                for index in range(lstm.num_layers * directions)
            ]
        )
        for part in range(2)
    )
    return outputs, h_n, c_n, cells


def lstm_factors(cells, f, loss, y, bias):
    """{suffix: (A of weight_ih, A of weight_hh, G of both)} for outputs f of the unrolled network."""
    H, result = loss_hessian(loss, f, y), {}
    for suffix, rows in cells.items():
        u, h, z = zip(*rows, strict=True)
        J = []
        for v in f.flatten():
            grads = torch.autograd.grad(v, z, retain_graph=True, allow_unused=True)
            J.append(
                torch.stack(
                    [
                        torch.zeros_like(p) if g is None else g
                        for p, g in zip(z, grads, strict=True)
                    ]
                )
            )
        J = torch.stack(J)
        both = []
        for a in (torch.stack(u), torch.stack(h)):
            if bias:
                a = torch.cat([a, torch.ones_like(a[:, :1])], 1)
            both.append((a.T @ a / len(a))[None])
        result[suffix] = (*both, torch.einsum("kri,kl,lrj->ij", J, H, J)[None])
    return result
