"""What all tests of the package share: one thread, no proxies, no progress bars."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("support", deadline=None, max_examples=40)
settings.load_profile("support")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("SUPPORT_PROGRESS", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def untouched_random_state():
    """Fail a test that draws from the global random state or seeds it."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "the global random state has changed"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with the real MNIST; tests that need it are skipped where SUPPORT_DATA does not name one."""
    if not os.environ.get("SUPPORT_DATA"):
        pytest.skip(
            "SUPPORT_DATA is not set: it must name a folder with MNIST/raw/*.gz (torchvision's layout)"
        )
    return Path(os.environ["SUPPORT_DATA"]).expanduser()
