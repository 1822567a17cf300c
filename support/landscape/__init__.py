"""The surface of the loss around a network: slices of it, the path of the training, curvature, sharpness.

All functions judge the mean loss over the examples of ``batches``, in their own order, with the network in
evaluation mode, and leave the network, its gradients and the generator of the batches as they were. A direction
is a dictionary, name of a parameter -> tensor of its shape; a name that it lacks stays still. A vector of
shape (P,) holds all parameters that require a gradient, one after the other.
"""

from support.landscape.ball import Sharpness, sharpness
from support.landscape.curvature import (
    Estimate,
    Ritz,
    Spectrum,
    hessian_vector_product,
    lanczos,
    spectrum,
    trace,
)
from support.landscape.plane import (
    Direction,
    Plane,
    as_direction,
    as_vector,
    directions,
    normalised,
    principal_plane,
    toward,
)
from support.landscape.points import surface

__all__ = [
    "Direction",
    "Estimate",
    "Plane",
    "Ritz",
    "Sharpness",
    "Spectrum",
    "as_direction",
    "as_vector",
    "directions",
    "hessian_vector_product",
    "lanczos",
    "normalised",
    "principal_plane",
    "sharpness",
    "spectrum",
    "surface",
    "toward",
    "trace",
]
