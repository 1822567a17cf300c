"""Take the picture of the README from the executed lecture: ``make picture`` after ``make book``."""

import base64
import sys
from pathlib import Path

from jupyter_cache import get_cache

from tools.build_book import CACHE, ROOT

PAGE = ROOT / "lectures" / "gradient_descent.ipynb"
FIGURE = "fig-gd-convex"
TARGET = ROOT / "book" / "_static" / "theorem.png"


def main(target: Path = TARGET) -> None:
    """Write the picture of the figure's cell."""
    cache = get_cache(CACHE)
    executed = cache.get_cache_bundle(cache.get_cached_project_nb(str(PAGE)).pk).nb
    for cell in executed.cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == FIGURE:
            pictures = [
                output["data"]["image/png"]
                for output in cell.outputs
                if "image/png" in output.get("data", {})
            ]
            target.write_bytes(base64.b64decode(pictures[0]))
            print(f"wrote {target.relative_to(ROOT)}")
            return
    sys.exit(f"{PAGE.name} has no figure {FIGURE}")


if __name__ == "__main__":
    main()
