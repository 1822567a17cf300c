"""Set the repository's address everywhere: ``make address URL=https://github.com/NAME/REPO``.

The old address is the one in ``_config.yml``. It is replaced in every text file of the repository, also
inside longer addresses, such as those of Colab.
"""

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"https://github\.com/([\w-]+/[\w.-]+?)(?:\.git)?/?")


def repository(address: str) -> str:
    """Return ``NAME/REPO`` of an address.

    Raises
    ------
    ValueError
        If it is not the address of a repository on GitHub.
    """
    match = ADDRESS.fullmatch(address.strip())
    if not match:
        raise ValueError(
            f"URL={address}: an address such as https://github.com/NAME/REPO is needed"
        )
    return match[1]


def files(root: Path = ROOT) -> list[Path]:
    """Return the files in git, and the new ones that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = {root / name for name in listed.split("\0") if name}
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def text_of(path: Path) -> str | None:
    """Return the text of a file with its line ends as they are, ``None`` if it is not text."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None


def current(root: Path = ROOT) -> str:
    """Return ``NAME/REPO`` as ``_config.yml`` says it."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return repository(config["repository"]["url"])


def replace(old: str, new: str, paths: list[Path]) -> dict[Path, int]:
    """Write ``NAME/REPO`` anew in these files; return how often, for those that changed."""
    # In github.com/NAME/REPO and in Colab's github/NAME/REPO, but not in the name of a longer repository.
    pattern = re.compile(
        r"(github(?:\.com)?/)" + re.escape(old) + r"(?![\w-]|\.(?!git\b)\w)"
    )
    changed = {}
    for path in paths:
        text, times = pattern.subn(rf"\g<1>{new}", text_of(path) or "")
        if times:
            path.write_bytes(text.encode("utf-8"))
            changed[path] = times
    return changed


def main(address: str, root: Path = ROOT) -> None:
    """Set the address and say what changed."""
    try:
        new = repository(address)
    except ValueError as error:
        sys.exit(str(error))
    old = current(root)
    if new == old:
        print(f"The address is https://github.com/{new} already.")
        return
    for path, times in replace(old, new, files(root)).items():
        print(f"{path.relative_to(root)}: {times}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "")
