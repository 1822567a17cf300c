"""Pictures read from files when they are asked for: data sets, views, and how they are streamed."""

import collections
import math
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.transforms.v2 import functional as views

from support.data import (
    DATASETS,
    Batches,
    DataUnavailableError,
    Streamed,
    batches,
    div2k,
    imagenet100,
    imagenette,
    shape_masks,
    shape_patches,
    shapes,
    split,
    voc2012,
)
from support.data.imagenet import CLASSES
from support.data.pictures import (
    DEVIATION,
    MEAN,
    VOID,
    Classified,
    Masked,
    Pictures,
    Reduced,
)
from support.data.shapes import Drawn

pytestmark = pytest.mark.usefixtures("untouched_random_state")

GENERATED = {"shapes": shapes, "shape_masks": shape_masks, "shape_patches": shape_patches}


class Numbered:
    """Pictures of one value each, which is their index, and a record of what was read."""

    def __init__(self, number: int, side: int = 6) -> None:
        self.number, self.side, self.read = number, side, []

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return torch.full((3, self.side, self.side), index, dtype=torch.uint8), index


def _value(picture, target):
    return picture[0, 0, 0].long().as_subclass(torch.Tensor), torch.tensor(target)


def _drawn(picture, target):
    return torch.rand(()), torch.tensor(target)


def _numbered(number: int, **more) -> Pictures:
    return Pictures(Numbered(number), _value, _drawn, **more)


# --- the data set ---------------------------------------------------------------------------------------------


def test_a_subset_and_its_subset_hold_the_examples_asked_for():
    part = _numbered(10).subset(torch.tensor([7, 3, 5, 1])).subset(torch.tensor([2, 0]))
    assert [part[i][1].item() for i in range(len(part))] == [5, 7]


def test_split_parts_pictures_as_it_parts_tensors():
    tensors = TensorDataset(torch.arange(20), torch.arange(20))
    for ours, theirs in zip(
        split(_numbered(20), 6, seed=3), split(tensors, 6, seed=3), strict=True
    ):
        assert [ours[i][1].item() for i in range(len(ours))] == theirs.tensors[0].tolist()


def test_what_a_view_draws_follows_from_the_seed_of_the_example_alone():
    learning = _numbered(4).to_learn_from()
    first, again, other = (learning[2, seed][0].item() for seed in (5, 5, 6))
    assert first == again != other
    assert _numbered(4)[2, 5][0] == 2  # the plain view draws nothing


def test_each_picture_is_learned_from_as_often_as_the_data_set_says():
    learning = _numbered(3, repeat=4).to_learn_from()
    counted = collections.Counter(learning[i, i][1].item() for i in range(len(learning)))
    assert counted == {0: 4, 1: 4, 2: 4}
    assert len(_numbered(3, repeat=4)) == 3


def test_a_picture_is_read_once_as_far_as_the_budget_goes():
    each = 3 * 6 * 6  # bytes
    pictures = _numbered(4, budget=2 * each)
    parts = [pictures, pictures.subset(torch.arange(4)), pictures.to_learn_from()]
    for part in parts:
        for index in range(4):
            part[index]
    assert collections.Counter(pictures.source.read) == {0: 1, 1: 1, 2: 3, 3: 3}


# --- views ----------------------------------------------------------------------------------------------------


def _photograph(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def _standardised(picture: torch.Tensor) -> torch.Tensor:
    return (picture / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[
        :, None, None
    ]


def test_a_classified_picture_is_judged_in_its_middle():
    picture = _photograph(64, 80)
    (inputs, target), _ = Pictures([(picture, 7)] * 2, Classified(56, augment=False), None)
    smaller = views.resize(picture, [64], antialias=True)  # 56 * 8 / 7: as it is
    torch.testing.assert_close(inputs, _standardised(smaller[:, 4:60, 12:68]))
    assert target == 7
    assert target.dtype == torch.int64


def test_a_masked_picture_is_judged_whole_and_learned_from_in_crops_with_its_mask():
    mask = torch.arange(40 * 50).view(40, 50) % 251
    picture = mask.repeat(3, 1, 1).to(torch.uint8)  # so that the crop can be read from it
    source = [(picture, mask.to(torch.uint8))]
    data = Pictures(source, Masked(24, augment=False), Masked(24, augment=True))
    inputs, target = data[0]
    torch.testing.assert_close(inputs, _standardised(picture))
    assert torch.equal(target, mask)
    assert target.dtype == torch.int64
    crops = [data.to_learn_from()[0, seed] for seed in range(20)]
    for inputs, target in crops:
        assert inputs.shape == (3, 24, 24)
        torch.testing.assert_close(inputs, _standardised(target.repeat(3, 1, 1)))
    flips = sum((target[0, 1] - target[0, 0]).item() in (-1, 250) for _, target in crops)
    assert 4 <= flips <= 16


def test_a_picture_smaller_than_the_crop_is_filled_up_with_pixels_that_do_not_count():
    source = [(_photograph(10, 30), torch.ones(10, 30, dtype=torch.uint8))]
    learning = Pictures(source, None, Masked(20, augment=True)).to_learn_from()
    inputs, target = learning[0, 0]
    assert inputs.shape == (3, 20, 20)
    assert set(target.unique().tolist()) == {1, VOID}
    assert (target == 1).sum() == 10 * 20


def test_a_picture_is_reduced_as_pillow_does_it():
    picture = _photograph(37, 50)
    small, large = Pictures([(picture, None)], Reduced(16, augment=False), None)[0]
    assert torch.equal(large, picture[:, :36, :48] / 255)
    for channel in range(3):
        image = Image.fromarray(picture[channel, :36, :48].float().numpy())
        theirs = np.asarray(image.resize((12, 9), Image.BICUBIC)).clip(0, 255) / 255
        torch.testing.assert_close(
            small[channel], torch.tensor(theirs), atol=1e-5, rtol=0, check_dtype=False
        )


def test_patches_have_their_size_and_come_from_the_picture():
    picture = torch.arange(40 * 50).view(40, 50).repeat(3, 1, 1) % 256
    source = [(picture.to(torch.uint8), None)]
    learning = Pictures(source, None, Reduced(16, augment=True)).to_learn_from()
    turns = set()
    for seed in range(20):
        small, large = learning[0, seed]
        assert (small.shape, large.shape) == ((3, 4, 4), (3, 16, 16))
        steps = [(large * 255)[0, 0, 1] - (large * 255)[0, 0, 0]]
        steps += [(large * 255)[0, 1, 0] - (large * 255)[0, 0, 0]]
        right, down = (round(step.item()) % 256 for step in steps)
        assert right in (1, 255)
        assert down in (50, 206)
        turns.add((right, down))
    assert len(turns) == 4
    with pytest.raises(ValueError, match="multiple of 4 pixels; got 18"):
        Reduced(18, augment=True)


# --- batches --------------------------------------------------------------------------------------------------


def _targets(streamed: Batches) -> list[int]:
    return [value for _, targets in streamed for value in targets.tolist()]


def test_streamed_pictures_come_in_the_order_of_resident_ones():
    tensors = TensorDataset(torch.arange(11), torch.arange(11))
    resident, streamed = (batches(part, 4, seed=2) for part in (tensors, _numbered(11)))
    assert isinstance(streamed, Streamed)
    assert not isinstance(resident, Streamed)
    assert (len(streamed), streamed.examples, streamed.shape) == (3, 11, ())
    assert _targets(streamed) == _targets(resident)
    first, second = _targets(streamed), _targets(streamed)
    assert sorted(first) == sorted(second) == list(range(11))
    assert first != second
    assert _targets(batches(_numbered(11), 4)) == list(range(11))


def test_what_is_streamed_depends_neither_on_workers_nor_on_an_interruption():
    def epochs(streamed, number):
        return [torch.cat([part for part, _ in streamed]).tolist() for _ in range(number)]

    learning = _numbered(11).to_learn_from()
    whole = epochs(Streamed(learning, 4, seed=2), 3)
    assert len({tuple(epoch) for epoch in whole}) == 3
    assert epochs(Streamed(learning, 4, seed=2, workers=2), 1) == whole[:1]
    begun = Streamed(learning, 4, seed=2)
    epochs(begun, 2)
    resumed = Streamed(learning, 4, seed=99)
    resumed.load_state_dict(begun.state_dict())
    assert epochs(resumed, 1) == whole[2:]
    other = Streamed(learning, 4, seed=2).reseeded(3)
    assert epochs(other, 1) == epochs(Streamed(learning, 4, seed=3), 1)


def test_pictures_of_different_shapes_are_judged_one_by_one():
    different = _numbered(5, alike=False)
    assert batches(different, 100).size == 1
    assert batches(different.to_learn_from(), 3, seed=0).size == 3
    with pytest.raises(ValueError, match="positive; got 0"):
        batches(_numbered(5), 0)
    with pytest.raises(ValueError, match="the data set is empty"):
        batches(_numbered(5).subset(torch.arange(0)), 3)


# --- generated pictures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pictures_are_the_same_every_time_and_no_two_are_alike(name):
    (train, test), (again, _) = GENERATED[name](size=32), GENERATED[name](size=32)
    assert (len(train), len(test)) == (256, 64)
    for ours, theirs in zip(train[5], again[5], strict=True):
        assert torch.equal(ours, theirs)
    pictures = {part[i][0].numpy().tobytes() for part in (train, test) for i in range(40)}
    assert len(pictures) == 80


def test_all_twelve_classes_of_shapes_occur_in_both_parts():
    for part in shapes(size=16):
        assert len(part.classes) == 12
        assert {part[i][1].item() for i in range(len(part))} == set(range(12))


def test_the_mask_of_a_shape_is_where_the_shape_is():
    for seed in range(12):
        picture, mask = Drawn(48, range(seed, seed + 1), "mask")[0]
        _, classes = Drawn(48, range(seed, seed + 1), "class")[0]
        kind, colour = divmod(classes, 3)
        assert set(mask.unique().tolist()) == {0, kind + 1, VOID}
        strongest = picture.float()[:, mask == kind + 1].mean(1).argmax().item()
        assert strongest == colour
        share = (mask == kind + 1).double().mean().item()
        assert 0.02 < share < 0.5


# --- data sets from files -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sample(data_root):
    """Folder with samples of VOC2012, DIV2K and Imagenette."""
    folders = ["VOCdevkit/VOC2012", "DIV2K", "imagenette-160"]
    missing = [name for name in folders if not (data_root / name).is_dir()]
    if missing:
        pytest.skip(f"SUPPORT_DATA holds no {', '.join(missing)}")
    return data_root


def test_the_hundred_classes_are_the_first_of_imagenet():
    assert len(CLASSES) == len(set(CLASSES)) == 100
    assert list(CLASSES) == sorted(CLASSES)
    assert (CLASSES[0], CLASSES[-1]) == ("n01440764", "n01855672")  # tench, goose


def _imagenet(folder, classes):
    for part in ("train", "val"):
        for number, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            image = Image.new("RGB", (20, 30), (number, 0, 0))
            image.save(folder / part / name / "picture.JPEG")


@pytest.mark.parametrize("inside", ["", "imagenet"])
def test_imagenet100_takes_the_first_hundred_of_all_classes_in_their_order(
    tmp_path, inside
):
    _imagenet(tmp_path / inside, [*CLASSES, "n01855673", "n02", "a_folder_of_mine"])
    train, val = imagenet100(tmp_path, size=14)
    assert len(train) == len(val) == 100
    assert train.classes == CLASSES
    assert [val[i][1].item() for i in range(100)] == list(range(100))
    assert val[3][0].shape == (3, 14, 14)


def test_an_imagenet_without_a_class_is_refused_with_what_to_do(tmp_path):
    _imagenet(tmp_path, CLASSES[:99])
    with pytest.raises(DataUnavailableError, match=r"1 of the 100 .*n01855672") as caught:
        imagenet100(tmp_path)
    for word in ("registration", "SUPPORT_DATA", "imagenette"):
        assert word in str(caught.value)


def test_imagenette_is_read_as_torchvision_reads_it(sample):
    train, val = imagenette(sample, size=32)
    assert (len(train), len(val)) == (880, 240)
    assert len(train.classes) == 10
    assert train.classes[0] == "n01440764"
    counted = collections.Counter(target for _, target in train.source.samples)
    assert counted == dict.fromkeys(range(10), 88)
    inputs, target = train[100]
    assert inputs.shape == (3, 32, 32)
    assert target == 1


def test_voc2012_gives_whole_pictures_with_the_classes_of_their_pixels(sample):
    train, val = voc2012(sample, size=64)
    assert (len(train), len(val)) == (80, 68)
    assert len(val.classes) == 21
    for index in range(5):
        inputs, target = val[index]
        mask = np.asarray(Image.open(val.source.masks[index]))
        assert torch.equal(target, torch.tensor(mask).long())
        assert inputs.shape == (3, *mask.shape)
    inputs, target = train.to_learn_from()[0, 1]
    assert (inputs.shape, target.shape) == ((3, 64, 64), (64, 64))


def test_div2k_gives_photographs_and_patches_of_them(sample):
    train, val = div2k(sample, size=64)
    assert (len(train), len(val)) == (16, 16)
    assert len(train.to_learn_from()) == 256
    small, large = val[3]
    assert (small.shape, large.shape) == ((3, 128, 128), (3, 512, 512))
    pixels = np.asarray(Image.open(sample / "DIV2K" / "valid_HR" / "03.png"))
    assert torch.equal(large, torch.tensor(pixels).permute(2, 0, 1) / 255)
    error = (views.resize(small, [512, 512]) - large).square().mean().item()
    assert 15 < -10 * math.log10(error) < 40


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (imagenette, ["imagenette2-160"]),
        (voc2012, ["VOCdevkit/VOC2012"]),
        (div2k, ["DIV2K_train_HR.zip", "md5"]),
    ],
)
def test_what_cannot_be_downloaded_is_named_with_what_to_do(
    tmp_path, monkeypatch, dataset, names
):
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy")
    with pytest.raises(DataUnavailableError) as caught:
        dataset(tmp_path)
    for word in (*names, "SUPPORT_DATA"):
        assert word in str(caught.value)


def test_a_downloaded_archive_of_div2k_is_unpacked_into_its_place(tmp_path, monkeypatch):
    module = sys.modules["support.data.div2k"]

    def fetch(path, md5, mirrors):
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.stem
        assert md5 == module.MD5[name]
        Image.new("RGB", (40, 24), (9, 8, 7)).save(path.parent / "one.png")
        with zipfile.ZipFile(path, "w") as file:
            file.write(path.parent / "one.png", f"{name}/0001.png")
        return path

    monkeypatch.setattr(module.files, "fetch", fetch)
    train, val = div2k(tmp_path, size=16)
    assert (len(train), len(val)) == (1, 1)
    assert val[0][1].shape == (3, 24, 40)
    left = {path.name for path in (tmp_path / "DIV2K").iterdir() if path.is_dir()}
    assert left == {"DIV2K_train_HR", "DIV2K_valid_HR"}


def test_names_of_configurations_lead_to_the_data_sets():
    for function in (imagenet100, imagenette, voc2012, div2k, *GENERATED.values()):
        assert DATASETS[function.__name__] is function
