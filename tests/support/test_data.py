"""Data sets, how their files are fetched, and mini-batches."""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pooch
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from support.data import (
    DATASETS,
    Batches,
    DataUnavailableError,
    cifar10,
    clutter,
    cluttered_digits,
    cluttered_mnist,
    digits,
    files,
    mnist,
    split,
    standardise,
)

cifar10_module = sys.modules["support.data.cifar10"]
mnist_module = sys.modules["support.data.mnist"]

pytestmark = pytest.mark.usefixtures("untouched_random_state")

# --- digits ---------------------------------------------------------------------------------------------------


def test_digits_are_all_pictures_of_scikit_learn_once():
    train, test = digits()
    assert (len(train), len(test)) == (1437, 360)
    assert train.tensors[0].shape[1:] == test.tensors[0].shape[1:] == (1, 8, 8)
    assert train.tensors[0].dtype == torch.float32
    assert train.tensors[1].dtype == torch.int64
    bunch = load_digits()
    theirs = sorted(
        (*picture.ravel(), label)
        for picture, label in zip(bunch.images, bunch.target, strict=True)
    )
    ours = sorted(
        (*(16 * picture).flatten().tolist(), label.item())
        for part in (train, test)
        for picture, label in part
    )
    assert ours == theirs


def test_digits_have_the_same_test_pictures_everywhere():
    train, test = digits()
    pixels = [
        (16 * part.tensors[0]).to(torch.uint8).numpy().tobytes() for part in (train, test)
    ]
    labels = [part.tensors[1].to(torch.uint8).numpy().tobytes() for part in (train, test)]
    found = [hashlib.md5(text).hexdigest() for text in pixels + labels]
    assert found == [
        "b170917a7f055462dbbdf6f679ef21d2",
        "0a605218831b3d59175e69866b6f8b20",
        "201534b562209e564af20c651adbf716",
        "6cedbb1a0879c5ee1e357e2f7efbd6ce",
    ]


@pytest.mark.parametrize("size", [8, 28, 32])
def test_digits_lie_between_0_and_1(size):
    for part in digits(size=size):
        assert part.tensors[0].shape[1:] == (1, size, size)
        assert part.tensors[0].min() == 0
        assert 0.8 < part.tensors[0].max() <= 1


def test_larger_digits_are_interpolated_bilinearly():
    small, large = (
        digits()[0].tensors[0][:5, 0].double(),
        digits(size=20)[0].tensors[0][:5, 0],
    )
    where = np.clip(
        (np.arange(20) + 0.5) * 8 / 20 - 0.5, 0, 7
    )  # middle of each new pixel in old pixels
    hat = torch.tensor(np.maximum(0, 1 - abs(where[:, None] - np.arange(8))))
    torch.testing.assert_close(large.double(), hat @ small @ hat.T, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [7, 0, -8])
def test_digits_below_8_pixels_are_refused(size):
    with pytest.raises(ValueError, match=f"8 pixels or more; got {size}"):
        digits(size=size)


# --- MNIST ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(data_root, tmp_path_factory):
    """Return torchvision's MNIST, unpacked in a folder of its own from the same archives."""
    root = tmp_path_factory.mktemp("torchvision")
    (root / "MNIST" / "raw").mkdir(parents=True)
    for name in mnist_module.MD5:
        (root / "MNIST" / "raw" / name).symlink_to(data_root / "MNIST" / "raw" / name)
    return [
        torchvision.datasets.MNIST(root, train=train, download=True)
        for train in (True, False)
    ]


@pytest.mark.parametrize("size", [28, 32])
def test_mnist_is_that_of_torchvision_pixel_by_pixel(data_root, theirs, size):
    border = (size - 28) // 2
    for ours, other in zip(mnist(data_root, size=size), theirs, strict=True):
        pictures, classes = ours.tensors
        assert pictures.shape == (len(other), 1, size, size)
        assert pictures.dtype == torch.float32
        inside = pictures[:, 0, border : size - border, border : size - border]
        assert torch.equal(inside, other.data.float() / 255)
        assert torch.equal(classes, other.targets)
        if border:
            assert pictures.abs().sum(dtype=torch.double) == inside.sum(
                dtype=torch.double
            )  # black outside


def test_mnist_is_found_through_the_variable(data_root, theirs):
    train, test = mnist()
    assert (len(train), len(test)) == (60_000, 10_000)
    assert torch.equal(test.tensors[1], theirs[1].targets)


@pytest.mark.parametrize("size", [0, 27, 29, 31, -28])
def test_mnist_of_odd_or_too_small_size_is_refused(size, tmp_path):
    with pytest.raises(ValueError, match=f"even number of pixels, 28 or more; got {size}"):
        mnist(tmp_path, size=size)


def test_names_of_configurations_lead_to_the_data_sets():
    assert {function.__name__ for function in DATASETS.values()} == set(DATASETS)
    assert DATASETS["cluttered_digits"] is cluttered_digits
    assert DATASETS["mnist"] is mnist


# --- cluttered MNIST ------------------------------------------------------------------------------------------


def _numbered(number: int, side: int = 12) -> torch.Tensor:
    """Return pictures of which each pixel is another whole number, so that its origin can be read from it."""
    return torch.arange(1.0, number * side * side + 1).view(number, 1, side, side)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(2, 9), st.integers(12, 40), st.integers(0, 5), st.integers(0, 2**31))
def test_clutter_is_what_the_recipe_says_picture_by_picture(number, size, pieces, seed):
    pictures = _numbered(number)
    canvas = clutter(pictures, size, pieces, generator=_seeded(seed))
    generator = _seeded(
        seed
    )  # the order of draws is part of the recipe: rows, columns, ...

    def draw(low, high):
        return torch.randint(low, high, (number,), generator=generator).tolist()

    expected = np.zeros((number, size, size))
    rows, columns = draw(0, size - 11), draw(0, size - 11)
    for k in range(number):
        expected[k, rows[k] : rows[k] + 12, columns[k] : columns[k] + 12] = pictures[k, 0]
    for _ in range(pieces):
        other, u, v = draw(1, number), draw(0, 5), draw(0, 5)
        rows, columns = draw(0, size - 7), draw(0, size - 7)
        for k in range(number):
            source = pictures[(k + other[k]) % number, 0].numpy()
            piece = source[u[k] : u[k] + 8, v[k] : v[k] + 8]
            place = expected[k, rows[k] : rows[k] + 8, columns[k] : columns[k] + 8]
            np.maximum(place, piece, out=place)
    np.testing.assert_array_equal(canvas[:, 0].numpy(), expected)


def test_the_digit_is_unaltered_where_no_piece_falls():
    pictures = _numbered(50)
    without = clutter(pictures, 60, 0, generator=_seeded(3))
    cluttered = clutter(pictures, 60, 4, generator=_seeded(3))
    for k in range(50):
        assert torch.equal(without[k][without[k] > 0], pictures[k].flatten())
    own = (pictures.flatten(1).min(1).values, pictures.flatten(1).max(1).values)
    low, high = (bound.view(-1, 1, 1, 1) for bound in own)
    changed = cluttered != without
    foreign = (cluttered < low) | (cluttered > high)
    assert foreign[changed].all()  # every change comes of another picture
    assert changed.flatten(1).sum(1).min() > 0
    assert changed.flatten(1).sum(1).max() <= 4 * 64


def test_places_and_pieces_are_uniform():
    pictures = torch.ones(4000, 1, 8, 8)
    where = clutter(pictures, 12, 0, generator=_seeded(0))[:, 0].flatten(1).argmax(1)
    counts = torch.stack([where // 12, where % 12]).flatten().bincount()
    assert len(counts) == 5
    assert abs(counts / 8000 - 0.2).max() < 0.02
    pieces = clutter(
        torch.cat([pictures[:1], 0 * pictures[1:3]]), 12, 1, generator=_seeded(0)
    )
    assert pieces[1:].amax((1, 2, 3)).tolist() in ([0, 1], [1, 0], [1, 1], [0, 0])


def test_the_same_seed_gives_the_same_pictures_and_another_others():
    (train, test), again = cluttered_digits(), cluttered_digits(seed=0)
    other = cluttered_digits(seed=1)
    assert torch.equal(train.tensors[0], again[0].tensors[0])
    assert torch.equal(test.tensors[0], again[1].tensors[0])
    assert not torch.equal(train.tensors[0], other[0].tensors[0])
    assert torch.equal(train.tensors[1], other[0].tensors[1])
    found = [
        hashlib.md5((255 * part.tensors[0]).round().byte().numpy())
        for part in (train, test)
    ]
    assert [one.hexdigest() for one in found] == [
        "4e7e6cfea806980b6f97ae1cd49500e9",
        "63e9ea8491b035012b2d6d5043857dd1",
    ]


@pytest.mark.parametrize("size", [60, 100])
def test_cluttered_digits_have_the_form_of_cluttered_mnist(size):
    for ours, plain in zip(cluttered_digits(size=size), digits(), strict=True):
        pictures, classes = ours.tensors
        assert pictures.shape == (len(plain), 1, size, size)
        assert (pictures.dtype, classes.dtype) == (torch.float32, torch.int64)
        assert torch.equal(classes, plain.tensors[1])
        assert pictures.min() == 0
        assert 0.8 < pictures.max() <= 1


@pytest.mark.parametrize("size", [60, 100])
def test_no_test_digit_is_in_the_training_part(monkeypatch, size):
    parts = [
        TensorDataset(torch.full((number, 1, 28, 28), value), torch.arange(number) % 10)
        for number, value in ((30, 0.25), (20, 0.75))
    ]
    module = sys.modules["support.data.cluttered_mnist"]
    monkeypatch.setattr(module, "mnist", lambda root: parts)
    for ours, plain, value in zip(
        cluttered_mnist(size=size), parts, (0.25, 0.75), strict=True
    ):
        assert ours.tensors[0].unique().tolist() == [0, value]
        assert torch.equal(ours.tensors[1], plain.tensors[1])
        assert (ours.tensors[0] > 0).flatten(1).sum(1).max() > 28 * 28


def test_cluttered_mnist_of_the_real_digits(data_root):
    began = time.perf_counter()
    cluttered = cluttered_mnist(data_root)
    assert time.perf_counter() - began < 60
    for ours, plain in zip(cluttered, mnist(data_root), strict=True):
        pictures, classes = ours.tensors
        assert pictures.shape == (len(plain), 1, 60, 60)
        assert (pictures.min(), pictures.max()) == (0, 1)
        assert torch.equal(classes, plain.tensors[1])
        more = pictures.mean() * 3600 / (plain.tensors[0].mean() * 784)
        assert (
            1.3 < more < 1.7
        )  # a piece has more white than a picture, whose border is black


@pytest.mark.parametrize("size", [0, 28, 59, 64, -60])
@pytest.mark.parametrize("dataset", [cluttered_mnist, cluttered_digits])
def test_a_canvas_of_another_size_is_refused(dataset, size, tmp_path):
    with pytest.raises(ValueError, match=f"60 or 100 pixels; got {size}"):
        dataset(tmp_path, size=size)


@pytest.mark.parametrize(
    ("pictures", "size", "pieces", "complaint"),
    [
        (torch.zeros(1, 1, 9, 9), 20, 1, "N at least 2"),
        (torch.zeros(3, 3, 9, 9), 20, 1, r"\(N, 1, h, w\)"),
        (torch.zeros(3, 1, 7, 9), 20, 1, "h, w at least 8"),
        (torch.zeros(3, 1, 9, 11), 10, 1, "11 or more; got 10"),
        (torch.zeros(3, 1, 9, 9), 20, -1, "0 or more; got -1"),
    ],
)
def test_clutter_refuses_what_it_cannot_place(pictures, size, pieces, complaint):
    with pytest.raises(ValueError, match=complaint):
        clutter(pictures, size, pieces, generator=_seeded(0))


# --- CIFAR-10 -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar10_root(data_root):
    """Folder with the real CIFAR-10; tests that need it are skipped where it is not."""
    if not (data_root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"{data_root} has no folder cifar-10-batches-py (torchvision's layout)")
    return data_root


def test_cifar10_is_that_of_torchvision_pixel_by_pixel(cifar10_root):
    for train, ours in zip((True, False), cifar10(cifar10_root), strict=True):
        theirs = torchvision.datasets.CIFAR10(cifar10_root, train=train)
        pictures, classes = ours.tensors
        assert pictures.shape == (50_000 if train else 10_000, 3, 32, 32)
        assert (pictures.dtype, classes.dtype) == (torch.float32, torch.int64)
        pixels = pictures.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1)
        assert torch.equal(pixels, torch.from_numpy(theirs.data))
        assert classes.tolist() == theirs.targets


def test_cifar10_is_found_through_the_variable(cifar10_root):
    train, test = cifar10()
    for part, each in ((train, 5000), (test, 1000)):
        assert part.tensors[1].bincount().tolist() == [each] * 10
        assert part.tensors[0].is_contiguous()
        assert (part.tensors[0].min(), part.tensors[0].max()) == (0, 1)


@pytest.mark.parametrize("size", [0, 28, 33, 64, -32])
def test_cifar10_of_another_size_is_refused(size, tmp_path):
    with pytest.raises(ValueError, match=f"32 pixels; got {size}"):
        cifar10(tmp_path, size=size)


# --- where files are ------------------------------------------------------------------------------------------


def test_root_is_the_argument_then_the_variable_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SUPPORT_DATA", str(tmp_path / "variable"))
    assert files.root(tmp_path / "argument") == tmp_path / "argument"
    assert files.root() == tmp_path / "variable"
    monkeypatch.delenv("SUPPORT_DATA")
    assert files.root() == pooch.os_cache("descent-lectures")


def test_root_expands_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SUPPORT_DATA", "~/variable")
    assert files.root() == tmp_path / "variable"
    assert files.root("~/argument") == tmp_path / "argument"


# --- how files get there --------------------------------------------------------------------------------------

RIGHT = bytes(range(256)) * 400
MD5 = hashlib.md5(RIGHT).hexdigest()


class Mirror(BaseHTTPRequestHandler):
    """Serves ``/BEHAVIOUR/NAME`` from the class attribute ``content``, well or badly."""

    content: dict[str, bytes]
    requests: list[str]
    together: threading.Barrier

    def do_GET(self):
        _, behaviour, name = self.path.split("/")
        self.requests.append(self.path)
        if behaviour == "missing":
            self.send_error(404)
            return
        body = self.content[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the other side has given up
            if behaviour == "right":
                self.wfile.write(body)
            elif behaviour == "wrong":
                self.wfile.write(bytes(len(body)))
            elif behaviour == "truncated":
                self.wfile.write(body[: len(body) // 2])
            elif behaviour == "stalled":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                time.sleep(2)
            elif behaviour in {"slow", "together"}:
                if behaviour == "together":
                    self.together.wait(60)
                for start in range(0, len(body), 10_000):
                    self.wfile.write(body[start : start + 10_000])
                    self.wfile.flush()
                    time.sleep(0.02)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror():
    """Start a server on this machine; gives its handler, which knows the requests, with ``url(behaviour)``."""

    class Handler(Mirror):
        content, requests, together = {"file.gz": RIGHT}, [], threading.Barrier(2)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    ).start()
    Handler.url = staticmethod(
        lambda behaviour: f"http://127.0.0.1:{server.server_port}/{behaviour}/"
    )
    yield Handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def nowhere():
    """Return the address of a port on which nobody listens: the same as no network."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


@pytest.fixture
def _impatient(monkeypatch):
    """Shorten the half minute after which a silent mirror counts as gone."""
    waits = pooch.HTTPDownloader
    monkeypatch.setattr(
        pooch, "HTTPDownloader", lambda timeout: waits(timeout=timeout / 100)
    )


def test_a_right_file_is_used_as_it_is(tmp_path, nowhere):
    path = tmp_path / "file.gz"
    path.write_bytes(RIGHT)
    before = path.stat()
    assert files.fetch(path, MD5, [nowhere]) == path
    assert path.stat() == before or path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("behaviour", ["right", "slow"])
def test_a_missing_file_is_downloaded_into_a_new_folder(tmp_path, mirror, behaviour):
    path = tmp_path / "MNIST" / "raw" / "file.gz"
    assert files.fetch(path, MD5, [mirror.url(behaviour)]) == path
    assert path.read_bytes() == RIGHT
    assert os.listdir(path.parent) == ["file.gz"]


@pytest.mark.parametrize("damaged", [RIGHT[:1000], RIGHT[::-1], b""])
def test_a_damaged_file_is_replaced(tmp_path, mirror, damaged):
    path = tmp_path / "file.gz"
    path.write_bytes(damaged)
    files.fetch(path, MD5, [mirror.url("right")])
    assert path.read_bytes() == RIGHT
    assert os.listdir(tmp_path) == ["file.gz"]


@pytest.mark.parametrize("behaviour", ["missing", "wrong", "truncated", "stalled"])
@pytest.mark.usefixtures("_impatient")
def test_the_second_mirror_is_tried_when_the_first_fails(tmp_path, mirror, behaviour):
    path = tmp_path / "file.gz"
    files.fetch(path, MD5, [mirror.url(behaviour), mirror.url("right")])
    assert mirror.requests == [f"/{behaviour}/file.gz", "/right/file.gz"]
    assert path.read_bytes() == RIGHT
    assert os.listdir(tmp_path) == ["file.gz"]


def test_the_second_mirror_is_left_alone_when_the_first_works(tmp_path, mirror):
    files.fetch(tmp_path / "file.gz", MD5, [mirror.url("right"), mirror.url("wrong")])
    assert mirror.requests == ["/right/file.gz"]


@pytest.mark.parametrize("behaviour", ["missing", "wrong", "truncated", "stalled"])
@pytest.mark.usefixtures("_impatient")
def test_bad_mirrors_leave_nothing_and_the_error_says_what_to_do(
    tmp_path, mirror, behaviour
):
    path = tmp_path / "file.gz"
    address = mirror.url(behaviour)
    with pytest.raises(DataUnavailableError) as caught:
        files.fetch(path, MD5, [address])
    for part in (
        str(path),
        "no such file",
        MD5,
        address + "file.gz",
        "SUPPORT_DATA",
        "`root`",
    ):
        assert part in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (None, "no such file"),
        (RIGHT[:7], "7 bytes"),
        (RIGHT[::-1], f"{len(RIGHT)} bytes"),
        (b"", "0 bytes"),
    ],
)
def test_without_network_the_error_says_what_was_found(tmp_path, nowhere, there, found):
    path = tmp_path / "file.gz"
    if there is not None:
        path.write_bytes(there)
    with pytest.raises(DataUnavailableError) as caught:
        files.fetch(path, MD5, [nowhere])
    for part in (str(path), found, MD5, nowhere, "SUPPORT_DATA"):
        assert part in str(caught.value)
    assert os.listdir(tmp_path) == ([] if there is None else ["file.gz"])
    assert there is None or path.read_bytes() == there


def test_a_downloaded_file_can_be_read_by_those_who_share_the_folder(tmp_path, mirror):
    path = tmp_path / "file.gz"
    old = os.umask(0o022)
    try:
        files.fetch(path, MD5, [mirror.url("right")])
    finally:
        os.umask(old)
    assert oct(path.stat().st_mode & 0o777) == oct(0o644)


def test_two_processes_that_download_at_once_both_get_the_right_file(tmp_path, mirror):
    path = tmp_path / "MNIST" / "raw" / "file.gz"
    script = (  # the module alone, without the package around it, which takes seconds to import
        "import importlib.util, sys, pathlib, hashlib;"
        "spec = importlib.util.spec_from_file_location('files', sys.argv[1]);"
        "files = importlib.util.module_from_spec(spec); spec.loader.exec_module(files);"
        "path = files.fetch(pathlib.Path(sys.argv[2]), sys.argv[3], [sys.argv[4]]);"
        "print(hashlib.md5(path.read_bytes()).hexdigest())"
    )
    arguments = [files.__file__, str(path), MD5, mirror.url("together")]
    command = [sys.executable, "-c", script, *arguments]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=90)[0].strip() for process in both] == [MD5, MD5]
    assert (
        mirror.requests == ["/together/file.gz"] * 2
    )  # the server answers only when both have asked
    assert os.listdir(path.parent) == ["file.gz"]


def _tiny_mnist() -> dict[str, bytes]:
    """Return the four files with three and two random pictures; their bytes are their own reference."""
    generator = np.random.default_rng(0)
    contents = {}
    for part, number in (("train", 3), ("t10k", 2)):
        count = number.to_bytes(4, "big")
        side = (28).to_bytes(4, "big")
        pixels = generator.integers(0, 256, number * 784, dtype=np.uint8).tobytes()
        labels = generator.integers(0, 10, number, dtype=np.uint8).tobytes()
        contents[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(
            b"\0\0\x08\x03" + count + 2 * side + pixels, mtime=0
        )
        contents[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(
            b"\0\0\x08\x01" + count + labels, mtime=0
        )
    return contents


@pytest.fixture
def tiny(monkeypatch, mirror):
    """Make MNIST a set of five pictures on the local mirror."""
    mirror.content = _tiny_mnist()
    sums = {name: hashlib.md5(text).hexdigest() for name, text in mirror.content.items()}
    monkeypatch.setattr(mnist_module, "MD5", sums)
    monkeypatch.setattr(mnist_module, "MIRRORS", (mirror.url("right"),))
    return mirror.content


@pytest.mark.parametrize("size", [28, 36])
def test_mnist_is_downloaded_and_read(tmp_path, tiny, size):
    border = (size - 28) // 2
    for part, dataset in zip(("train", "t10k"), mnist(tmp_path, size=size), strict=True):
        pixels = gzip.decompress(tiny[f"{part}-images-idx3-ubyte.gz"])[16:]
        labels = gzip.decompress(tiny[f"{part}-labels-idx1-ubyte.gz"])[8:]
        pictures = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28).astype(
            np.float32
        ) / np.float32(255)
        expected = np.pad(pictures, ((0, 0), (border, border), (border, border)))
        np.testing.assert_array_equal(dataset.tensors[0][:, 0].numpy(), expected)
        assert dataset.tensors[1].tolist() == list(labels)
    assert sorted(os.listdir(tmp_path / "MNIST" / "raw")) == sorted(tiny)


def test_mnist_without_network_names_the_missing_file(tmp_path, tiny, monkeypatch, nowhere):
    mnist(tmp_path)
    monkeypatch.setattr(mnist_module, "MIRRORS", (nowhere,))
    missing = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    missing.unlink()
    with pytest.raises(
        DataUnavailableError, match=mnist_module.MD5[missing.name]
    ) as caught:
        mnist(tmp_path)
    assert str(missing) in str(caught.value)
    assert len(os.listdir(missing.parent)) == 3


def _python_2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """Return the pickle of a batch as Python 2 wrote it, in the opcodes of the official files."""
    raw = pixels.tobytes()
    return (
        b"\x80\x02}(U\x06labels]("
        + b"".join(b"K" + bytes([k]) for k in labels)
        + b"eU\x04data"
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        b"M"
        + len(pixels).to_bytes(2, "little")
        + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(raw).to_bytes(4, "little") + raw + b"tbu."
    )


@pytest.fixture
def small(monkeypatch, mirror):
    """Make CIFAR-10 a set of six batches of two random pictures on the local mirror; gives what they hold."""
    generator = np.random.default_rng(0)
    batches = {
        name: (generator.integers(0, 256, (2, 3072), dtype=np.uint8), [k, 9 - k])
        for k, name in enumerate(cifar10_module.MD5)
    }
    contents = {name: _python_2_pickle(*batch) for name, batch in batches.items()}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in {"../outside": b"unwanted", **contents}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    name = "cifar-10-python.tar.gz"
    mirror.content = {name: archive.getvalue()}
    md5 = {key: hashlib.md5(content).hexdigest() for key, content in contents.items()}
    monkeypatch.setattr(cifar10_module, "MD5", md5)
    monkeypatch.setattr(
        cifar10_module, "ARCHIVE", (name, hashlib.md5(mirror.content[name]).hexdigest())
    )
    monkeypatch.setattr(cifar10_module, "MIRRORS", (mirror.url("right"),))
    return batches


def test_cifar10_is_downloaded_unpacked_and_read(tmp_path, small):
    root = tmp_path / "new"
    train, test = cifar10(root)
    names = list(small)
    for dataset, chosen in ((train, names[:5]), (test, names[5:])):
        pixels = np.concatenate([small[name][0] for name in chosen]).reshape(-1, 3, 32, 32)
        expected = pixels.astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(dataset.tensors[0].numpy(), expected)
        assert dataset.tensors[1].tolist() == [k for name in chosen for k in small[name][1]]
    assert sorted(os.listdir(root)) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    assert sorted(os.listdir(root / "cifar-10-batches-py")) == sorted(small)
    assert os.listdir(tmp_path) == [
        "new"
    ]  # a path in the archive that leads out is ignored


@pytest.mark.parametrize("damaged", [None, b"", b"damaged"])
def test_a_damaged_batch_of_cifar10_is_replaced_from_the_archive(
    tmp_path, small, mirror, monkeypatch, nowhere, damaged
):
    whole = cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.unlink() if damaged is None else path.write_bytes(damaged)
    monkeypatch.setattr(cifar10_module, "MIRRORS", (nowhere,))
    again = cifar10(tmp_path)
    assert len(mirror.requests) == 1
    for one, other in zip(whole, again, strict=True):
        assert all(map(torch.equal, one.tensors, other.tensors))


def test_right_files_of_cifar10_need_no_archive(tmp_path, small, monkeypatch, nowhere):
    cifar10(tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    monkeypatch.setattr(cifar10_module, "MIRRORS", (nowhere,))
    assert [len(part) for part in cifar10(tmp_path)] == [10, 2]


def test_cifar10_without_network_says_what_is_wrong_and_what_to_do(
    tmp_path, small, monkeypatch, nowhere
):
    cifar10(tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"damaged")
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    monkeypatch.setattr(cifar10_module, "MIRRORS", (nowhere,))
    with pytest.raises(DataUnavailableError) as caught:
        cifar10(tmp_path)
    for part in (
        str(tmp_path / "cifar-10-batches-py"),
        "data_batch_2, test_batch",
        str(tmp_path / "cifar-10-python.tar.gz"),
        nowhere,
        cifar10_module.ARCHIVE[1],
        "SUPPORT_DATA",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("wanted", [os.getcwd, eval, np.load])
def test_a_batch_of_cifar10_can_call_nothing_but_arrays(
    tmp_path, small, monkeypatch, wanted
):
    cifar10(tmp_path)
    forged = pickle.dumps({"data": wanted}, protocol=2)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(forged)
    md5 = cifar10_module.MD5 | {"test_batch": hashlib.md5(forged).hexdigest()}
    monkeypatch.setattr(cifar10_module, "MD5", md5)
    with pytest.raises(pickle.UnpicklingError, match="only arrays of numpy"):
        cifar10(tmp_path)


# --- parts ----------------------------------------------------------------------------------------------------


@given(st.integers(2, 30), st.data())
def test_split_puts_each_example_into_one_part(number, data):
    first, seed = data.draw(st.integers(1, number - 1)), data.draw(st.integers(0, 2**31))
    whole = TensorDataset(torch.arange(number), 10 * torch.arange(number))
    parts = split(whole, first, seed=seed)
    assert [len(part) for part in parts] == [first, number - first]
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed)).tolist()
    assert torch.cat([part.tensors[0] for part in parts]).tolist() == order
    assert all(torch.equal(part.tensors[1], 10 * part.tensors[0]) for part in parts)


@pytest.mark.parametrize("first", [0, -1, 5, 6])
def test_split_refuses_an_empty_part(first):
    with pytest.raises(ValueError, match=f"between 1 and 4; got {first}"):
        split(TensorDataset(torch.arange(5)), first, seed=0)


def test_standardise_takes_mean_and_deviation_of_each_channel_from_the_first_part():
    generator = np.random.default_rng(1)
    scale, shift = (
        np.array([1, 5, 0.01]).reshape(1, 3, 1, 1),
        np.array([0, -2, 7]).reshape(1, 3, 1, 1),
    )
    a, b = (generator.random((number, 3, 4, 5)) * scale + shift for number in (20, 6))
    parts = [TensorDataset(torch.tensor(x), torch.arange(len(x))) for x in (a, b)]
    ours = standardise(*parts)
    for x, part in zip((a, b), ours, strict=True):
        for c in range(3):
            mean = sum(a[:, c].ravel()) / 400
            deviation = (sum((a[:, c].ravel() - mean) ** 2) / 400) ** 0.5
            np.testing.assert_allclose(
                part.tensors[0][:, c], (x[:, c] - mean) / deviation, rtol=1e-9, atol=1e-9
            )
        assert part.tensors[1].tolist() == list(range(len(x)))
    assert [
        torch.equal(part.tensors[0], torch.tensor(x))
        for x, part in zip((a, b), parts, strict=True)
    ]


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7e4])
def test_standardise_only_shifts_a_channel_that_never_changes(value):
    pictures = torch.randn(1000, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures[:, 1] = value
    other = pictures[:3].clone()
    other[:, 1] = value + 2
    train, other = standardise(TensorDataset(pictures), TensorDataset(other))
    small = 1e-6 * max(1, abs(value))
    torch.testing.assert_close(
        train.tensors[0][:, 1], torch.zeros(1000, 8, 8), atol=small, rtol=0
    )
    torch.testing.assert_close(
        other.tensors[0][:, 1], torch.full((3, 8, 8), 2.0), atol=2 * small, rtol=0
    )


def test_standardise_works_on_vectors():
    (part,) = standardise(TensorDataset(torch.tensor([[1.0, 0], [3, 0], [5, 6]])))
    root = 1.5**0.5
    expected = torch.tensor([[-root, -(0.5**0.5)], [0, -(0.5**0.5)], [root, 2**0.5]])
    torch.testing.assert_close(part.tensors[0], expected)


# --- batches --------------------------------------------------------------------------------------------------


def _pairs(number: int) -> TensorDataset:
    return TensorDataset(torch.arange(number), 10 * torch.arange(number))


def _orders(batches: Batches, epochs: int) -> list[list[int]]:
    return [torch.cat([inputs for inputs, _ in batches]).tolist() for _ in range(epochs)]


@given(st.integers(1, 40), st.integers(1, 50), st.none() | st.integers(0, 2**31))
def test_an_epoch_has_each_example_once_and_only_its_last_batch_is_smaller(
    number, size, seed
):
    batches = Batches(_pairs(number), size, seed=seed)
    for _ in range(2):
        epoch = list(batches)
        full, rest = divmod(number, size)
        assert [len(inputs) for inputs, _ in epoch] == [size] * full + [rest] * (rest > 0)
        assert len(batches) == len(epoch)
        assert sorted(torch.cat([inputs for inputs, _ in epoch]).tolist()) == list(
            range(number)
        )
        assert all(torch.equal(targets, 10 * inputs) for inputs, targets in epoch)
    assert batches.examples == number


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_the_order_depends_on_the_seed_alone(seed, other):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(other)
        ours = _orders(Batches(_pairs(50), 7, seed=seed), 3)
    generator = torch.Generator().manual_seed(seed)
    assert ours == [torch.randperm(50, generator=generator).tolist() for _ in range(3)]


def test_the_order_differs_between_epochs_and_seeds():
    orders = _orders(Batches(_pairs(50), 7, seed=0), 5) + _orders(
        Batches(_pairs(50), 7, seed=1), 5
    )
    assert len({tuple(order) for order in orders}) == 10


def test_without_a_seed_the_order_is_that_of_the_data_set():
    assert _orders(Batches(_pairs(10), 3), 2) == [list(range(10))] * 2


@given(st.integers(0, 4), st.integers(0, 2**31))
def test_a_restored_state_goes_on_with_the_same_order(epochs, seed):
    batches, restored = (
        Batches(_pairs(20), 6, seed=seed),
        Batches(_pairs(20), 6, seed=seed + 1),
    )
    _orders(batches, epochs)
    state = batches.state_dict()
    coming = _orders(batches, 3)
    restored.load_state_dict(state)
    assert _orders(restored, 3) == coming


def test_the_state_without_a_seed_is_empty():
    batches = Batches(_pairs(3), 2)
    batches.load_state_dict(batches.state_dict())
    assert batches.state_dict() == {}


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_no_examples_are_refused(size):
    with pytest.raises(ValueError, match=f"positive; got {size}"):
        Batches(_pairs(3), size)


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        Batches(_pairs(0), 1)
