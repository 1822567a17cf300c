"""Gaussian noise on the gradient, which dies away."""

from typing import Any

import torch
from torch.optim import Optimizer

from support.optim.base import check_number, present
from support.optim.wrapper import Wrapper


class GradientNoise(Wrapper):
    r"""Annealed gradient noise around any optimizer (Neelakantan et al. 2015, eq. 1; method M38).

    .. math::

        g_t \leftarrow g_t + \mathcal N(0, \sigma_t^2 I), \qquad \sigma_t^2 = \frac{\eta}{(1 + t)^\gamma}

    with :math:`t = 0, 1, \dots` the number of earlier steps. The gradients are changed in place, after every
    call of the closure where there is one, each time with fresh noise. The noise comes from a generator of
    its own on each device and leaves the global one alone.

    Parameters
    ----------
    optimizer
        Takes the step.
    eta
        Variance :math:`\eta` of the first noise, in squared units of the gradient; the paper uses 0.01, 0.3
        and 1.
    gamma
        Exponent :math:`\gamma` of the decay.
    seed
        Of the noise.

    Raises
    ------
    ValueError
        If ``eta`` or ``gamma`` is negative.
    """

    def __init__(
        self, optimizer: Optimizer, eta: float = 0.3, gamma: float = 0.55, seed: int = 0
    ) -> None:
        check_number("eta", eta, "[0, inf)")
        check_number("gamma", gamma, "[0, inf)")
        self.eta, self.gamma, self.seed, self.steps = eta, gamma, seed, 0
        self.generators: dict[str, torch.Generator] = {}
        super().__init__(optimizer, {})

    def step(self, closure: Any = None) -> Any:
        """Take one step with noise on the gradients, which are changed after each call of the closure."""
        result = super().step(closure)
        self.steps += 1
        return result

    @torch.no_grad()
    def change_gradients(self) -> None:
        """Add the noise of this step to the gradients in place."""
        deviation = (self.eta / (1 + self.steps) ** self.gamma) ** 0.5
        for group in self.param_groups:
            for parameter in present(group):
                gradient = parameter.grad
                noise = torch.empty_like(gradient, memory_format=torch.contiguous_format)
                noise.normal_(generator=self._generator(gradient.device))
                gradient.add_(noise, alpha=deviation)

    def _generator(self, device: torch.device) -> torch.Generator:
        if str(device) not in self.generators:
            self.generators[str(device)] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[str(device)]

    def own_state(self) -> dict[str, Any]:
        """Return the hyper-parameters, the number of steps and the states of the generators."""
        states = {name: own.get_state() for name, own in self.generators.items()}
        own = {name: getattr(self, name) for name in ("eta", "gamma", "seed", "steps")}
        return own | {"generators": states}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Load what :meth:`own_state` returned."""
        for name in ("eta", "gamma", "seed", "steps"):
            setattr(self, name, state[name])
        self.generators = {}
        for name, saved in state["generators"].items():
            self._generator(torch.device(name)).set_state(saved.cpu())

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs."""
        return super().__getstate__() | {"own": self.own_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        own = state.pop("own")
        super().__setstate__(state)
        self.load_own_state(own)
