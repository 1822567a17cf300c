"""Directions through a network: random ones with the norms of its filters, and those of its training's path."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Direction = dict[str, Tensor]
"""Name of a parameter -> tensor of its shape."""

NORMS = (
    nn.modules.batchnorm._NormBase,  # of batches and of instances
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def directions(
    model: nn.Module, count: int = 2, *, seed: int, normalise: str = "filter"
) -> list[Direction]:
    """Draw Gaussian directions, and give their filters the norms of the network's (Li et al. 2018, section 4).

    Parameters
    ----------
    model
        The network.
    count
        Number of directions.
    seed
        Of the draws, which are made on the CPU and so are the same on every device.
    normalise
        See :func:`normalised`.
    """
    if count < 1:
        raise ValueError(f"count must be positive; got {count}")
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        {
            name: torch.randn(
                value.shape, dtype=value.dtype, generator=generator
            ).to(value.device)
            for name, value in trained(model).items()
        }
        for _ in range(count)
    ]  # fmt: skip
    return [normalised(model, direction, normalise) for direction in drawn]


def normalised(
    model: nn.Module, direction: Mapping[str, Tensor], normalise: str = "filter"
) -> Direction:
    r"""Scale a direction to the network: :math:`d_{ij} \leftarrow d_{ij}\, \|\theta_{ij}\| / \|d_{ij}\|`.

    Here :math:`ij` is the filter j of layer i: the weights of one map of a convolution, the row of weights of
    one neuron of a dense layer. Biases and the parameters of normalisations are left still, as the paper does.

    Parameters
    ----------
    model
        The network.
    direction
        Name of a parameter -> tensor of its shape.
    normalise
        ``"filter"``; ``"layer"``: one norm for all filters of a layer; ``"none"``: the direction as it was
        drawn, biases and normalisations included, which shows what the normalisation is for.

    Raises
    ------
    ValueError
        If the direction does not fit the network, or ``normalise`` is another word.
    """
    if normalise not in ("filter", "layer", "none"):
        raise ValueError(
            f'normalise must be "filter", "layer" or "none"; got {normalise!r}'
        )
    direction = fitting(model, direction)
    if normalise == "none":
        return direction
    still, across = _still(model), _filters(model)
    scaled = {}
    for name, value in trained(model).items():
        d = direction[name]
        if name in still:
            scaled[name] = torch.zeros_like(d)
            continue
        own = across.get(name, 0)
        axes = [axis for axis in range(d.dim()) if normalise == "layer" or axis != own]
        norm = torch.linalg.vector_norm(d, dim=axes, keepdim=True)
        theta = torch.linalg.vector_norm(value, dim=axes, keepdim=True)
        scaled[name] = d * torch.where(norm > 0, theta / norm, 0)
    return scaled


def _still(model: nn.Module) -> set[str]:
    """Return the names of biases and of parameters of normalisations."""
    names = {name for name, value in model.named_parameters() if value.dim() < 2}
    return names | {
        f"{place}.{name}" if place else name
        for place, module in model.named_modules()
        if isinstance(module, NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }


def _filters(model: nn.Module) -> dict[str, int]:
    """Return where the filters are counted, if not in the first dimension: transposed convolutions."""
    return {
        f"{place}.weight" if place else "weight": 1
        for place, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvTransposeNd)
    }


def toward(model: nn.Module, state: Mapping[str, Tensor]) -> Direction:
    """Return the direction at whose coordinate 1 the network has the parameters of a state dictionary.

    Raises
    ------
    ValueError
        If the state lacks a parameter, or has one of another shape.
    """
    own = trained(model)
    lacking = [name for name in own if name not in state]
    if lacking:
        raise ValueError(f"state must hold every parameter; it lacks {', '.join(lacking)}")
    for name, value in own.items():
        _check_shape("state", name, state[name], value)
    return {name: state[name].to(value) - value for name, value in own.items()}


@dataclass(frozen=True)
class Plane:
    """The plane through a network in which the path of its training is seen best."""

    directions: list[Direction]
    """Two orthonormal directions, over all parameters; the first explains more."""
    coordinates: np.ndarray
    """Of each state of the path in the plane, of shape (states, 2); the network stands at (0, 0)."""
    shares: np.ndarray
    """Share of the path's variance along each of the two directions, of shape (2,)."""
    distances: np.ndarray
    """Of each state from the plane, of shape (states,)."""


def principal_plane(model: nn.Module, path: Sequence[Mapping[str, Tensor]]) -> Plane:
    r"""Find the plane of the two principal components of a path (Li et al. 2018, section 7.2).

    The rows of the matrix are :math:`\theta_i - \theta_n`, where :math:`\theta_n` are the present parameters
    of the network; their mean is subtracted for the components, as is usual, and the plane goes through the
    network. The sign is such that the path starts at coordinates that are not negative.

    Parameters
    ----------
    model
        The network, usually at the end of its path.
    path
        State dictionaries, at least three; entries that are no parameters are not used.

    Raises
    ------
    ValueError
        If there are fewer than three states, the path does not span a plane, or a state does not fit.
    """
    if len(path) < 3:
        raise ValueError(f"path must have at least three states; got {len(path)}")
    offsets = torch.stack([as_vector(model, toward(model, state)) for state in path])
    _, singular, rows = torch.linalg.svd(offsets - offsets.mean(0), full_matrices=False)
    spread = torch.finfo(singular.dtype).eps * len(path) * singular[0]
    if not singular[1] > spread:
        raise ValueError("path must span a plane; its states stand on one line")
    axes = rows[:2]
    start = offsets[0] @ axes.T
    axes = axes * torch.where(start < 0, -1, 1)[:, None].to(axes)
    coordinates = offsets @ axes.T
    squares = singular.double().square()
    return Plane(
        [as_direction(model, axis) for axis in axes],
        coordinates.double().cpu().numpy(),
        (squares[:2] / squares.sum()).cpu().numpy(),
        torch.linalg.vector_norm(offsets - coordinates @ axes, dim=1)
        .double().cpu().numpy(),
    )  # fmt: skip


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that require a gradient, detached, by name."""
    found = {
        name: value.detach()
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    if not found:
        raise ValueError("the model has no parameter that requires a gradient")
    return found


def fitting(model: nn.Module, direction: Mapping[str, Tensor]) -> Direction:
    """Return a direction with zeros where it lacks a parameter; ``ValueError`` where it does not fit."""
    own = trained(model)
    unknown = [name for name in direction if name not in own]
    if unknown:
        raise ValueError(
            f"direction must name parameters that require a gradient; got {', '.join(unknown)}"
        )
    for name, value in direction.items():
        _check_shape("direction", name, value, own[name])
    return {
        name: direction[name].detach().to(value)
        if name in direction
        else torch.zeros_like(value)
        for name, value in own.items()
    }


def _check_shape(argument: str, name: str, value: Tensor, parameter: Tensor) -> None:
    if value.shape != parameter.shape:
        raise ValueError(
            f"{argument}[{name!r}] must have shape {tuple(parameter.shape)}; "
            f"got {tuple(value.shape)}"
        )


def as_vector(model: nn.Module, direction: Mapping[str, Tensor]) -> Tensor:
    """Return a direction as a vector of shape (P,)."""
    return torch.cat([part.flatten() for part in fitting(model, direction).values()])


def as_direction(model: nn.Module, vector: Tensor) -> Direction:
    """Return a vector of shape (P,), an eigenvector of the Hessian for instance, as a direction.

    Raises
    ------
    ValueError
        If it has another shape.
    """
    own = trained(model)
    check_vector(model, vector)
    parts = vector.detach().split([value.numel() for value in own.values()])
    return {
        name: part.view(value.shape)
        for (name, value), part in zip(own.items(), parts, strict=True)
    }


def check_vector(model: nn.Module, vector: Tensor) -> None:
    """Raise ``ValueError`` if a vector is not of shape (P,)."""
    size = sum(value.numel() for value in trained(model).values())
    if vector.shape != (size,):
        raise ValueError(f"vector must have shape ({size},); got {tuple(vector.shape)}")
