from __future__ import annotations

import pytest

from scbraid.methods import methods

# Options that make a training end within a second; those of the original keep all of its switches.
SMALL = {"latent_dim": 6, "hidden": "12-8", "batch_size": 32, "max_epochs": 2, "n_anchors": 10}
SMALL_PAPER = {"latent_dim": 6, "hidden": "12-8", "view_heads": 2, "n_views": 3, "max_epochs": 2}


@pytest.fixture(scope="session")
def case(prepared):
    return prepared(task="paired", n_cells=100)


@pytest.fixture(scope="session")
def configure():
    """Return a small configuration of a preset."""

    def make(preset="default", method="sci2cl", **options):
        small = SMALL_PAPER if preset.startswith("paper") else SMALL
        return methods()[method].configure(preset, {**small, **options})

    return make
