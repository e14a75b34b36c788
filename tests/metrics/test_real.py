from __future__ import annotations

import numpy as np
import pytest

from scbraid.evaluate import match, read_embedding, read_truth
from scbraid.metrics import score


@pytest.mark.real
def test_values_of_a_published_embedding(mirror):
    """An embedding by scglue 0.4.1, scored by scglue's own metrics on the same 4,567 cells."""
    file = mirror.parent / "peers" / "scglue-0.4.1_snare_cortex_dev_seed0.npz"
    if not file.is_file():
        pytest.skip(f"no embedding at {file}")
    embedding = read_embedding(file)
    truth = read_truth(
        mirror / "snare_cortex_dev" / "rna.h5ad", list(embedding.cells), ignored_labels=["Mis"]
    )
    expected = {
        "foscttm": 0.12974,
        "transfer_accuracy": 0.722,
        "map": 0.74708,
        "cell_type_asw": 0.51436,
        "omics_asw": 0.88750,
        "seurat_alignment": 0.95807,
    }
    names = [*expected, "graph_connectivity"]
    found = {one.metric: one for one in score(match(embedding, truth), names)}
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=5e-4), name
    # 0.7276 with approximate neighbours; ours are exact.
    assert found["graph_connectivity"].value == pytest.approx(0.7276, abs=0.003)
    assert found["map"].n_cells == 2 * 4567
    assert found["foscttm"].n_cells == 4567
    assert np.all([one.status == "ok" for one in found.values()])
