"""Take the picture of the README from the executed lecture: ``make picture``."""

import base64
import sys

from tools.build_book import ROOT, execute

PAGE = ROOT / "lectures" / "gradient_descent.ipynb"
FIGURE = "fig-gd-convex"
TARGET = ROOT / "book" / "_static" / "theorem.png"


def main() -> None:
    """Write the picture of the figure's cell."""
    for cell in execute([PAGE])[PAGE].cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == FIGURE:
            found = [
                output["data"]["image/png"]
                for output in cell.outputs
                if "image/png" in output.get("data", {})
            ]
            TARGET.write_bytes(base64.b64decode(found[0]))
            print(f"wrote {TARGET.relative_to(ROOT)}")
            return
    sys.exit(f"{PAGE.name} has no figure {FIGURE}")


if __name__ == "__main__":
    main()
