from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.errors import ConfigError, DataError, UnknownNameError
from scbraid.methods import Glue

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import anndata
    import mudata


def as_anndata(case) -> dict[str, anndata.AnnData]:
    found = {}
    for name, layer in case.data.layers.items():
        obs = pd.DataFrame(index=layer.cells)
        obs["sample"] = np.where(np.arange(layer.n_cells) % 2, "s1", "s2")
        found[name] = anndata.AnnData(
            layer.counts.copy(), obs=obs, var=layer.features.copy(), obsm=dict(layer.reps)
        )
    return found


@pytest.fixture
def case(prepared):
    return prepared(n_cells=100)


@pytest.fixture
def data(case):
    return as_anndata(case)


@pytest.fixture(scope="module")
def trained(prepared, quick):
    case = prepared(n_cells=100)
    data = as_anndata(case)
    model = Glue(data, case.guidance, seed=3, device="cpu", **quick)
    model.train()
    return model, data, case


def test_training_writes_embeddings_into_the_data(trained, quick):
    model, data, case = trained
    assert model.is_trained
    graph = case.guidance
    for name, adata in data.items():
        cells = model.get_latent_representation(name)
        assert cells.shape == (adata.n_obs, quick["latent_dim"])
        assert cells.dtype == np.float32
        np.testing.assert_array_equal(adata.obsm["X_glue"], cells)
        features = model.get_feature_embedding(name)
        used = graph.features[(graph.layer == name) & graph.highly_variable]
        assert list(features.index) == list(used)
        inside = adata.var_names.isin(used)
        assert np.isnan(adata.varm["X_glue"][~inside]).all()
        np.testing.assert_array_equal(
            adata.varm["X_glue"][adata.var_names.get_indexer(used)], features
        )
    assert list(model.get_latent_representation()) == list(data)
    assert set(model.history["stage"]) == {"pretrain", "fine-tune"}
    assert "schedule" in model.details


def test_model_equals_the_method_of_the_registry(trained, quick):
    from scbraid.methods import methods

    model, _, case = trained
    method = methods()["glue"]
    result = method(method.configure("default", quick), seed=3, device="cpu").fit(
        case.data, case.guidance
    )
    for name, embedding in result.embeddings.items():
        np.testing.assert_array_equal(embedding, model.get_latent_representation(name))


def test_mudata_and_dense_counts_in_a_layer_give_the_same(trained, quick):
    model, _, case = trained
    parts = as_anndata(case)
    for adata in parts.values():
        adata.layers["raw"] = adata.X.toarray()
        adata.X = np.log1p(adata.X.toarray())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = mudata.MuData(parts)
    other = Glue(mdata, case.guidance, seed=3, device="cpu", layer="raw", **quick)
    other.train()
    np.testing.assert_array_equal(
        mdata["rna"].obsm["X_glue"], model.get_latent_representation("rna")
    )


def test_input_counts_are_left_alone(case, data, quick):
    before = data["rna"].X.copy()
    Glue(data, case.guidance, **quick)
    assert (before != data["rna"].X).nnz == 0
    assert "X_glue" not in data["rna"].obsm


# -- saving and loading ----------------------------------------------------------------------------


@pytest.fixture
def saved(trained, tmp_path):
    trained[0].save(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_embeds_the_same_cells_in_the_same_place(trained, saved):
    model, _, case = trained
    fresh = as_anndata(case)
    loaded = Glue.load(saved, fresh)
    for name, adata in fresh.items():
        np.testing.assert_array_equal(adata.obsm["X_glue"], model.get_latent_representation(name))
        pd.testing.assert_frame_equal(
            loaded.get_feature_embedding(name), model.get_feature_embedding(name)
        )
    assert loaded.is_trained
    assert loaded.config == model.config
    assert loaded.seed == 3
    assert loaded.details == json.loads(json.dumps(model.details))


def test_a_saved_model_embeds_other_cells(trained, saved):
    model, _, case = trained
    fresh = as_anndata(case)
    part = {"rna": fresh["rna"][10:30].copy(), "atac": fresh["atac"]}
    loaded = Glue.load(saved, part)
    np.testing.assert_allclose(
        loaded.get_latent_representation("rna"),
        model.get_latent_representation("rna")[10:30],
        atol=1e-6,
    )


def test_saving_overwrites_and_leaves_no_partial_file(trained, saved):
    trained[0].save(saved)
    assert sorted(p.name for p in saved.iterdir()) == ["guidance.npz", "model.json", "weights.npz"]


def test_batches_are_kept_and_checked(case, data, quick, tmp_path):
    model = Glue(data, case.guidance, batch_key="sample", device="cpu", **quick)
    model.train()
    model.save(tmp_path)
    fresh = as_anndata(case)
    loaded = Glue.load(tmp_path, fresh)
    np.testing.assert_array_equal(
        loaded.get_latent_representation("atac"), model.get_latent_representation("atac")
    )
    fresh["rna"].obs["sample"] = "s3"
    with pytest.raises(DataError, match="layer 'rna' has batches s3; the model was trained on s1"):
        Glue.load(tmp_path, fresh)


class Bomb:
    """Pickles to something that would run on loading."""

    exploded = False

    def __reduce__(self):
        return (setattr, (Bomb, "exploded", True))


@pytest.mark.parametrize("how", ["object array", "bare pickle"])
def test_pickles_are_refused_not_run(trained, saved, how):
    file = saved / "weights.npz"
    if how == "bare pickle":
        file.write_bytes(pickle.dumps(Bomb()))
    else:
        with np.load(file) as arrays:
            content = dict(arrays)
        name = next(iter(content))
        content[name] = np.array([Bomb()], dtype=object)
        with file.open("wb") as out:
            np.savez(out, **content)
    Bomb.exploded = False
    with pytest.raises(DataError, match="cannot be read as plain arrays"):
        Glue.load(saved, as_anndata(trained[2]))
    assert not Bomb.exploded


def damage(file, how):
    if how == "cut short":
        file.write_bytes(file.read_bytes()[:-200])
    elif how == "absent":
        file.unlink()
    else:
        with np.load(file) as arrays:
            content = dict(arrays)
        if how == "other shape":
            content["encoders.rna.mean.bias"] = np.zeros(99, np.float32)
        else:
            del content["encoders.rna.mean.bias"]
        with file.open("wb") as out:
            np.savez(out, **content)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut short", "weights.npz cannot be read as plain arrays"),
        ("absent", "weights.npz cannot be read as plain arrays"),
        ("other shape", r"encoders.rna.mean.bias is \(99,\), the data and options need \(6,\)"),
        ("part missing", r"encoders.rna.mean.bias is absent, the data and options need \(6,\)"),
    ],
)
def test_damaged_weights_are_named(trained, saved, how, message):
    damage(saved / "weights.npz", how)
    with pytest.raises(DataError, match=message):
        Glue.load(saved, as_anndata(trained[2]))


def test_representation_of_another_width_is_named(trained, saved):
    fresh = as_anndata(trained[2])
    fresh["rna"].obsm["X_pca"] = fresh["rna"].obsm["X_pca"][:, :10]
    with pytest.raises(DataError, match=r"encoders.rna.body.0.weight is \(12, 20\).*need \(12, 10"):
        Glue.load(saved, fresh)


def test_folders_without_a_model(trained, saved, tmp_path):
    data = as_anndata(trained[2])
    with pytest.raises(DataError, match=r"holds no saved model: model.json is missing"):
        Glue.load(tmp_path / "elsewhere", data)
    stated = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps({**stated, "format": "scbraid.glue/9"}))
    with pytest.raises(
        DataError, match=r"has the format 'scbraid.glue/9'; expected 'scbraid.glue/"
    ):
        Glue.load(saved, data)
    (saved / "model.json").write_text("{")
    with pytest.raises(DataError, match=r"model.json is not valid JSON"):
        Glue.load(saved, data)


# -- refusals --------------------------------------------------------------------------------------


def test_untrained_model_says_so(case, data, quick, tmp_path):
    model = Glue(data, case.guidance, **quick)
    assert not model.is_trained
    for call in (
        model.get_latent_representation,
        lambda: model.get_feature_embedding("rna"),
        lambda: model.save(tmp_path / "m"),
    ):
        with pytest.raises(ConfigError, match=r"not trained yet; call train\(\) first"):
            call()
    assert not (tmp_path / "m").exists()


def test_unknown_layer_offers_the_near_miss(trained):
    for call in (trained[0].get_latent_representation, trained[0].get_feature_embedding):
        with pytest.raises(UnknownNameError, match="unknown layer 'attac'; did you mean 'atac'"):
            call("attac")


def spoil_names(data):
    data["rna"].obs_names = ["same"] * data["rna"].n_obs


def spoil_features(data):
    names = data["atac"].var_names.to_list()
    data["atac"].var_names = [names[1], *names[1:]]


def drop_representation(data):
    data["rna"].obsm["X_umap"] = data["rna"].obsm.pop("X_pca")


def spoil_representation(data):
    data["atac"].obsm["X_lsi"][3, 2] = np.nan


def normalise(data):
    data["rna"].X = sp.csr_matrix(data["rna"].X / 3)


def lose_batch(data):
    data["atac"].obs.loc[data["atac"].obs_names[:2], "sample"] = None


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda d: d.pop("atac"), {}, "Glue needs at least two layers; got rna"),
        (spoil_names, {}, "layer 'rna': obs_names are not unique (first: 'same')"),
        (spoil_features, {}, "layer 'atac': var_names are not unique (first: "),
        (drop_representation, {}, "layer 'rna' has no obsm 'X_pca' (found: X_umap); name another"),
        (spoil_representation, {}, "layer 'atac': obsm 'X_lsi' has NaN or infinite values in 1 ce"),
        (normalise, {}, "layer 'rna': likelihood 'nb' needs non-negative integers; found "),
        (lambda d: None, {"batch_key": "donor"}, "layer 'rna' has no obs column 'donor' (batch_k"),
        (lose_batch, {"batch_key": "sample"}, "layer 'atac': obs column 'sample' is missing in 2"),
        (lambda d: None, {"layer": "raw"}, "layer 'rna' has no .layers['raw']"),
        (
            lambda d: None,
            {"reps": {"rna": "X_mine"}},
            "layer 'rna' has no obsm 'X_mine' (found: X_",
        ),
        (
            lambda d: None,
            {"reps": {"ran": "X_pca"}},
            "unknown layer in reps or likelihoods 'ran'; ",
        ),
        (lambda d: None, {"likelihoods": {"rna": "zimb"}}, "unknown likelihood 'zimb'; did you me"),
        (lambda d: None, {"latent_dim": 0}, "GlueConfig.latent_dim is 0; expected a value >= 1"),
        (lambda d: None, {"latentdim": 3}, "unknown option 'latentdim'; did you mean 'latent_dim'"),
        (
            lambda d: None,
            {"preset": "papre"},
            "unknown preset of glue 'papre'; did you mean 'paper'",
        ),
    ],
)
def test_bad_input_is_named(case, data, change, options, message):
    change(data)
    with pytest.raises((DataError, ConfigError, UnknownNameError)) as caught:
        Glue(data, case.guidance, **options)
    assert message in str(caught.value), str(caught.value)


def test_other_likelihoods_and_representations(case, data, quick):
    data["rna"].obsm["X_mine"] = data["rna"].obsm["X_pca"][:, :8]
    model = Glue(
        data, case.guidance, reps={"rna": "X_mine"}, likelihoods={"atac": "zinb"}, device="cpu",
        **quick,
    )  # fmt: skip
    model.train()
    assert np.isfinite(model.get_latent_representation("rna")).all()
    assert np.isfinite(model.history["atac_nll"]).all()


def test_paired_option_adds_the_paired_terms(prepared, quick):
    case = prepared(task="paired", n_cells=100)
    model = Glue(as_anndata(case), case.guidance, paired=True, device="cpu", **quick)
    model.train()
    assert "cosine" in model.history


def test_help_names_every_part():
    for name in ("train", "save", "load", "get_latent_representation", "get_feature_embedding"):
        assert getattr(Glue, name).__doc__
