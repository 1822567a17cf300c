"""Where the files of a data set are, and how they get there."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

with warnings.catch_warnings():  # its progress bar, which is not used, asks for a widget
    warnings.filterwarnings("ignore", message="IProgress not found")
    import pooch


class DataUnavailableError(OSError):
    """A file of a data set is missing or damaged and cannot be had; the message says what to do."""


def root(path: str | Path | None = None) -> Path:
    """Return the folder that holds the data sets.

    The first of these that is set: the argument, the variable ``SUPPORT_DATA``, a folder of the user's cache.
    The layout inside is torchvision's (``ROOT/MNIST/raw/...``), so that folders can be shared with it.
    """
    return Path(
        path or os.environ.get("SUPPORT_DATA") or pooch.os_cache("descent-lectures")
    ).expanduser()


def fetch(path: Path, md5: str, mirrors: Sequence[str]) -> Path:
    """Return ``path`` after making sure that it holds the file with this checksum.

    A file that is there and right is used as it is. Otherwise it is downloaded to a temporary file beside
    ``path``, checked, and moved into place in one step: nothing half-written is ever seen under its name,
    by this process or by another that downloads at the same time.

    Raises
    ------
    DataUnavailableError
        If no mirror gives the right file; it names the file, what was found, what was expected and the way out.
    """
    if path.is_file() and pooch.file_hash(path, alg="md5") == md5:
        return path
    found = (
        f"{path.stat().st_size} bytes with another checksum"
        if path.is_file()
        else "no such file"
    )
    failures = []
    for mirror in mirrors:
        try:
            pooch.retrieve(
                url=mirror + path.name,
                known_hash=f"md5:{md5}",
                fname=path.name,
                path=path.parent,
                downloader=_download,
            )
        except (OSError, ValueError) as error:  # no network; another file than expected
            failures.append(
                f"{mirror + path.name}: {type(error).__name__}: {str(error)[:200]}"
            )
        else:
            return path
    raise DataUnavailableError(
        f"{path}: {found}; expected the file with md5 {md5}, and it could not be downloaded.\n  "
        + "\n  ".join(failures)
        + f"\nDownload it from one of these addresses by other means, put it at {path}, or point the argument "
        "`root` or the variable SUPPORT_DATA at a folder that holds it."
    )


@contextlib.contextmanager
def unavailable(name: str, root: Path, inside: str) -> Iterator[None]:
    """Turn the errors of a library that downloads or reads a data set into one that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise DataUnavailableError(
            f"{name} is not in {root / inside}, or not whole, and could not be downloaded: "
            f"{type(error).__name__}: {str(error)[:300]}\nPut it there by other means, or point the argument "
            f"`root` or the variable SUPPORT_DATA at a folder that holds {inside}."
        ) from error


def _download(url: str, file: str, _: object) -> None:
    """Download to a temporary file of pooch's, which only its owner could read; a data folder may be shared."""
    pooch.HTTPDownloader(timeout=30)(url, file, None)
    os.chmod(file, 0o644)
