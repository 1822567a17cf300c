"""Build the book: execute what changed, write the generated pages, render the site with warnings as errors.

A page is executed again when its own code changes, and all of them when ``support/`` or the pins change:
jupyter-cache looks at the cells only, so that the cache is emptied then.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import nbformat
import pandas as pd
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from jupyter_cache.executors.utils import ExecutionResult, single_nb_execution

from tools import (
    errata_page,
    glossary_page,
    map_page,
    optimizers_page,
    results_page,
    sources_page,
    update_rules_page,
)

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "_build" / ".jupyter_cache"
VERDICT = "application/vnd.descent.verdict+json"
ALL_CLAIMS = ROOT / "support" / "results" / "inventory" / "claims.csv"
QUIET = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "SUPPORT_PROGRESS": "0"}
TIMEOUT = 300  # seconds that one cell may take
FROM_OUTPUTS = (
    "claims",
    "results",
)  # pages of book/ that are made from what the others computed
GENERATED = {  # and those that need no execution
    "errata": errata_page.text,
    "glossary": glossary_page.text,
    "map": map_page.text,
    "optimizers": optimizers_page.text,
    "sources": sources_page.text,
    "update_rules": update_rules_page.text,
}
WORKERS = min(4, os.cpu_count() or 1)  # each holds a kernel with torch, about 0.6 GB


def pages(root: Path = ROOT) -> list[Path]:
    """Return the notebooks of the book."""
    return sorted([*root.glob("lectures/*.ipynb"), *root.glob("notebooks/*.ipynb")])


def execution_key(root: Path = ROOT) -> str:
    """Return a hash of what the pages depend on besides their cells: the package, its results, the pins."""
    digest = hashlib.sha256(sys.version.encode())
    inside = [
        path
        for path in (root / "support").rglob("*")
        if path.suffix in {".py", ".csv", ".json"}
    ]
    for path in sorted([*inside, root / "constraints.txt", root / "pyproject.toml"]):
        digest.update(str(path.relative_to(root)).encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
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


def execute(chosen: Iterable[Path] | None = None) -> dict[Path, nbformat.NotebookNode]:
    """Execute the pages (all, or the chosen ones) that the cache does not hold, and return them executed."""
    os.environ |= QUIET
    cache = get_cache(CACHE)
    cache.change_cache_limit(10_000)
    chosen = pages() if chosen is None else list(chosen)
    notebooks = {page: nbformat.read(page, as_version=4) for page in chosen}
    waiting = {page: book for page, book in notebooks.items() if not is_cached(cache, book)}
    if waiting:
        print(f"Executing {len(waiting)} of {len(notebooks)} page(s)", flush=True)
        execute_into(cache, waiting)
    return {
        page: cache.merge_match_into_notebook(book, cell_meta=())[1]
        for page, book in notebooks.items()
    }


def is_cached(cache: JupyterCacheAbstract, notebook: nbformat.NotebookNode) -> bool:
    """Tell whether the cache holds these cells executed."""
    try:
        cache.match_cache_notebook(notebook)
    except KeyError:
        return False
    return True


def execute_into(
    cache: JupyterCacheAbstract, notebooks: dict[Path, nbformat.NotebookNode]
) -> None:
    """Execute notebooks, a few at a time, and cache them; stop the build if one raises an error."""
    failed = []
    with ProcessPoolExecutor(WORKERS) as pool:
        running = {
            pool.submit(execute_one, page, book): page for page, book in notebooks.items()
        }
        for done in as_completed(running):
            page, result = running[done], done.result()
            print(f"  {page.relative_to(ROOT)}: {result.time:.0f} s", flush=True)
            if result.exc_string:
                failed.append(page.name)
                plain = re.sub(r"\x1b\[[\d;]*m", "", result.exc_string)
                print(f"\n{page.relative_to(ROOT)}\n{plain}", file=sys.stderr)
            else:
                bundle = CacheBundleIn(
                    result.nb, str(page), data={"execution_seconds": result.time}
                )
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    if failed:
        sys.exit(f"{len(failed)} page(s) failed: {', '.join(sorted(failed))}")


def execute_one(page: Path, notebook: nbformat.NotebookNode) -> ExecutionResult:
    """Execute one notebook in its own folder."""
    result = single_nb_execution(
        notebook,
        cwd=str(page.parent),
        timeout=TIMEOUT,
        allow_errors=False,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
    )
    result.err = None  # it cannot be sent between processes; its text can
    return result


def verdicts(page: Path, executed: nbformat.NotebookNode) -> list[dict]:
    """Return the verdicts that an executed page recorded; each claim that it says it covers must be there."""
    recorded = [
        dict(output["data"][VERDICT])
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if VERDICT in output.get("data", {})
    ]
    covered = {
        name
        for cell in executed.cells
        for name in cell.metadata.get("covers", [])
        if re.fullmatch(r"C\d+", name)
    }
    found = {verdict["claim"] for verdict in recorded}
    if covered != found:
        sys.exit(
            f"{page.name}: covers claims {sorted(covered)} but records verdicts on {sorted(found)}"
        )
    return recorded


def write_claims(executed: dict[Path, nbformat.NotebookNode]) -> None:
    """Write ``book/claims.md`` from what the pages recorded."""
    claims = pd.read_csv(ALL_CLAIMS, keep_default_na=False).set_index("id")
    rows: dict[str, list[str]] = {}
    tested = set()
    for page in sorted(executed):
        title = title_of(executed[page])
        for verdict in verdicts(page, executed[page]):
            link = f"../{page.parent.name}/{page.stem}.html#claim-{verdict['claim']}"
            evidence = re.sub(r"([\\`*_{}\[\]<>$|])", r"\\\1", verdict["evidence"])
            rows.setdefault(verdict["claim"], []).append(
                f'- **{verdict["outcome"]}**: {evidence}. (<a href="{link}">{title}</a>)'
            )
            if not verdict["outcome"].startswith("not tested"):
                tested.add(verdict["claim"])
    lines = [
        "# Claims",
        "",
        f"The five sources make {len(claims)} claims that can be tested. This page is generated at every build",
        "from the verdicts that the executed pages record; the criterion of each verdict stands in its page",
        f"before the result. So far {len(tested)} of {len(claims)} claims have been put to a test.",
        "",
    ]
    for claim in (claim for claim in claims.index if claim in rows):
        hypothesis, source = claims.loc[claim, ["hypothesis", "source"]]
        lines += [f"## {claim}", "", f"{hypothesis} *({source})*", "", *rows[claim], ""]
    waiting = [claim for claim in claims.index if claim not in rows]
    lines += ["## No page yet", "", ", ".join(waiting) + ".", ""]
    write_page("claims", "\n".join(lines))


def write_page(name: str, text: str, root: Path = ROOT) -> None:
    """Write a generated page into ``book/``, unless it stands there already: Sphinx reads what is new."""
    target = root / "book" / f"{name}.md"
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        target.write_text(text, encoding="utf-8")


def title_of(notebook: nbformat.NotebookNode) -> str:
    """Return the first heading of a page."""
    text = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return next(line[2:] for line in text.splitlines() if line.startswith("# "))


def remove_left_over_pages(root: Path = ROOT) -> None:
    """Remove rendered pages whose source is gone: Sphinx leaves them, and readers would find them."""
    for folder in ("book", "lectures", "notebooks"):
        for html in (root / "_build" / "html" / folder).glob("*.html"):
            sources = [
                root / folder / f"{html.stem}{suffix}" for suffix in (".md", ".ipynb")
            ]
            if not any(source.is_file() for source in sources):
                html.unlink()


def render() -> None:
    """Render the site; any warning is an error."""
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", str(ROOT), "-W", "-n", "--keep-going", "--quiet"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        # Sphinx warns about a page only when it reads it: the next build must read all of them again.
        shutil.rmtree(ROOT / "_build" / ".doctrees", ignore_errors=True)
        sys.exit("the site could not be built without warnings")
    # Sphinx copies these only when a page has changed too.
    shutil.copytree(
        ROOT / "book" / "_static", ROOT / "_build" / "html" / "_static", dirs_exist_ok=True
    )


def main() -> None:
    """Do all of it and say where the site is."""
    empty_stale_cache()
    executed = execute()
    write_claims(executed)
    write_page("results", results_page.text(executed.values()))
    for name, generated in GENERATED.items():
        write_page(name, generated())
    remove_left_over_pages()
    render()
    print(f"\nOpen {ROOT / '_build' / 'html' / 'index.html'}")
    print("(for the search, serve the folder: python -m http.server -d _build/html)")


if __name__ == "__main__":
    main()
