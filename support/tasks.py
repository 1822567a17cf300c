"""What networks are trained for: a loss, and what is measured beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex

from support.data.pictures import VOID
from support.records import Configuration

Measure = Callable[[Tensor, Tensor], Tensor]
KINDS = 128
"""More types of entities than there are."""


@dataclass(frozen=True)
class Task:
    """What a network is trained for.

    ``loss`` maps outputs and targets of a batch to the mean loss of its examples; each of ``metrics`` maps
    them to a sum over the examples, which is divided by their number at the end. What is no mean over examples
    is measured by ``gathered``: constructors of metrics of torchmetrics.
    """

    loss: Measure
    metrics: Mapping[str, Measure] = field(default_factory=dict)
    gathered: Mapping[str, Callable[[], Metric]] = field(default_factory=dict)


def _correct(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).sum()


def _among_five(outputs: Tensor, targets: Tensor) -> Tensor:
    best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
    return (best == targets[:, None]).sum()


def _pixels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the pixels that count; 0 where none does."""
    total = F.cross_entropy(outputs, targets, ignore_index=VOID, reduction="sum")
    return total / (targets != VOID).sum().clamp(min=1)


def _signal_to_noise(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the sum over pictures of the PSNR in decibels, for values in [0, 1]."""
    return (-10 * (outputs - targets).square().flatten(1).mean(1).log10()).sum()


classification = Task(F.cross_entropy, {"accuracy": _correct})
"""Cross-entropy and the share of right answers, of logits (N, classes) against classes (N,)."""
classification_top5 = Task(
    F.cross_entropy, {"accuracy": _correct, "top-5 accuracy": _among_five}
)
"""The same, and the share of examples whose class is among the five likeliest (errata ZH-14 to ZH-17)."""
super_resolution = Task(F.mse_loss, {"PSNR": _signal_to_noise})
"""Mean square error, and the mean over pictures of the PSNR in decibels (errata ZH-20, ZH-21)."""


def segmentation(classes: int) -> Task:
    """Cross-entropy of pixels and mean intersection over union (errata ZH-18, ZH-19).

    Of logits (N, classes, H, W) against classes (N, H, W); pixels of class 255 count in neither. The counts of
    the mean IoU are gathered over the whole data set; a class that occurs neither in the targets nor in the
    answers does not enter the mean.
    """

    def mean_iou() -> Metric:
        return MulticlassJaccardIndex(classes, ignore_index=VOID, validate_args=False)

    return Task(_pixels, gathered={"mean IoU": mean_iou})


class TokenAccuracy(Metric):
    """The share of tokens that got their tag, of outputs and targets as :data:`tagging` has them."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "tokens"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count the tokens of a batch."""
        self.right += (outputs.argmax(1) == targets[targets != VOID]).sum()
        self.tokens += len(outputs)

    def compute(self) -> Tensor:
        """Return the share."""
        return self.right / self.tokens


class EntityF1(Metric):
    """Harmonic mean of precision and recall of whole entities, as the shared task of CoNLL-2003 has it.

    Tags are 0 for no entity, 2 k - 1 for the first token of an entity of type k, and 2 k for those that go on
    (BIO). An entity is right if its first token, its last token and its type are. A tag that goes on where
    nothing of its type has begun begins an entity itself. 0 where nothing is found.
    """

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "found", "there"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count the entities of a batch."""
        counts = targets != VOID
        given = torch.where(counts, targets, 0)
        answers = torch.zeros_like(given)
        answers[counts] = outputs.argmax(1)
        ours, theirs = entities(answers), entities(given)
        self.right += torch.isin(ours, theirs).sum()
        self.found += len(ours)
        self.there += len(theirs)

    def compute(self) -> Tensor:
        """Return 2 precision recall / (precision + recall)."""
        return 2 * self.right / (self.found + self.there).clamp(min=1)


def entities(tags: Tensor) -> Tensor:
    """Return one number for each entity in tags (N, T), the same for entities of the same place and type."""
    line = F.pad(tags, (1, 1)).flatten()  # no entity reaches over the end of a sentence
    kind = (line + 1) // 2
    before, begins = F.pad(kind[:-1], (1, 0)), line % 2 == 1
    first = (kind > 0) & (begins | (before != kind))
    last = (kind > 0) & F.pad(first[1:] | (kind[1:] != kind[:-1]), (0, 1), value=True)
    start, end = first.nonzero()[:, 0], last.nonzero()[:, 0]
    return (start * len(line) + end) * KINDS + kind[start]


def _tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets[targets != VOID])


tagging = Task(_tokens, gathered={"accuracy": TokenAccuracy, "entity F1": EntityF1})
"""Cross-entropy of tokens, the share of right tags and the F1 of entities (erratum ME-5).

Of logits (tokens, classes), the sentences one after the other without the places that fill them up, against tags
(N, T), in which those places are 255. The loss is the mean over the tokens of a batch.
"""


TASKS: dict[str, Task | Callable[[int], Task]] = {
    "classification": classification,
    "classification top-5": classification_top5,
    "segmentation": segmentation,
    "super-resolution": super_resolution,
    "tagging": tagging,
}
"""Name in a configuration -> task, or what makes it for a number of classes."""


def task_of(configuration: Configuration) -> Task:
    """Return the task that a configuration names; classification where it names none."""
    task = TASKS[configuration.get("task", "classification")]
    return task if isinstance(task, Task) else task(configuration["classes"])
