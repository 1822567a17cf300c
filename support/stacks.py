"""Many runs of one network at once: their weights stacked, so that they share each operation.

Small networks leave a processor waiting for Python. Runs whose networks, data and batches have equal shapes
differ in numbers only: initial weights, order of the examples, method, step size. Here the weights of R such
runs are tensors whose first dimension is R, the forward pass is mapped over it (``torch.func.vmap``), and one
backward pass of the sum of their losses gives the gradient of each.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Optimizer

from support import models, optim, training
from support.data import Batches
from support.records import Configuration, Outcome
from support.training import Task

LINEAR = frozenset(
    {
        "sgd",
        "momentum",
        "nesterov",
        "adagrad",
        "rmsprop",
        "adadelta",
        "adam",
        "adamax",
        "nadam",
        "radam",
        "amsgrad",
    }
)
"""Optimizers whose update is the step size times what each entry's own gradients so far determine."""


class Stacks:
    """Trains configurations of :func:`support.training.train_one` together where that is faster.

    Each run gives what it would give alone, up to rounding. To be given to :func:`support.sweep.run`.

    Parameters
    ----------
    root, device, optimizers
        As for :func:`support.training.train_one`.
    together
        At most so many runs in one stack.
    """

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        device: str = "cpu",
        optimizers: Mapping[str, Callable[..., Optimizer]] = optim.OPTIMIZERS,
        together: int = 32,
    ) -> None:
        if together < 1:
            raise ValueError(f"together must be positive; got {together}")
        self.root, self.device = root, device
        self.optimizers, self.together = optimizers, together

    def groups(self, configurations: Iterable[Configuration]) -> list[list[Configuration]]:
        """Part the configurations into lists of at most ``together``, each of which one stack can train."""
        alone, alike = [], defaultdict(list)
        for chosen in configurations:
            if self._fits(chosen["optimizer"]):
                alike[_shared(chosen)].append(chosen)
            else:
                alone.append([chosen])
        size = self.together
        return alone + [
            members[start : start + size]
            for members in alike.values()
            for start in range(0, len(members), size)
        ]

    def _fits(self, name: str) -> bool:
        own = self.optimizers.get(name)
        standard = optim.OPTIMIZERS.get(name)
        return name in LINEAR and optim.unwrapped(own) == optim.unwrapped(standard)

    def pays(self, group: Sequence[Configuration], steps: int = 4) -> bool:
        """Measure whether a step of the stack takes less time than one step of each of its runs alone."""
        if len(group) < 2:
            return False
        train, _ = training.parts(group[0], self.root)
        few = torch.utils.data.TensorDataset(
            *(tensor[: steps * group[0]["batch"]] for tensor in train.tensors)
        )
        batches = Batches(few, group[0]["batch"], seed=0, device=self.device)
        stack = Stack(group, batches)
        model, optimizer = training.build(group[0], batches, self.optimizers)
        alone = self._seconds(lambda: training.train_epoch(model, optimizer, batches))
        return self._seconds(stack.train_epoch) < alone * len(group)

    def _seconds(self, epoch: Callable[[], object]) -> float:
        """Return the shortest of three times; the first call, which is not timed, warms up."""
        taken = []
        for _ in range(4):
            began = time.perf_counter()
            epoch()  # it ends with numbers on the CPU, so that the device has finished
            taken.append(time.perf_counter() - began)
        return min(taken[1:])

    def train(
        self, group: Sequence[Configuration], checkpoint: str | Path | None = None
    ) -> list[Outcome]:
        """Train one stack and return the outcome of each run, in the order of the group.

        ``seconds`` in a history are those of the stack divided by the number of its runs.

        Parameters
        ----------
        group
            One of :meth:`groups`.
        checkpoint
            See :func:`support.training.fit`; one file for the whole stack.
        """
        train, held_out = training.parts(group[0], self.root)
        batch = group[0]["batch"]
        stack = Stack(group, Batches(train, batch, seed=0, device=self.device))
        size = max(100, 1000 // len(group))
        return stack.fit(
            {
                name: Batches(part, size, device=self.device)
                for name, part in held_out.items()
            },
            group[0]["epochs"],
            checkpoint,
        )


class Stack:
    """R runs that share each operation.

    Parameters
    ----------
    group
        Their configurations.
    train
        What they learn from; each run in the order that its own seed gives.
    task
        Loss and metrics.
    """

    def __init__(
        self,
        group: Sequence[Configuration],
        train: Batches,
        task: Task = training.classification,
    ) -> None:
        self.group = sorted(group, key=_arm)
        self.places = [self.group.index(chosen) for chosen in group]
        self.task, self.device = task, train.tensors[0].device
        seeds = [chosen["seed"] for chosen in self.group]
        self.orders = {seed: train.reseeded(seed) for seed in dict.fromkeys(seeds)}
        self.rows = [list(self.orders).index(seed) for seed in seeds]
        shape = train.tensors[0].shape[1:]
        name = self.group[0]["model"]
        networks = [models.MODELS[name](shape=shape, seed=seed) for seed in seeds]
        self.model = networks[0].to(self.device)
        self.parameters, self.buffers = stack_module_state(
            [network.to(self.device) for network in networks]
        )
        self.arms = self._arms()

    def _arms(self) -> list["_Arm"]:
        """Return the optimizers, one for all neighbouring runs that differ only in step size and decay."""
        arms, start = [], 0
        for end in range(1, len(self.group) + 1):
            if end == len(self.group) or _arm(self.group[end]) != _arm(self.group[start]):
                own = [parameter[start:end] for parameter in self.parameters.values()]
                arms.append(_Arm(self.group[start:end], own, slice(start, end)))
                start = end
        return arms

    def _forward(self, inputs: Tensor, stacked: bool) -> Tensor:
        """Return outputs (R, N, ...) for inputs (N, ...) that all runs share, or (R, N, ...)."""

        def one(parameters: dict, buffers: dict, inputs: Tensor) -> Tensor:
            return functional_call(self.model, (parameters, buffers), (inputs,))

        dimensions = (0, 0, 0 if stacked else None)
        return vmap(one, dimensions)(self.parameters, self.buffers, inputs)

    def _measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return for loss and metrics the sums over the examples, each of shape (R,)."""
        functions = {"loss": lambda *pair: self.task.loss(*pair) * targets.shape[-1]}
        dimensions = (0, 0 if targets.dim() > 1 else None)
        return {
            name: vmap(function, dimensions)(outputs, targets)
            for name, function in (functions | dict(self.task.metrics)).items()
        }

    def _batches(self) -> Iterable[tuple[Tensor, Tensor, bool]]:
        """Yield the batches of one epoch: (inputs, targets, whether each run has examples of its own)."""
        first = next(iter(self.orders.values()))
        orders = torch.stack([batches.order() for batches in self.orders.values()])
        shared = len(orders) == 1
        orders = orders[0] if shared else orders[self.rows]
        for chosen in orders.split(first.size, dim=-1):
            inputs, targets = (tensor[chosen] for tensor in first.tensors)
            yield inputs, targets, not shared

    def train_epoch(self) -> list[dict[str, float]]:
        """Take one step a batch, and return the means of loss and metrics of each run, before each step."""
        self.model.train()
        parameters = list(self.parameters.values())
        sums: dict[str, Tensor] = {}
        for inputs, targets, stacked in self._batches():
            outputs = self._forward(inputs, stacked)
            values = self._measure(outputs, targets)
            loss = values["loss"].sum() / targets.shape[-1]
            gradients = torch.autograd.grad(loss, parameters)
            for arm in self.arms:
                arm.step([gradient[arm.rows] for gradient in gradients])
            _add(sums, values)
        return self._means(sums, next(iter(self.orders.values())).examples)

    def evaluate(self, batches: Batches) -> list[dict[str, float]]:
        """Return the mean loss and metrics of each run over all batches."""
        self.model.eval()
        sums: dict[str, Tensor] = {}
        with torch.no_grad():
            for inputs, targets in batches:
                _add(sums, self._measure(self._forward(inputs, False), targets))
        return self._means(sums, batches.examples)

    def _means(self, sums: Mapping[str, Tensor], examples: int) -> list[dict[str, float]]:
        means = {name: (value / examples).tolist() for name, value in sums.items()}
        return [
            dict(zip(means, row, strict=True)) for row in zip(*means.values(), strict=True)
        ]

    def fit(
        self,
        held_out: Mapping[str, Batches],
        epochs: int,
        checkpoint: str | Path | None = None,
    ) -> list[Outcome]:
        """Train and measure after each epoch; see :func:`support.training.fit` and :meth:`Stacks.train`."""
        checkpoint = Path(checkpoint) if checkpoint else None
        start, seconds = 0, 0.0
        outcomes = [Outcome("finished") for _ in self.group]
        if state := training.saved(checkpoint, self.device):
            start, seconds = state["epoch"], state["seconds"]
            outcomes = [Outcome(*outcome) for outcome in state["outcomes"]]
            self.load_state_dict(state["stack"])
        for epoch in range(start + 1, epochs + 1):
            began = time.perf_counter()
            measured = {"train": self.train_epoch()}
            seconds += (time.perf_counter() - began) / len(self.group)
            measured |= {name: self.evaluate(part) for name, part in held_out.items()}
            for row, outcome in enumerate(outcomes):
                if outcome.status == "finished":
                    own = {name: values[row] for name, values in measured.items()}
                    training.note(outcome, epoch, own, seconds)
            if checkpoint:
                state = {"stack": self.state_dict(), "epoch": epoch, "seconds": seconds}
                state["outcomes"] = [
                    (outcome.status, outcome.history, outcome.reason)
                    for outcome in outcomes
                ]
                training.save(checkpoint, state)
        return [outcomes[place] for place in self.places]

    def state_dict(self) -> dict:
        """Return weights, statistics, the state of the optimizers and of the orders."""
        return {
            "parameters": {name: value.detach() for name, value in self.parameters.items()},
            "buffers": self.buffers,
            "arms": [arm.optimizer.state_dict() for arm in self.arms],
            "orders": [batches.state_dict() for batches in self.orders.values()],
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Restore a state that :meth:`state_dict` gave."""
        with torch.no_grad():
            for own, saved in (
                (self.parameters, state["parameters"]),
                (self.buffers, state["buffers"]),
            ):
                for name, value in own.items():
                    value.copy_(saved[name])
        for arm, saved in zip(self.arms, state["arms"], strict=True):
            arm.optimizer.load_state_dict(saved)
        for batches, saved in zip(self.orders.values(), state["orders"], strict=True):
            batches.load_state_dict({name: value.cpu() for name, value in saved.items()})


class _Arm:
    """Neighbouring runs with one method: torch's optimizer steps from zero with step size 1.

    Its steps are then scaled run by run; that is why only methods of :data:`LINEAR` can be stacked.
    """

    def __init__(
        self, group: Sequence[Configuration], parameters: Sequence[Tensor], rows: slice
    ) -> None:
        self.parameters, self.rows = [value.detach() for value in parameters], rows
        self.updates = nn.ParameterList(map(torch.zeros_like, self.parameters))
        name, hyper = group[0]["optimizer"], _hyper(group[0])
        alone = optim.make(name, self.updates, **hyper)
        rates = [chosen.get("lr", alone.defaults["lr"]) for chosen in group]
        decays = [chosen.get("weight_decay", 0) for chosen in group]
        self.rates, self.decays = self._columns(rates), self._columns(decays)
        self.decayed = any(decays)
        self.optimizer = optim.make(name, self.updates, **hyper, lr=1.0)

    def _columns(self, values: Sequence[float]) -> list[Tensor]:
        """Return for each parameter the values of the runs, in a shape that multiplies it run by run."""
        return [
            torch.tensor(values, dtype=value.dtype, device=value.device).view(
                -1, *[1] * (value.dim() - 1)
            )
            for value in self.parameters
        ]

    def step(self, gradients: list[Tensor]) -> None:
        """Step each run with its gradients (r, ...)."""
        if self.decayed:
            decay = torch._foreach_mul(self.parameters, self.decays)
            gradients = torch._foreach_add(gradients, decay)
        updates = list(self.updates)
        for update, gradient in zip(updates, gradients, strict=True):
            update.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(updates, self.rates)
            torch._foreach_add_(self.parameters, updates)
            torch._foreach_zero_(updates)


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        value = value.detach()
        sums[name] = sums[name] + value if name in sums else value


def _hyper(configuration: Configuration) -> dict:
    """Return the hyper-parameters but for those that are scaled run by run."""
    own = training.SETTING | {"lr", "weight_decay"}
    return {name: value for name, value in configuration.items() if name not in own}


def _arm(configuration: Configuration) -> str:
    """Return what runs stepped by one optimizer have in common."""
    return repr((configuration["optimizer"], sorted(_hyper(configuration).items())))


def _shared(configuration: Configuration) -> str:
    """Return what all runs of a stack have in common: the setting without seed and method."""
    names = training.SETTING - {"seed", "optimizer", "code"}
    return repr(sorted((name, configuration.get(name)) for name in names))
