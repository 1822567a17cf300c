"""What the benchmark of the optimizers measures: our methods, other packages', and how each takes a step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, Adam, Optimizer

from support import optim

REFERENCE = "SGD with momentum"
OURS = "support"
LR = 1e-5  # small, so that the networks, and with them the work, stay as they are
LEVEL = 1e-2  # below the norms that occur, so that there is something to clip
NEVER = 10**9
FEW = 1024  # rows of a layer that enter K-FAC's factors, where not all do

Step = Callable[
    [Callable[[], Tensor]], object
]  # takes one step, given what computes the gradient
Built = tuple[Optimizer, Step]


@dataclass(frozen=True)
class Kind:
    """Some of the steps of a period: their share, and hyper-parameters with which every step is of this kind."""

    share: float
    hyper: dict[str, int]


@dataclass(frozen=True)
class Method:
    """A method in one implementation.

    ``build`` makes it for a network, with the hyper-parameters ``hyper``. The costs of its steps repeat
    themselves after ``period`` steps, which are of the ``kinds``.
    """

    name: str
    implementation: str
    build: Callable[..., Built]
    hyper: dict[str, int] = field(default_factory=dict)
    period: int = 1
    kinds: tuple[Kind, ...] = ()
    heavy: bool = False


def methods() -> list[Method]:
    """Return the reference, and then each method: ours, and where there is one, another package's."""
    return [
        Method(REFERENCE, torchs(), lambda model: plain(sgd(model))),
        Method("Adam", torchs(), lambda model: plain(Adam(model.parameters(), lr=LR))),
        Method("Lion", OURS, lambda model: plain(optim.Lion(model.parameters(), LR))),
        *others("Lion", "lion-pytorch", lion_pytorch),
        Method("SAM", OURS, lambda model: by_closure(optim.SAM(sgd(model)))),
        *others("SAM", "pytorch_optimizer", pytorch_optimizer_sam),
        Method("clipped-SGD, norm", OURS, partial(clipped_sgd, kind="norm")),
        Method("clipped-SGD, norm", torchs(), partial(torch_clipping, clip_grad_norm_)),
        Method("clipped-SGD, coordinate", OURS, partial(clipped_sgd, kind="coordinate")),
        Method("clipped-SGD, coordinate", torchs(), partial(torch_clipping, clip_grad_value_)),
        Method("clipped-SSTM", OURS, clipped_sstm),
        Method("AGC", OURS, lambda model: plain(optim.AdaptiveClipping(sgd(model)))),
        *others("AGC", "pytorch_optimizer", pytorch_optimizer_agc),
        Method("Shampoo, roots every step", OURS, shampoo, **ROOTS[1]),
        *others("Shampoo, roots every step", "pytorch_optimizer", pytorch_optimizer_shampoo, **ROOTS[1]),
        Method("Shampoo, roots every 10 steps", OURS, shampoo, **ROOTS[10]),
        *others("Shampoo, roots every 10 steps", "pytorch_optimizer", pytorch_optimizer_shampoo, **ROOTS[10]),
        Method("K-FAC 1/1", OURS, kfac, **CURVATURE[1, 1]),
        Method("K-FAC 1/10", OURS, kfac, **CURVATURE[1, 10]),
        Method("K-FAC 10/100", OURS, kfac, **CURVATURE[10, 100]),
        Method(f"K-FAC 1/10, {FEW} rows", OURS, partial(kfac, rows=FEW), **CURVATURE[1, 10]),
        Method(f"K-FAC 10/100, {FEW} rows", OURS, partial(kfac, rows=FEW), **CURVATURE[10, 100]),
    ]  # fmt: skip


def torchs() -> str:
    """Return the name of torch and its version."""
    return f"torch {torch.__version__}"


def others(
    name: str, package: str, build: Callable[..., Built], **more: object
) -> list[Method]:
    """Return the row of another package's implementation, if the package is installed."""
    if find_spec(package.replace("-", "_")) is None:
        return []
    return [Method(name, f"{package} {metadata.version(package)}", build, **more)]


def roots(interval: int) -> dict:
    """Return how often Shampoo takes roots, and of which kinds its steps are then."""
    with_roots, without = {"interval": 1}, {"interval": NEVER}
    kinds = (Kind(1 / interval, with_roots), Kind(1 - 1 / interval, without))
    return dict(hyper={"interval": interval}, period=interval, kinds=kinds, heavy=True)


def curvature(factors: int, inverses: int) -> dict:
    """Return how often K-FAC renews factors and inverses, and of which kinds its steps are then."""

    def hyper(factors: int, inverses: int) -> dict[str, int]:
        return {"factor_interval": factors, "inverse_interval": inverses}

    kinds = (
        Kind(1 / inverses, hyper(1, 1)),
        Kind(1 / factors - 1 / inverses, hyper(1, NEVER)),
        Kind(1 - 1 / factors, hyper(NEVER, NEVER)),
    )
    return dict(hyper=hyper(factors, inverses), period=inverses, kinds=kinds, heavy=True)


ROOTS = {interval: roots(interval) for interval in (1, 10)}
CURVATURE = {both: curvature(*both) for both in ((1, 1), (1, 10), (10, 100))}


def plain(optimizer: Optimizer, change: Callable[[], object] | None = None) -> Built:
    """Take a step after the gradient is computed and, where this is part of the method, changed."""

    def step(gradient: Callable[[], Tensor]) -> None:
        gradient()
        if change:
            change()
        optimizer.step()

    return optimizer, step


def by_closure(optimizer: Optimizer) -> Built:
    """Take a step through a closure."""
    return optimizer, optimizer.step


def sgd(model: nn.Module) -> Optimizer:
    """Return the reference."""
    return SGD(model.parameters(), lr=LR, momentum=0.9)


def clipped_sgd(model: nn.Module, kind: str) -> Built:
    """Clip the gradient and take a step in one."""
    return plain(optim.ClippedSGD(model.parameters(), LR, LEVEL, kind, momentum=0.9))


def torch_clipping(clip: Callable, model: nn.Module) -> Built:
    """Call torch's function before the step."""
    parameters = list(model.parameters())
    return plain(sgd(model), lambda: clip(parameters, LEVEL))


def clipped_sstm(model: nn.Module) -> Built:
    """Take steps as small as those of the others: lr / L, and the level B L / lr."""
    return plain(optim.ClippedSSTM(model.parameters(), L=1 / LR, B=LR * LEVEL))


def shampoo(model: nn.Module, interval: int) -> Built:
    """Ours."""
    return plain(optim.Shampoo(model.parameters(), LR, momentum=0.9, interval=interval))


def kfac(model: nn.Module, **hyper: int) -> Built:
    """Ours, with the sampled Fisher."""
    return plain(optim.KFAC(model, LR, momentum=0.9, unknown="ignore", **hyper))


def lion_pytorch(model: nn.Module) -> Built:
    """lion-pytorch's."""
    from lion_pytorch import Lion

    return plain(Lion(model.parameters(), lr=LR))


def pytorch_optimizer_sam(model: nn.Module) -> Built:
    """pytorch_optimizer's, which wants the first gradient before the step."""
    from pytorch_optimizer import SAM

    optimizer = SAM(model.parameters(), SGD, lr=LR, momentum=0.9)

    def step(gradient: Callable[[], Tensor]) -> None:
        gradient()
        optimizer.step(gradient)

    return optimizer, step


def pytorch_optimizer_agc(model: nn.Module) -> Built:
    """pytorch_optimizer's, a function for one tensor."""
    from pytorch_optimizer.optimizer.agc import agc

    @torch.no_grad()
    def clip() -> None:
        for parameter in model.parameters():
            parameter.grad = agc(parameter, parameter.grad)

    return plain(sgd(model), clip)


def pytorch_optimizer_shampoo(model: nn.Module, interval: int) -> Built:
    """pytorch_optimizer's, without momentum: with it and roots every 10 steps it diverges at any step size."""
    from pytorch_optimizer import Shampoo

    every = {"preconditioning_compute_steps": interval}
    return plain(Shampoo(model.parameters(), lr=LR, **every))
