"""Mini-batches of a data set that stays on the device, or is streamed to it."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from support.data.pictures import Pictures


class Batches:
    """Mini-batches of tensors that live on one device.

    Every iteration is one epoch: each example once, the last batch smaller where the size does not divide.
    With a seed the order is drawn anew each epoch from a generator of its own, on the CPU, so that it is the
    same on every device and independent of all other random numbers.

    Parameters
    ----------
    dataset
        Data set of tensors with the same first dimension N (inputs, targets, ...).
    size
        Examples in a batch.
    seed
        Seed of the order; ``None`` keeps the order of the data set.
    device
        Where the tensors are kept and the batches come from.

    Raises
    ------
    ValueError
        If ``size`` is not positive or the data set is empty.
    """

    def __init__(
        self,
        dataset: TensorDataset,
        size: int,
        *,
        seed: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if size < 1:
            raise ValueError(f"size of a batch must be positive; got {size}")
        if not len(dataset):
            raise ValueError("the data set is empty")
        self.tensors = tuple(tensor.to(device) for tensor in dataset.tensors)
        self.size = size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    @property
    def examples(self) -> int:
        """Number N of examples in an epoch."""
        return len(self.tensors[0])

    @property
    def shape(self) -> torch.Size:
        """Shape of the inputs of one example."""
        return self.tensors[0].shape[1:]

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.tensors[0].device

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-self.examples // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of one epoch."""
        if self.generator is None:
            yield from zip(
                *(tensor.split(self.size) for tensor in self.tensors), strict=True
            )
            return
        for chosen in self.order().split(self.size):
            yield tuple(tensor[chosen] for tensor in self.tensors)

    def order(self) -> Tensor:
        """Draw the order of the coming epoch: indices of shape (N,), on the device."""
        order = torch.randperm(self.examples, generator=self.generator)
        return order.to(self.device)

    def reseeded(self, seed: int) -> "Batches":
        """Return batches of the same tensors, which are shared, in the order that another seed gives."""
        other = copy.copy(self)
        other.generator = torch.Generator().manual_seed(seed)
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of the generator, from which the coming epochs follow."""
        return {} if self.generator is None else {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a state that :meth:`state_dict` gave."""
        if self.generator is not None:
            self.generator.set_state(state["generator"])


class Streamed(Batches):
    """Mini-batches of pictures that are read, and shown in their view, while the network learns.

    Used as :class:`Batches` are, for data sets that do not fit into memory. With a seed each example gets a
    seed of its own in each epoch, so that what its view draws depends neither on the number of workers nor
    on an interruption.

    Parameters
    ----------
    dataset
        The pictures.
    size, seed, device
        See :class:`Batches`.
    workers
        Processes that read ahead; 0 reads in this process.
    """

    def __init__(
        self,
        dataset: Pictures,
        size: int,
        *,
        seed: int | None = None,
        device: str | torch.device = "cpu",
        workers: int = 0,
    ) -> None:
        few = TensorDataset(*(part[None] for part in dataset[0])) if dataset else dataset
        super().__init__(few, size, seed=seed, device=device)
        self.dataset, self.workers = dataset, workers

    @property
    def examples(self) -> int:
        """Number N of examples in an epoch."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of one epoch."""
        if self.generator is None:
            items = [(index, 0) for index in range(self.examples)]
        else:
            order = torch.randperm(self.examples, generator=self.generator)
            seeds = torch.randint(2**62, (self.examples,), generator=self.generator)
            items = list(zip(order.tolist(), seeds.tolist(), strict=True))
        chunks = [items[at : at + self.size] for at in range(0, len(items), self.size)]
        for batch in DataLoader(
            self.dataset,
            batch_sampler=chunks,
            num_workers=self.workers,
            generator=torch.Generator(),  # else it draws from the global random state
            pin_memory=self.device.type == "cuda",
        ):
            yield tuple(part.to(self.device, non_blocking=True) for part in batch)


def batches(
    dataset: TensorDataset | Pictures, size: int, *, workers: int = 0, **how
) -> Batches:
    """Return batches that stay on the device for tensors, and streamed ones for pictures.

    ``how`` is ``seed`` and ``device``; pictures of different shapes come one by one, whatever the ``size``,
    as far as they are shown plain.
    """
    if not isinstance(dataset, Pictures):
        return Batches(dataset, size, **how)
    alike = dataset.alike or dataset.learning
    return Streamed(dataset, size if alike else 1, workers=workers, **how)


def split(
    dataset: TensorDataset | Pictures, first: int, *, seed: int
) -> tuple[TensorDataset | Pictures, ...]:
    """Split a data set at random into two parts, the first with ``first`` examples.

    Raises
    ------
    ValueError
        If one of the parts would be empty.
    """
    if not 0 < first < len(dataset):
        raise ValueError(f"first must lie between 1 and {len(dataset) - 1}; got {first}")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    parts = order[:first], order[first:]
    if isinstance(dataset, Pictures):
        return tuple(dataset.subset(part) for part in parts)
    return tuple(
        TensorDataset(*(tensor[part] for tensor in dataset.tensors)) for part in parts
    )


def standardise(train: TensorDataset, *others: TensorDataset) -> tuple[TensorDataset, ...]:
    """Shift and scale the inputs of all parts so that those of ``train`` have mean 0 and deviation 1.

    One mean and one deviation for each channel (dimension 1), taken from ``train`` alone. A channel that
    never changes is only shifted.
    """
    pictures = train.tensors[0]
    dimensions = [d for d in range(pictures.dim()) if d != 1]
    mean = pictures.mean(dimensions, keepdim=True)
    deviation = pictures.std(dimensions, correction=0, keepdim=True)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return tuple(
        TensorDataset((part.tensors[0] - mean) / deviation, *part.tensors[1:])
        for part in (train, *others)
    )
