"""A reader's own optimizer class, put into an experiment page: tuned like the others, drawn over their records."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from support import records

ROOT = Path(__file__).parents[2]

CLASS = """
class SignDescent(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))

    def step(self, closure):
        loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] * p.grad.sign()
        return loss


OPTIMIZERS["mine"] = SignDescent
GRIDS["mine"] = {"lr": [1e-4, 3e-4, 1e-3]}
"""
PROBE = """
import json
drawn = [text.get_text() for text in drawn.get_legend().get_texts()]
print("PROBE", json.dumps({"chosen": chosen["mine"], "drawn": drawn}))
"""


def execute(
    tmp_path: Path, lr_text: str = CLASS, **parameters
) -> tuple[dict, records.Records]:
    """Execute the page with the class added, and return what the probe printed and the store's records."""
    page = nbformat.read(ROOT / "notebooks" / "mnist_lenet.ipynb", as_version=4)
    for cell in page.cells:
        tags = cell.metadata.get("tags", [])
        if "optimizers" in tags:
            cell.source += "\n" + CLASS
        if "parameters" in tags:
            cell.source += "\n" + "\n".join(
                f"{name} = {value!r}" for name, value in parameters.items()
            )
        if (
            cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
            == "fig-lenet-accuracy"
        ):
            cell.source += "\ndrawn = ax"
    page.cells.append(nbformat.v4.new_code_cell(PROBE))
    NotebookClient(
        page, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    text = "".join(output.get("text", "") for output in page.cells[-1].outputs)
    return json.loads(text.partition("PROBE ")[2]), records.Store(parameters["out"]).load()


@pytest.mark.skipif(
    "SUPPORT_DATA" not in os.environ, reason="needs MNIST in the folder SUPPORT_DATA"
)
def test_own_class_is_tuned_and_drawn_over_the_recorded_runs(tmp_path):
    out = str(tmp_path / "runs")
    probe, stored = execute(
        tmp_path,
        scale="quick",
        epochs=1,
        optimizers=["mine"],
        seeds=[0],
        out=out,
        device="cpu",
    )
    searched, final = stored.where(validation=10_000), stored.where(validation=0)
    assert set(stored.runs["optimizer"]) == {"mine"}
    assert set(stored.runs["status"]) == {"finished"}
    assert stored.runs["code"].nunique() == 1, "the class must be part of the configuration"
    assert {1e-4, 3e-4, 1e-3} <= set(searched.runs["lr"])
    best = searched.metric("validation", "accuracy").sort_values("value")["lr"].iloc[-1]
    assert probe["chosen"] == {"lr": best}
    assert list(final.runs["lr"]) == [best]
    assert "mine (this run)" in probe["drawn"]
    assert {"SGD", "SGD with momentum", "Adam"} <= set(probe["drawn"]), (
        "the recorded runs of the others"
    )
