"""The experiments with pictures run end to end on real pictures, at the size of the samples of SUPPORT_DATA."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from support import records

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "imagenet100_resnet18": "imagenette-160",
    "voc2012_fcn32s": "VOCdevkit/VOC2012",
    "div2k_superresolution": "DIV2K",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_page_trains_each_way_of_clipping_on_the_sample(name, tmp_path):
    root = Path(os.environ.get("SUPPORT_DATA", "nowhere")).expanduser()
    if not (root / FOLDERS[name]).is_dir():
        pytest.skip(f"SUPPORT_DATA holds no {FOLDERS[name]}")
    page = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    chosen = dict(scale="sample", epochs=1, seeds=[7], data_root=str(root))
    chosen |= dict(optimizers=["clipped_sstm"], out=str(tmp_path / "store"), device="cpu")
    for cell in page.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "\n" + "\n".join(f"{k} = {v!r}" for k, v in chosen.items())
    NotebookClient(
        page, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    runs = records.Store(tmp_path / "store").load()
    assert set(runs.runs["status"]) == {"finished"}
    assert 7 in set(runs.runs["seed"])
    own = runs.where(seed=7).history
    assert (own["value"].notna()).all()
    assert {"train", "test"} <= set(own["split"])
