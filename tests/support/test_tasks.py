"""Losses and metrics against examples worked by hand, and runs that name their task."""

import itertools
import math
import random

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics.image import PeakSignalNoiseRatio

from support import models, optim, tasks
from support.data import (
    DATASETS,
    Batches,
    DataUnavailableError,
    conll2003,
    named_sentences,
)
from support.data.conll2003 import RARE, TAGS, encoded, read
from support.training import evaluate, train_one

pytestmark = pytest.mark.usefixtures("untouched_random_state")


def _without_seconds(outcome):
    return outcome.status, outcome.reason, [row[:4] for row in outcome.history]


def test_top_5_counts_the_examples_whose_class_is_among_the_five_likeliest():
    outputs = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [0, 9, 1, 8, 2, 7]])
    targets = torch.tensor([0, 0, 4])  # first; last of six; fourth
    metrics = tasks.classification_top5.metrics
    assert metrics["accuracy"](outputs, targets) == 1
    assert metrics["top-5 accuracy"](outputs, targets) == 2
    few = outputs[:, :3]
    assert metrics["top-5 accuracy"](few, torch.tensor([2, 2, 0])) == 3


def _pictures_of_classes(answers, classes):
    """Return logits whose largest entry is the answer, of shape (N, classes, H, W)."""
    return 10.0 * torch.nn.functional.one_hot(answers, classes).permute(0, 3, 1, 2)


def test_mean_iou_gathers_its_counts_over_all_pictures_and_leaves_out_the_border():
    targets = torch.tensor([[[0, 0, 1], [1, 255, 255]], [[0, 0, 0], [0, 0, 1]]])
    answers = torch.tensor([[[0, 1, 1], [1, 2, 2]], [[0, 0, 0], [0, 0, 0]]])
    outputs = _pictures_of_classes(answers, 4)
    model = nn.Identity()
    task = tasks.segmentation(4)
    measured = evaluate(model, Batches(TensorDataset(outputs, targets), 1), task)
    # class 0: 6 in common of 8; class 1: 2 of 4; classes 2 and 3 occur nowhere where it counts
    assert measured["mean IoU"] == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert set(measured) == {"loss", "mean IoU"}


def test_the_loss_of_a_segmentation_is_the_mean_over_the_pixels_that_count():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.double)
    targets = torch.randint(4, (2, 3, 5), generator=generator)
    targets[0, :2], targets[1, :, 0] = 255, 255
    probabilities = outputs.exp() / outputs.exp().sum(1, keepdim=True)
    by_hand = [
        -math.log(probabilities[n, targets[n, i, j], i, j])
        for n, i, j in itertools.product(range(2), range(3), range(5))
        if targets[n, i, j] != 255
    ]
    loss = tasks.segmentation(4).loss
    assert len(by_hand) == 5 + 12
    assert loss(outputs, targets).item() == pytest.approx(sum(by_hand) / len(by_hand))
    outputs.requires_grad_()
    nothing = loss(outputs, torch.full_like(targets, 255))
    nothing.backward()
    assert nothing == 0
    assert not outputs.grad.any()


def test_psnr_is_the_mean_over_pictures():
    targets = torch.zeros(2, 3, 4, 4, dtype=torch.double)
    outputs = targets + torch.tensor([0.005, 0.03]).sqrt().view(2, 1, 1, 1)
    batches = Batches(TensorDataset(outputs, targets), 2)
    measured = evaluate(nn.Identity(), batches, tasks.super_resolution)
    assert measured["loss"] == pytest.approx(0.0175)
    assert measured["PSNR"] == pytest.approx(19.12, abs=0.005)  # erratum ZH-21
    theirs = PeakSignalNoiseRatio(1.0, reduction="elementwise_mean", dim=(1, 2, 3))
    theirs.update(outputs, targets)
    assert measured["PSNR"] == pytest.approx(theirs.compute().item())
    assert -10 * math.log10(measured["loss"]) == pytest.approx(17.57, abs=0.005)


RUNS = {
    "classification top-5": dict(data="shapes", size=32, model="resnet18", classes=12),
    "segmentation": dict(
        data="shape_masks", size=32, model="fcn32s", classes=5, width=1 / 32
    ),
    "super-resolution": dict(data="shape_patches", size=16, model="espcn"),
    "tagging": dict(data="named_sentences", size=400, model="tagger", classes=9),
}


@pytest.mark.parametrize("task", RUNS)
def test_a_configuration_names_its_task_and_an_interrupted_run_goes_on(task, tmp_path):
    wanted = RUNS[task] | dict(
        task=task, validation=40, test=True, examples=24, batch=8, seed=1
    )
    wanted |= dict(optimizer="momentum", lr=0.01)
    whole = train_one(wanted | dict(epochs=2))
    metrics = {row[2] for row in whole.history}
    assert (
        metrics
        == {"loss"}
        | {
            "classification top-5": {"accuracy", "top-5 accuracy"},
            "segmentation": {"mean IoU"},
            "super-resolution": {"PSNR"},
            "tagging": {"accuracy", "entity F1"},
        }[task]
    )
    assert {row[1] for row in whole.history} == {"train", "validation", "test"}
    path = tmp_path / "checkpoint.pt"
    train_one(wanted | dict(epochs=1), path)
    resumed = train_one(wanted | dict(epochs=2), path)
    assert _without_seconds(resumed) == _without_seconds(whole)


def test_a_task_without_a_name_is_classification():
    assert tasks.task_of({}) is tasks.classification
    assert tasks.task_of({"task": "super-resolution"}) is tasks.super_resolution
    assert "mean IoU" in tasks.task_of({"task": "segmentation", "classes": 3}).gathered


# --- tagging --------------------------------------------------------------------------------------------------


def _entities(tags):
    """Return the entities of a sentence as (first, last, type), read tag by tag."""
    found, begun = [], None
    for place, tag in enumerate([*tags, "O"]):
        goes_on = begun is not None and tag == f"I-{begun[1]}"
        if begun is not None and not goes_on:
            found.append((begun[0], place - 1, begun[1]))
            begun = None
        if tag != "O" and not goes_on:
            begun = (place, tag[2:])
    return set(found)


def _padded(sentences):
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(sentence) for sentence in sentences],
        batch_first=True,
        padding_value=255,
    )


def test_entities_are_those_that_are_read_tag_by_tag():
    drawn = random.Random(0)
    for _ in range(300):
        given, answers = (
            [
                [drawn.choice([0, 0, 1, 2, 3, 4]) for _ in range(length)]
                for length in (6, 1, 4)
            ]
            for _ in range(2)
        )
        metric = tasks.EntityF1()
        logits = 5.0 * nn.functional.one_hot(
            torch.tensor([tag for part in answers for tag in part]), 9
        )
        metric.update(logits, _padded(given))
        ours, theirs = (
            [_entities([TAGS[tag] for tag in sentence]) for sentence in part]
            for part in (answers, given)
        )
        right = sum(len(a & b) for a, b in zip(ours, theirs, strict=True))
        number = sum(map(len, ours)) + sum(map(len, theirs))
        assert metric.compute().item() == pytest.approx(2 * right / max(number, 1))


def test_accuracy_of_tokens_and_f1_of_entities_by_hand():
    targets = _padded([[7, 8, 0, 1], [0, 5]])  # PER of two words, LOC; ORG
    answers = torch.tensor([7, 8, 0, 3, 0, 5])  # the LOC is called MISC
    outputs = 9.0 * nn.functional.one_hot(answers, 9)
    accuracy, f1 = tasks.TokenAccuracy(), tasks.EntityF1()
    for metric in (accuracy, f1):
        metric.update(outputs[:4], targets[:1])
        metric.update(outputs[4:], targets[1:, :2])
    assert accuracy.compute().item() == pytest.approx(5 / 6)
    assert f1.compute().item() == pytest.approx(
        2 / 3
    )  # two right, three found, three there
    nothing = tasks.EntityF1()
    nothing.update(torch.eye(9)[:1], torch.tensor([[0]]))
    assert nothing.compute() == 0


def test_the_tagger_is_an_lstm_on_each_sentence_alone():
    model = models.tagger((7,), classes=5, words=30, embedding=4, hidden=6, seed=0)
    sentences = [[3, 9, 4], [8, 1, 2, 7, 5], [6]]
    words = torch.zeros(3, 7, dtype=torch.long)
    for row, sentence in zip(words, sentences, strict=True):
        row[: len(sentence)] = torch.tensor(sentence)
    alone = [
        model.output(model.lstm(model.embedding(torch.tensor([sentence])))[0][0])
        for sentence in sentences
    ]
    torch.testing.assert_close(model(words), torch.cat(alone))
    whole = models.tagger(seed=0)
    assert sum(p.numel() for p in whole.parameters()) == 561_709
    with pytest.raises(ValueError, match=r"\(words in a sentence,\); got \(3, 32, 32\)"):
        models.tagger((3, 32, 32), seed=0)


@pytest.mark.parametrize("name", ["kfac", "shampoo", "sam", "lion"])
def test_the_methods_of_the_experiment_train_the_tagger(name):
    hyper = {
        "kfac": dict(lr=0.1, damping=0.03, unknown="ignore"),
        "shampoo": dict(lr=0.1, interval=10, block=128),  # of the embeddings
        "sam": dict(lr=0.3, rho=0.1),
        "lion": dict(lr=0.001),
    }[name]
    outcome = train_one(
        dict(data="named_sentences", size=400, model="tagger", task="tagging")
        | dict(validation=0, examples=300, batch=10, epochs=2, seed=0, optimizer=name)
        | hyper
    )
    losses = [row[3] for row in outcome.history if row[1:3] == ("train", "loss")]
    assert outcome.status == "finished"
    assert losses[1] < 0.9 * losses[0]
    assert name in optim.OPTIMIZERS


CONLL = """EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC

-DOCSTART- -X- O O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
Paris NNP B-NP I-LOC
Rome NNP B-NP B-LOC
1996 CD I-NP O
"""


def test_a_file_of_the_shared_task_is_read_and_its_tags_become_bio(tmp_path):
    path = tmp_path / "eng.train"
    path.write_text(CONLL, encoding="utf-8")
    assert list(read(path)) == [
        [("EU", "B-ORG"), ("rejects", "O"), ("German", "B-MISC")],
        [
            ("Peter", "B-PER"),
            ("Blackburn", "I-PER"),
            ("Paris", "B-LOC"),
            ("Rome", "B-LOC"),
            ("1996", "O"),
        ],
    ]


def test_rare_words_are_told_apart_by_their_form():
    train = [[(word, "O")] for word in ("the", "the", "cat", "a")]
    test = [[(word, "O") for word in ("the", "UN", "Rome", "1,5", "dog", "a", "cat", "+")]]
    _, part = encoded(train, test, size=1 + len(RARE) + 2)  # the; a before cat
    number = {word: 1 + place for place, word in enumerate(RARE)}
    assert part.tensors[0][0].tolist() == [
        5,
        number["<CAPITALS>"],
        number["<Capital>"],
        number["<number>"],
        number["<small>"],
        6,
        number["<small>"],
        number["<small>"],
    ]
    with pytest.raises(ValueError, match="more than 4 words; got 4"):
        encoded(train, test, size=4)


def test_generated_sentences_have_entities_of_all_types_and_learnable_ends():
    train, test = named_sentences()
    assert (len(train), len(test)) == (800, 200)
    for part in (train, test):
        words, tags = part.tensors
        assert torch.equal(words == 0, tags == 255)
        assert words.max() < 400
        assert set(tags[tags != 255].tolist()) == set(range(9))
    again, _ = named_sentences()
    assert torch.equal(again.tensors[0], train.tensors[0])


def test_conll2003_has_the_sentences_and_entities_of_the_shared_task(data_root):
    if not (data_root / "conll2003").is_dir():
        pytest.skip("SUPPORT_DATA holds no conll2003")
    parts = conll2003(data_root)
    assert [len(part) for part in parts] == [14_041, 3250]
    assert [(part.tensors[1] != 255).sum() for part in parts] == [203_621, 51_362]
    counted = [[7140, 3438, 6321, 6600], [1837, 922, 1341, 1842]]
    for part, numbers in zip(parts, counted, strict=True):
        assert [(part.tensors[1] == 2 * k - 1).sum() for k in range(1, 5)] == numbers
        assert torch.equal(part.tensors[0] == 0, part.tensors[1] == 255)


def test_a_missing_conll2003_is_named_with_what_to_do(tmp_path):
    with pytest.raises(DataUnavailableError, match=r"agreement[\s\S]*named_sentences"):
        conll2003(tmp_path)
    assert DATASETS["conll2003"] is conll2003
