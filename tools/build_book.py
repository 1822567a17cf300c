"""Build the book: execute what changed, collect the verdicts, render the site with warnings as errors.

A page is executed again when its own code changes, and all of them when ``support/`` or the pins change:
jupyter-cache looks at the cells only, so that the cache is emptied then.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "_build" / ".jupyter_cache"
VERDICT = "application/vnd.descent.verdict+json"
ALL_CLAIMS = ROOT / "support" / "results" / "inventory" / "claims.csv"


def pages(root: Path = ROOT) -> list[Path]:
    """Return the notebooks of the book."""
    return sorted([*root.glob("lectures/*.ipynb"), *root.glob("notebooks/*.ipynb")])


def execution_key(root: Path = ROOT) -> str:
    """Return a hash of what the pages depend on besides their cells: the package, its results, the pins."""
    digest = hashlib.sha256(sys.version.encode())
    inside = [path for path in (root / "support").rglob("*") if path.suffix in {".py", ".csv", ".json"}]
    for path in sorted([*inside, root / "constraints.txt", root / "pyproject.toml"]):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def empty_stale_cache(root: Path = ROOT) -> None:
    """Remove what was executed and rendered with another package or other pins."""
    build, key = root / "_build", execution_key(root)
    stamp = build / "execution_key.txt"
    if not stamp.is_file() or stamp.read_text() != key:
        for stale in (build / ".jupyter_cache", build / ".doctrees", build / "html"):
            shutil.rmtree(stale, ignore_errors=True)
        build.mkdir(exist_ok=True)
        stamp.write_text(key)


def execute() -> dict[Path, nbformat.NotebookNode]:
    """Execute the pages that the cache does not hold, two at a time, and return all of them executed."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "SUPPORT_PROGRESS": "0"}
    cache = get_cache(CACHE)
    cache.change_cache_limit(10_000)
    for record in cache.list_project_records():
        cache.remove_nb_from_project(record.pk)
    for page in pages():
        cache.add_nb_to_project(str(page))
    result = load_executor("local-parallel", cache).run_and_cache(timeout=300)
    for record in cache.list_project_records():
        if record.traceback:
            print(f"\n{record.uri}\n{record.traceback}", file=sys.stderr)
    if result.errored or result.excepted:
        sys.exit(f"{len(result.errored) + len(result.excepted)} page(s) failed")
    return {
        Path(record.uri): cache.get_cache_bundle(cache.get_cached_project_nb(record.uri).pk).nb
        for record in cache.list_project_records()
    }


def verdicts(page: Path, executed: nbformat.NotebookNode) -> list[dict]:
    """Return the verdicts that an executed page recorded; each claim that it says it covers must be there."""
    recorded = [
        dict(output["data"][VERDICT])
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if VERDICT in output.get("data", {})
    ]
    source = nbformat.read(page, as_version=4)
    covered = {
        name for cell in source.cells for name in cell.metadata.get("covers", []) if name.startswith("C")
    }
    found = {verdict["claim"] for verdict in recorded}
    if covered != found:
        sys.exit(f"{page.name}: covers claims {sorted(covered)} but records verdicts on {sorted(found)}")
    return recorded


def write_claims(executed: dict[Path, nbformat.NotebookNode]) -> None:
    """Write ``book/claims.md`` from what the pages recorded."""
    import pandas as pd

    claims = pd.read_csv(ALL_CLAIMS, keep_default_na=False).set_index("id")
    rows: dict[str, list[str]] = {}
    for page in sorted(executed):
        title = next(line for line in executed[page].cells[0].source.splitlines() if line.startswith("# "))[2:]
        for verdict in verdicts(page, executed[page]):
            link = f"../{page.parent.name}/{page.stem}.html#claim-{verdict['claim']}"
            rows.setdefault(verdict["claim"], []).append(
                f"- **{verdict['outcome']}**: {verdict['evidence']} (<a href=\"{link}\">{title}</a>)"
            )
    lines = [
        "# Claims",
        "",
        "The five sources make 112 claims that can be tested. This page is generated at every build from the",
        "verdicts that the executed pages record; the criterion of each verdict stands in its page before the",
        f"result. So far {len(rows)} of {len(claims)} claims have been put to a test.",
        "",
    ]
    for claim, record in claims.iterrows():
        if claim in rows:
            lines += [f"## {claim}", "", f"{record['hypothesis']} *({record['source']})*", "", *rows[claim], ""]
    waiting = [claim for claim in claims.index if claim not in rows]
    lines += ["## Not yet tested", "", ", ".join(waiting) + ".", ""]
    target, text = ROOT / "book" / "claims.md", "\n".join(lines)
    if not target.is_file() or target.read_text() != text:
        target.write_text(text)


def render() -> None:
    """Render the site; any warning is an error."""
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", str(ROOT), "-W", "-n", "--keep-going", "--quiet"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit("the site could not be built without warnings")


def main() -> None:
    """Do all of it and say where the site is."""
    empty_stale_cache()
    write_claims(execute())
    render()
    print(f"\nOpen {ROOT / '_build' / 'html' / 'index.html'}")
    print("(for the search, serve the folder: python -m http.server -d _build/html)")


if __name__ == "__main__":
    main()
