"""The optimizer: when statistics are taken, when inverses are renewed, and the step."""

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.utils.rnn import PackedSequence
from torch.profiler import record_function

from support.optim.base import (
    Closure,
    Method,
    buffers,
    check_choice,
    check_count,
    check_number,
    evaluate,
    gradients,
    parameters,
    present,
)
from support.optim.clipping import at_most_one
from support.optim.kfac import fisher as output_gradients
from support.optim.kfac.algebra import damped_inverses
from support.optim.kfac.blocks import Block, Rows, Use
from support.optim.kfac.layers import kind_of
from support.optim.kfac.lstm import LSTM

SHARINGS = ("expand", "reduce")
UNKNOWN = ("warn", "ignore", "raise")


class KFAC(Method):
    r"""K-FAC with a block for each layer (Martens and Grosse 2015; convolutions: Grosse and Martens 2016;
    method M46).

    For a weight with bias :math:`\bar W = [W\; b]`, inputs :math:`\bar a` (a 1 appended) and gradients
    :math:`g` of the loss of one example in the layer's output, with :math:`R` rows (examples times
    positions) and a loss that is the mean of :math:`M` terms,

    .. math::

        A = \frac1R \sum \bar a\,\bar a^\top, \qquad G = \frac1M \sum g\,g^\top, \qquad
        \pi^2 = \frac{\operatorname{tr} A / \dim A}{\operatorname{tr} G / \dim G}, \\
        U = \big(G + \tfrac1\pi\sqrt\lambda\, I\big)^{-1}\; \nabla_{\bar W} L\;
        \big(A + \pi\sqrt\lambda\, I\big)^{-1}

    (erratum KU-10), :math:`b_t = \mu\, b_{t-1} + U_t` and :math:`\theta_{t+1} = \theta_t - \eta\, b_t`. So
    neither factor grows with the batch or with the number of positions, and a damping :math:`\lambda` means
    the same in every layer.

    The statistics are taken by hooks in ``model(inputs)`` whenever gradients are switched on, all forward
    passes between two steps together; the backward pass with the sampled labels is made there too, so that
    training loops stay as they are. The loss must be a mean.

    Known layers are ``nn.Linear``, ``nn.Conv2d`` (with stride, dilation, all kinds of padding, groups) and
    ``nn.LSTM`` (all but ``proj_size``). Other parameters take a step of SGD with the same learning rate,
    momentum and decay. NaN or infinities make what they touch NaN. While the sampled labels are sent back,
    hooks on activations fire once more; an LSTM draws the dropout between its layers a second time.

    Parameters
    ----------
    model
        The network; it must return one tensor.
    lr
        Step size :math:`\eta`.
    damping
        :math:`\lambda > 0`, in the unit of the Fisher matrix.
    loss
        ``"cross-entropy"`` (outputs (N, C, ...), as ``F.cross_entropy`` takes them) or ``"mse"``
        (``F.mse_loss``).
    fisher
        ``"sampled"``: labels are drawn from the network, one for each term. ``"type-2"``: exact, one
        backward pass for each output. ``"empirical"``: the given labels, without a backward pass of its own.
    sharing
        Of weights over positions: ``"expand"`` takes each position for a row (for convolutions KFC),
        ``"reduce"`` averages inputs and sums gradients over the positions of an example first (Eschenhagen
        et al. 2023). An LSTM is always expanded.
    momentum
        :math:`\mu`, of the preconditioned gradient.
    weight_decay
        Coupled: it is added to the gradient before everything else.
    decay
        Of the running averages of the factors: the k-th value enters with the weight
        :math:`1 - \min(1 - 1/k, \text{decay})`.
    factor_interval, inverse_interval
        The factors are renewed at the steps 1, 1 + interval, ..., and so are the inverses.
    norm_constraint
        :math:`\kappa`: the :math:`U` are scaled by
        :math:`\min\{1, \sqrt{\kappa / (\eta^2 \sum \langle U, \nabla L\rangle)}\}` (Ba et al. 2017, section 5).
    rows
        About so many rows of a layer enter its factors at most: of a convolution a regular grid of positions
        with a random corner, of other layers a random part of the rows. ``None``: all.
    seed
        Of the sampled labels and of the choice of rows.
    params
        Parameters or groups of them to step; ``None``: all of the model.
    unknown
        What to do about parameters of layers that it does not know, whose names stand in
        ``optimizer.unknown``: ``"warn"`` once, ``"ignore"`` or ``"raise"``.

    Raises
    ------
    ValueError
        If a number is out of its range, a word unknown, a parameter not the model's, or ``unknown="raise"`` and
        there are such layers.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        damping: float = 1e-3,
        loss: str = "cross-entropy",
        *,
        fisher: str = "sampled",
        sharing: str = "expand",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        decay: float = 0.95,
        factor_interval: int = 1,
        inverse_interval: int = 10,
        norm_constraint: float | None = None,
        rows: int | None = None,
        seed: int = 0,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
        unknown: str = "warn",
    ) -> None:
        check_number("damping", damping, "(0, inf)")
        check_number("decay", decay, "[0, 1)")
        check_count("factor_interval", factor_interval)
        check_count("inverse_interval", inverse_interval)
        if norm_constraint is not None:
            check_number("norm_constraint", norm_constraint, "(0, inf)")
        if rows is not None:
            check_count("rows", rows)
        check_choice("loss", loss, output_gradients.LOSSES)
        check_choice("fisher", fisher, output_gradients.FISHERS)
        check_choice("sharing", sharing, SHARINGS)
        check_choice("unknown", unknown, UNKNOWN)
        self.model = model
        self.options = dict(
            damping=damping,
            loss=loss,
            fisher=fisher,
            sharing=sharing,
            decay=decay,
            factor_interval=factor_interval,
            inverse_interval=inverse_interval,
            norm_constraint=norm_constraint,
            rows=rows,
            seed=seed,
        )
        self.steps = 0
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay)
        super().__init__(model.parameters() if params is None else params, defaults)
        self._attach()
        known = {id(p) for b in self.blocks for p in (b.weight, b.bias) if p is not None}
        stepped = {id(p) for p in parameters(self)}
        if stepped - {id(p) for p in model.parameters()}:
            raise ValueError("params must be parameters of the model; got one that is not")
        self.unknown = [
            name
            for name, p in model.named_parameters()
            if p.requires_grad and id(p) in stepped - known
        ]
        """Names of the parameters that take a step of SGD."""
        if self.unknown and unknown != "ignore":
            message = f"K-FAC does not know the layers of {', '.join(self.unknown)}: SGD steps them"
            if unknown == "raise":
                raise ValueError(message)
            warnings.warn(message, stacklevel=2)

    def check(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a hyper-parameter of a group is wrong."""
        check_number("lr", group["lr"], "[0, inf)")
        check_number("momentum", group["momentum"], "[0, 1)")
        check_number("weight_decay", group["weight_decay"], "[0, inf)")

    def _attach(self) -> None:
        """Build the blocks and hang the hooks, which hold the optimizer weakly, into the model."""
        device = next(self.model.parameters()).device
        self.generator = torch.Generator(device).manual_seed(self.options["seed"])
        self.rows = Rows(
            self.options["sharing"], self.options["rows"], self.options["seed"]
        )
        self._uses: list[Use] = []
        self._pass: dict[str, Any] = {}
        self._stepped: set[int] = set()
        self._counts, self._forwards, self._passes = False, 0, 0
        blocks: dict[int, Block] = {}

        def block(weight: Tensor, bias: Tensor | None, groups: int = 1) -> Block:
            return blocks.setdefault(id(weight), Block(weight, bias, groups))

        self.layers = {}
        for module in self.model.modules():
            if kind := kind_of(module):
                self.layers[module] = kind(module, block, self.rows)
                hook = _Hook(self, "_after_layer")
                module.register_forward_hook(hook, with_kwargs=True)
        self.blocks = list(blocks.values())
        self.model.register_forward_pre_hook(_Hook(self, "_before_model"))
        self.model.register_forward_hook(_Hook(self, "_after_model"))

    def _before_model(self, model: nn.Module, inputs: tuple) -> None:
        """Decide whether this pass counts; layers that are called outside of the model never do."""
        due = self.steps % self.options["factor_interval"] == 0
        self._counts = due and torch.is_grad_enabled()
        self._uses, self._pass = [], {"terms": 1, "counted": False}
        self._stepped = {id(parameter) for parameter in parameters(self)}

    def _after_layer(
        self, module: nn.Module, inputs: tuple, kwargs: dict, output: Any
    ) -> Any:
        """Take the inputs of a layer, and prepare to take the gradient in its output."""
        layer = self.layers[module]
        stepped = any(id(block.weight) in self._stepped for block in layer.blocks)
        if not self._counts or not stepped or not _needs_gradient(output):
            return None
        with record_function("KFAC: factors"):
            if isinstance(layer, LSTM):
                output, uses = layer.run(module, inputs, kwargs)
            else:
                with torch.no_grad():
                    uses = [layer.use(module, inputs, kwargs, output)]
        for tensor, columns in uses:
            if self.options["fisher"] == "empirical":
                tensor.register_hook(
                    lambda g, columns=columns, own=self._pass: self._see(
                        columns, g * own["terms"], own
                    )
                )
            else:  # an edge stays that of the layer when its output is changed in place
                self._uses.append((get_gradient_edge(tensor), columns))
        return output

    def _after_model(self, model: nn.Module, inputs: tuple, output: Any) -> None:
        """Send the gradients of sampled labels, or all columns of a root of the Hessian, back through the
        network."""
        if not self._counts:
            return
        self._counts = False
        if not isinstance(output, Tensor):
            raise TypeError(
                f"K-FAC needs a model that returns one tensor; got {type(output).__name__}"
            )
        loss, fisher = self.options["loss"], self.options["fisher"]
        self._forwards += 1
        self._pass["terms"] = output_gradients.terms(output, loss)
        uses, self._uses = self._uses, []
        if fisher == "empirical" or not uses:
            return
        with torch.no_grad():
            vectors = (
                [output_gradients.sampled(output, loss, self.generator)]
                if fisher == "sampled"
                else output_gradients.exact(output, loss)
            )
            for vector in vectors:
                edges = [edge for edge, _ in uses]
                with record_function("KFAC: sampled backward"):
                    found = torch.autograd.grad(
                        output, edges, vector, retain_graph=True, allow_unused=True
                    )
                for (_, columns), gradient in zip(uses, found, strict=True):
                    if gradient is not None:
                        self._see(columns, gradient, self._pass)

    @torch.no_grad()
    def _see(self, columns: Any, gradient: Tensor, own: dict[str, Any]) -> None:
        """Add the gradients in the output of a layer from one pass, which counts as soon as it has some."""
        self._passes += not own["counted"]
        own["counted"] = True
        with record_function("KFAC: factors"):
            for block, some, share in columns(gradient):
                block.see_gradients(some, 1 / (own["terms"] * share))

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; a closure, if there is one, computes the gradient first, and its loss is returned.

        Raises
        ------
        RuntimeError
            If statistics are due and no forward pass of the model has been seen since the last step.
        """
        loss = evaluate(closure)
        if self.steps % self.options["factor_interval"] == 0:
            with record_function("KFAC: factors"):
                self._renew_factors()
        with record_function("KFAC: inverses"):
            self._renew_inverses(self.steps % self.options["inverse_interval"] == 0)
        self.steps += 1
        V = {}
        for group in self.param_groups:
            params = present(group)
            if params:
                g = gradients(params)
                if group["weight_decay"]:
                    g = torch._foreach_add(g, params, alpha=group["weight_decay"])
                V |= dict(zip(params, g, strict=True))
        with record_function("KFAC: preconditioning"):
            U = V | self._precondition(V)
        for group in self.param_groups:
            params = present(group)
            if params:
                direction = [U[parameter] for parameter in params]
                if group["momentum"]:
                    b = buffers(self, "momentum", params)
                    torch._foreach_mul_(b, group["momentum"])
                    torch._foreach_add_(b, direction)
                    direction = b
                torch._foreach_add_(params, direction, alpha=-group["lr"])
        return loss

    def _renew_factors(self) -> None:
        """Let the sums since the last step enter the running averages."""
        if not self._forwards:
            raise RuntimeError(
                "K-FAC takes its statistics from the forward passes of the model, "
                "and has seen none with gradients switched on since the last step"
            )
        for block in self.blocks:
            seen = block.inputs is not None and block.gradients is not None
            if seen and id(block.weight) in self._stepped:
                state = self.state[block.weight]
                state["count"] = state.get("count", 0) + 1
                keep = min(1 - 1 / state["count"], self.options["decay"])
                for name, new in (
                    ("A", block.inputs / block.rows),
                    ("G", block.gradients / self._passes),
                ):
                    state[name] = state[name].lerp_(new, 1 - keep) if name in state else new
            block.forget()
        self._forwards = self._passes = 0

    def _renew_inverses(self, due: bool) -> None:
        """Compute the inverses that are due, and those of layers that have factors for the first time."""
        for block in self.blocks:
            state = self.state.get(block.weight, {})
            if "A" in state and (due or "A_inverse" not in state):
                state["A_inverse"], state["G_inverse"] = damped_inverses(
                    state["A"], state["G"], self.options["damping"]
                )

    def _precondition(self, V: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Return the preconditioned gradients of the known layers."""
        U, products, kappa = {}, [], self.options["norm_constraint"]
        rates = {p: group["lr"] for group in self.param_groups for p in group["params"]}
        for block in self.blocks:
            state = self.state.get(block.weight, {})
            if block.weight in V and "A_inverse" in state:
                given = block.join(V[block.weight], V.get(block.bias))
                found = state["G_inverse"] @ given @ state["A_inverse"]
                if kappa is not None:
                    products.append(rates[block.weight] ** 2 * (found * given).sum())
                U |= dict(block.part(found))
        if kappa is not None and products:
            scale = at_most_one(kappa**0.5, torch.stack(products).sum().sqrt())
            U = {parameter: scale * direction for parameter, direction in U.items()}
        return {parameter: U[parameter] for parameter in U if parameter in V}

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the options, the number of steps and the states of the generators."""
        return super().state_dict() | self._own_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state and its options; none of its tensors is cast to the parameter's type."""
        super().load_state_dict(state_dict)
        self._load_own_state(state_dict)

    def _own_state(self) -> dict[str, Any]:
        generators = [self.generator.get_state(), self.rows.generator.get_state()]
        return {
            "options": dict(self.options),
            "steps": self.steps,
            "generators": generators,
        }

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.options, self.steps = dict(state["options"]), state["steps"]
        self.rows.sharing, self.rows.limit = self.options["sharing"], self.options["rows"]
        own = (self.generator, self.rows.generator)
        for generator, saved in zip(own, state["generators"], strict=True):
            generator.set_state(saved.cpu())

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs, the model included."""
        kept = {"model": self.model, "unknown": self.unknown, "own": self._own_state()}
        return super().__getstate__() | kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, whose hooks hang in its own model."""
        own = state.pop("own", None)
        super().__setstate__(state)
        if own is not None:  # torch calls this too when it loads a state dictionary
            self.options = own["options"]
            self._attach()
            self._load_own_state(own)


def _needs_gradient(output: Any) -> bool:
    """Tell whether a backward pass reaches the output of a layer."""
    first = output[0] if isinstance(output, tuple) else output
    first = first.data if isinstance(first, PackedSequence) else first
    return first.requires_grad


class _Hook:
    """Calls a method of an optimizer as long as that lives; a copy of the model gets an empty one."""

    def __init__(self, optimizer: KFAC | None = None, name: str = "") -> None:
        self.optimizer = weakref.ref(optimizer) if optimizer else lambda: None
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        optimizer = self.optimizer()
        return getattr(optimizer, self.name)(*arguments) if optimizer else None

    def __reduce__(self) -> tuple:
        return _Hook, ()
