"""What scI2CL trains on, and which inputs it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scbraid.data.layers import Layers
from scbraid.errors import ConfigError, DataError, NotApplicable
from scbraid.methods import methods
from scbraid.methods.sci2cl.inputs import make_inputs, match_cells
from scbraid.methods.sci2cl.network import LayerData

CPU = torch.device("cpu")


def replaced(data: Layers, name: str, **changes) -> Layers:
    layers = dict(data.layers)
    layers[name] = dataclasses.replace(layers[name], **changes)
    return dataclasses.replace(data, layers=layers)


def test_rna_keeps_its_variable_genes_and_atac_the_commonest_peaks(case, configure):
    inputs = make_inputs(case.data, configure(n_peaks=40))
    rna, atac = inputs.layers
    flagged = case.data["rna"].features["highly_variable"].to_numpy(bool)
    expected = case.data["rna"].counts[:, flagged].toarray()
    np.testing.assert_array_equal(rna.counts.toarray(), expected[:, expected.sum(0) > 0])
    counts = case.data["atac"].counts.toarray()
    detected = (counts > 0).sum(0)
    assert atac.counts.shape[1] == 40
    kept = np.sort((atac.counts.toarray() > 0).sum(0))
    np.testing.assert_array_equal(kept, np.sort(detected)[-40:])


def test_the_seurat_rule_is_that_of_prepare(case, configure):
    from scbraid.prepare import highly_variable

    inputs = make_inputs(case.data, configure(n_peaks=40, peak_choice="seurat_v3"))
    chosen = highly_variable(case.data["atac"].counts, 40)["highly_variable"].to_numpy()
    expected = case.data["atac"].counts[:, chosen].toarray()
    np.testing.assert_array_equal(inputs.layers[1].counts.toarray(), expected)


def test_representations_are_centred_and_have_mean_square_one(case, configure):
    inputs = make_inputs(case.data, configure(n_components=7))
    for layer, key in zip(inputs.layers, ("X_pca", "X_lsi"), strict=True):
        rep = layer.rep
        assert rep.shape == (100, 7)
        np.testing.assert_allclose(rep.mean(0), 0, atol=1e-5)
        assert (rep.astype(float) ** 2).mean() == pytest.approx(1, rel=1e-5)
        # One factor for all columns.
        given = case.data[layer.name].reps[key][:, :7]
        given = given - given.mean(0)
        factor = given.std() / rep.std()
        np.testing.assert_allclose(rep * factor, given, atol=1e-4 * np.abs(given).max())


def test_scaled_counts_and_size_factors_follow_the_original(case, configure):
    inputs = make_inputs(case.data, configure("paper"))
    for layer in inputs.layers:
        logs = np.log1p(layer.counts.toarray().astype(np.float64))
        batch = LayerData(layer, CPU).batch(torch.tensor([5, 2, 71]))
        expected = (logs - logs.mean(0)) / logs.std(0, ddof=1)
        np.testing.assert_allclose(batch.encoded.numpy(), expected[[5, 2, 71]], atol=2e-4)
        factor = np.log(np.maximum(logs.sum(1), 1) + 1e-8)
        np.testing.assert_allclose(batch.size_factor.numpy(), factor[[5, 2, 71]], rtol=1e-5)


def test_cells_are_matched_by_name_in_the_order_of_the_first(case):
    first = case.data["rna"].take(np.arange(0, 60))
    second = case.data["atac"].take(np.random.default_rng(0).permutation(np.arange(40, 100)))
    data = Layers({"atac": second, "rna": first}, paired=True)
    rows = match_cells(data, "rna", "atac")
    assert rows["rna"].tolist() == list(range(40, 60))
    assert (first.cells[rows["rna"]] == second.cells[rows["atac"]]).all()


def test_a_constant_feature_scales_to_zero(case, configure):
    counts = case.data["rna"].counts.tolil()
    counts[:, 3] = 1
    data = replaced(case.data, "rna", counts=sp.csr_matrix(counts))
    layer = make_inputs(data, configure(use_rep=False)).layers[0]
    flat = np.flatnonzero(layer.counts.toarray().std(0) == 0)
    assert len(flat) == 1
    assert (LayerData(layer, CPU).batch(torch.arange(9)).encoded[:, flat] == 0).all()


def stored_zeros(counts):
    """Return the same matrix with every entry stored."""
    found = sp.csr_matrix(np.ones(counts.shape, np.float32))
    found.data[:] = counts.toarray().ravel()
    return found


@pytest.mark.parametrize("options", [{}, {"use_rep": False}])
def test_stored_zeros_change_nothing(case, configure, options):
    config = configure(n_peaks=40, **options)
    expected = make_inputs(case.data, config)
    changed = case.data
    for name in ("rna", "atac"):
        changed = replaced(changed, name, counts=stored_zeros(changed[name].counts))
    for own, other in zip(expected.layers, make_inputs(changed, config).layers, strict=True):
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(own.counts, part), getattr(other.counts, part))
        if own.mean is not None:
            np.testing.assert_array_equal(own.mean, other.mean)
            np.testing.assert_array_equal(own.deviation, other.deviation)


def test_columns_of_rounding_are_no_noise(case, configure):
    """Else a layer whose last components are empty would be divided by nearly nothing."""
    rep = case.data["atac"].reps["X_lsi"].copy()
    expected = make_inputs(replaced(case.data, "atac", reps={"X_lsi": rep[:, :12]}), configure())
    rep[:, 12:] = 1e-9 * np.random.default_rng(0).normal(size=rep[:, 12:].shape)
    found = make_inputs(replaced(case.data, "atac", reps={"X_lsi": rep}), configure())
    own, other = (inputs.layers[1] for inputs in (expected, found))
    # The unit of the input is a mean over columns, so that more of them make it smaller.
    ratio = np.sqrt((own.rep**2).mean() / (other.rep[:, :12] ** 2).mean())
    assert other.noise * ratio == pytest.approx(own.noise, rel=1e-5)


# -- refused -------------------------------------------------------------------------------------


def refuse(data, config, error, message):
    with pytest.raises(error, match=message):
        make_inputs(data, config)


def test_bad_values_are_named(case, configure):
    half = case.data["rna"].counts * 0.5
    refuse(
        replaced(case.data, "rna", counts=half), configure(), DataError,
        "layer 'rna': likelihood 'nb' needs non-negative integers; found .*5",
    )  # fmt: skip
    rep = case.data["atac"].reps["X_lsi"].copy()
    rep[2, 1] = np.nan
    refuse(
        replaced(case.data, "atac", reps={"X_lsi": rep}), configure(), DataError,
        "layer 'atac': obsm 'X_lsi' has NaN or infinite values in 1 cells",
    )  # fmt: skip
    refuse(
        replaced(case.data, "rna", reps={"X_umap": rep}), configure(), DataError,
        r"layer 'rna' has no obsm 'X_pca' \(found: X_umap\); expected by use_rep=true",
    )  # fmt: skip


def test_a_layer_without_features_to_explain_is_refused(case, configure):
    features = case.data["rna"].features.assign(highly_variable=False)
    refuse(
        replaced(case.data, "rna", features=features), configure(), DataError,
        "layer 'rna' has 0 features to explain; expected 2 or more",
    )  # fmt: skip


@pytest.mark.parametrize("flag", [np.nan, None, "False"])
def test_flags_of_features_are_true_or_false(case, configure, flag):
    """A missing flag and a text would be taken for true, or in silence for false."""
    flags = case.data["rna"].features["highly_variable"].astype(object).to_numpy().copy()
    flags[3] = flag
    features = case.data["rna"].features.assign(highly_variable=flags)
    refuse(
        replaced(case.data, "rna", features=features), configure(), DataError,
        r"layer 'rna': var column 'highly_variable' has 1 entries that are neither true nor",
    )  # fmt: skip


def test_layers_that_are_no_counts_do_not_apply(case, configure):
    meta = {**case.data.meta, "layers": {"atac": {"likelihood": "normal", "rep": "X_pca"}}}
    data = dataclasses.replace(case.data, meta=meta)
    refuse(data, configure(), NotApplicable, "layer 'atac' states the likelihood 'normal'")


def test_layers_that_share_no_cells_are_refused(case, configure):
    names = np.array([f"other-{i}" for i in range(100)])
    data = replaced(case.data, "atac", cells=names)
    refuse(data, configure(), DataError, "0 of 100 rna cells have a partner of the same name in")


def test_repeated_names_are_refused(case, configure):
    for name in ("rna", "atac"):
        cells = case.data[name].cells.copy()
        cells[1] = cells[0]
        refuse(
            replaced(case.data, name, cells=cells), configure(), DataError,
            rf"layer '{name}' has 1 repeated cell names \(first: '{cells[0]}'\)",
        )  # fmt: skip


def test_three_common_cells_are_too_few(case, configure):
    layers = {"rna": case.data["rna"].take(np.arange(3)), "atac": case.data["atac"]}
    few = dataclasses.replace(case.data, layers=layers)
    refuse(few, configure(), DataError, "3 of 3 rna cells have a partner of the same name in atac")


def test_cells_and_layers_of_zeros_are_refused(case, configure):
    counts = case.data["atac"].counts.copy()
    counts.data[counts.indptr[3] : counts.indptr[4]] = 0
    refuse(
        replaced(case.data, "atac", counts=counts), configure(), DataError,
        rf"layer 'atac' has 1 cells without a count \(first: '{case.data['atac'].cells[3]}'\)",
    )  # fmt: skip
    counts.data[:] = 0
    refuse(
        replaced(case.data, "atac", counts=counts), configure(), DataError,
        "layer 'atac' has no count at all",
    )  # fmt: skip


def test_an_encoder_input_that_says_nothing_is_refused(case, configure):
    for rep, n in ((np.ones((100, 5), np.float32), 5), (np.zeros((100, 0), np.float32), 0)):
        refuse(
            replaced(case.data, "atac", reps={"X_lsi": rep}), configure(), DataError,
            f"layer 'atac': obsm 'X_lsi' of {n} columns is the same for all cells",
        )  # fmt: skip


def test_unpaired_and_other_numbers_of_layers_do_not_apply(case, configure):
    method = methods()["sci2cl"](configure(), device="cpu")
    unpaired = dataclasses.replace(case.data, paired=False)
    with pytest.raises(NotApplicable, match="sci2cl needs paired data; got unpaired"):
        method.check_applicable(unpaired)
    with pytest.raises(NotApplicable, match="sci2cl needs paired data"):
        method.fit(unpaired)
    alone = dataclasses.replace(case.data, layers={"rna": case.data["rna"]})
    with pytest.raises(NotApplicable, match="scI2CL needs two layers; got rna"):
        method.fit(alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": "12-"}, "hidden is '12-'; expected widths joined by '-'"),
        ({"hidden": "0"}, "hidden is '0'"),
        ({"view_heads": 4}, "view_heads is 4, which does not divide latent_dim 6"),
        ({"pretrain_target": "scaled"}, "needs decoder='original' and use_rep=false"),
        ({"projections": True, "attention": "none"}, "projections=true has no effect"),
        ({"embedding": "attended", "attention": "none"}, "use embedding=encoded"),
        (
            {
                "pretrain": False,
                "pretrain_target": "scaled",
                "decoder": "original",
                "use_rep": False,
            },
            "pretrain_target='scaled' has no effect with pretrain=false",
        ),
        ({"negatives": "labels"}, "belongs to the method 'sci2cl_labels'"),
        ({"negatives": "lables"}, "did you mean 'labels'"),
        ({"mask_rate": 1.0}, "expected a value < 1"),
        ({"temperature": 0.0}, "expected a value > 0"),
    ],
)
def test_bad_options_are_named(configure, options, message):
    with pytest.raises(ConfigError, match=message):
        configure(**options)


def test_the_labelled_method_has_no_other_negatives(configure):
    with pytest.raises(ConfigError, match="for 'random' use the method 'sci2cl'"):
        configure(method="sci2cl_labels", negatives="random")
