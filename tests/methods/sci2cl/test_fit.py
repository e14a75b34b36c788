"""The trainings of scI2CL: losses together, stages, batch composition, labels, ablations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from scbraid.errors import NotApplicable
from scbraid.methods import Truth, methods
from scbraid.methods.sci2cl.config import PAPER, PRESETS, UNLABELLED_PRESETS
from scbraid.methods.sci2cl.fit import fit_sci2cl
from scbraid.methods.sci2cl.inputs import make_inputs
from scbraid.methods.sci2cl.network import LayerData, Sci2clNetwork, embed_cells, start_anchors
from scbraid.methods.sci2cl.objective import CellBatches, Sci2clTask
from scbraid.train.run import TrainingRun

CPU = torch.device("cpu")


def build(data, config, *, joint=True, labels=None, seed=0):
    inputs = make_inputs(data, config)
    layers = (LayerData(inputs.layers[0], CPU), LayerData(inputs.layers[1], CPU))
    torch.manual_seed(seed)
    network = Sci2clNetwork(inputs, (layers[0].input_dim, layers[1].input_dim), config)
    task = Sci2clTask(network, layers, config, joint=joint, labels=labels, seed=seed)
    return inputs, network, layers, task


# -- losses --------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum(case, configure):
    weights = {"lam_reconstruction": 2.0, "lam_views": 3.0, "lam_contrast": 0.5,
               "lam_matching": 0.7}  # fmt: skip
    _, _, _, task = build(case.data, configure(**weights))
    terms = {k: float(v.detach()) for k, v in task.terms(torch.arange(20)).items()}
    expected = (
        2 * (terms["rna_nll"] + terms["atac_nll"])
        + 3 * (terms["rna_views"] + terms["atac_views"])
        + 0.5 * terms["contrast"]
        + 0.7 * terms["matching"]
    )
    assert terms["total"] == pytest.approx(expected, rel=1e-5)


def test_the_first_stage_has_the_reconstruction_alone(case, configure):
    _, network, _, task = build(case.data, configure(), joint=False)
    terms = task.terms(torch.arange(20))
    assert terms.keys() == {"rna_nll", "atac_nll", "total"}
    terms["total"].backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None}
    assert all(name.startswith("layers.") and ".views." not in name for name in moved)


def test_contrast_and_matching_follow_their_equations(case, configure):
    config = configure("paper", temperature=0.5, networks="normed")
    _, network, layers, task = build(case.data, config)
    cells = torch.arange(30)
    torch.manual_seed(3)
    terms = task.terms(cells)
    batches = (layers[0].batch(cells), layers[1].batch(cells))
    first, second = network.cross(*network.encode(batches))
    a = first / first.norm(dim=1, keepdim=True)
    b = second / second.norm(dim=1, keepdim=True)
    S = (a @ b.T / 0.5).detach().double()
    own = S.diagonal()
    expected = ((S.logsumexp(1) - own).mean() + (S.logsumexp(0) - own).mean()) / 2
    assert float(terms["contrast"].detach()) == pytest.approx(float(expected), rel=1e-5)
    # All pairs of a cell with itself and three others; the second layer is exchanged.
    seen = {}
    original = network.fused
    network.fused = lambda u, v: seen.update(u=u, v=v) or original(u, v)
    task.terms(cells)
    assert len(seen["u"]) == 30 + 30 * 3
    anchors = [int((first == row).all(1).nonzero()) for row in seen["u"]]
    partners = [int((second == row).all(1).nonzero()) for row in seen["v"]]
    assert anchors[:30] == partners[:30] == list(range(30))
    assert all(a != p for a, p in zip(anchors[30:], partners[30:], strict=True))
    assert np.bincount(anchors[30:]).tolist() == [3] * 30


def test_the_encoder_starts_at_the_leading_components(case, configure):
    _, network, layers, _ = build(case.data, configure())
    batch = layers[0].batch(torch.arange(10))
    network.eval()
    assert torch.equal(network.layers[0].encoder(batch.encoded), batch.encoded[:, :6])
    network.train()
    hidden = (network.layers[0].encoder(batch.encoded) == 0).float().mean()
    assert 0.02 < float(hidden) < 0.6


@pytest.mark.parametrize("scale", ["noise", "equal"])
def test_the_embedding_is_both_layers_in_their_unit(case, configure, scale):
    network, layers = awake(case.data, configure(layer_scale=scale))
    found = embed_cells(network, layers, 32).astype(np.float64)
    cells = torch.arange(100)
    with torch.no_grad():
        z = network.encode(tuple(layer.batch(cells) for layer in layers))
    for part, own, layer in zip((found[:, :6], found[:, 6:]), z, layers, strict=True):
        own = own.double().numpy()
        own -= own.mean(0)
        unit = layer.noise if scale == "noise" else np.sqrt((own**2).sum(1).mean())
        np.testing.assert_allclose(part, own / unit, atol=1e-5)


def test_without_representations_layers_weigh_the_same(case, configure):
    network, layers = awake(case.data, configure("raw_input"))
    found = embed_cells(network, layers, 32).astype(np.float64)
    for part in (found[:, :6], found[:, 6:]):
        assert (part**2).sum(1).mean() == pytest.approx(1, rel=1e-5)


def test_heads_show_the_product_to_the_matching(case, configure):
    _, network, _, _ = build(case.data, configure())
    first, second = torch.randn(2, 5, 6)
    u, v = first @ network.heads[0].weight.T, second @ network.heads[1].weight.T
    expected = network.fuse(torch.cat([u, v, u * v], 1))
    torch.testing.assert_close(network.fused(first, second), expected)
    a, b = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    torch.testing.assert_close(network.scores(first, second), a @ b.T / 0.5)
    _, plain, _, _ = build(case.data, configure(heads=False))
    expected = plain.fuse(torch.cat([first, second], 1))
    torch.testing.assert_close(plain.fused(first, second), expected)


@pytest.mark.parametrize(("option", "moved"), [("view", False), ("both", True)])
def test_whether_views_move_the_cell(case, configure, option, moved):
    _, network, layers, _ = build(
        case.data, configure(view_gradient=option, dropout=0.0, input_dropout=0.0)
    )
    batch = layers[0].batch(torch.arange(10))
    z = network.layers[0].encoder(batch.encoded).detach().requires_grad_()
    network.layers[0].view_distance(batch, z, network.config).backward()
    assert (z.grad is not None) == moved


def test_the_view_distance_is_a_mean_square(case, configure):
    _, network, layers, _ = build(
        case.data, configure(mask_rate=0.0, n_views=2, dropout=0.0, input_dropout=0.0)
    )
    batch = layers[0].batch(torch.arange(10))
    layer = network.layers[0]
    z = layer.encoder(batch.encoded)
    seen = layer.views(torch.stack([z, z], 1))
    expected = ((seen - z) ** 2).mean()
    torch.testing.assert_close(layer.view_distance(batch, z, network.config), expected)


def test_label_negatives_have_other_labels(case, configure):
    labels = np.arange(100) % 3
    labels[:7] = -1
    config = configure(method="sci2cl_labels")
    _, network, _, task = build(case.data, config, labels=labels)
    cells = torch.arange(40)
    with torch.no_grad():
        first, second = network.cross(*network.encode(tuple(la.batch(cells) for la in task.layers)))
    network.eval()
    seen = {}
    original = network.fused
    network.fused = lambda u, v: seen.setdefault("n", len(u)) and original(u, v)
    weights = task._candidates(cells, first @ second.T)
    rows, columns = weights.nonzero(as_tuple=True)
    assert (labels[rows] != labels[columns]).all()
    assert (labels[rows] >= 0).all()
    assert (labels[columns] >= 0).all()
    task.terms(cells)
    # Seven cells without label have no negatives.
    assert seen["n"] == 40 + 33 * 3


def test_a_minibatch_of_one_type_has_no_negatives(case, configure):
    config = configure(method="sci2cl_labels")
    _, _, _, task = build(case.data, config, labels=np.zeros(100, np.int64))
    terms = task.terms(torch.arange(10))
    assert torch.isfinite(terms["total"])


# -- what only the original does -----------------------------------------------------------------


def test_the_double_sigmoid_is_in_the_original_alone(case, configure):
    for preset in ("default", "paper"):
        _, network, _, _ = build(case.data, configure(preset))
        z = 30 * torch.randn(50, 6)
        if preset == "paper":
            mean, theta, pi = network.layers[0].decoder(z)
            assert (
                0.5
                <= float(pi.detach().min())
                <= float(pi.detach().max())
                <= 1 / (1 + np.exp(-1)) + 1e-6
            )
            assert 1e-5 <= float(mean.detach().min()) <= float(mean.detach().max()) <= 1e6
            assert float(theta.detach().min()) >= float(np.float32(1e-4))
            assert network.layers[0].decoder.mean.weight.shape[0] == mean.shape[1]
        else:
            pi = network.layers[0].decoder(z)[1].sigmoid()
            assert float(pi.detach().min()) < 0.4


def test_only_the_original_reconstructs_scaled_values(case, configure):
    for preset, same in (("default", True), ("paper", False)):
        _, network, layers, task = build(
            case.data, configure(preset, dropout=0.0, input_dropout=0.0), joint=False
        )
        cells = torch.arange(20)
        found = float(task.terms(cells)["rna_nll"].detach())
        batch = layers[0].batch(cells)
        z = network.layers[0].encoder(batch.encoded)
        of_counts = float(network.layers[0].decoder.nll(z, batch, scaled=False).detach())
        assert (found == pytest.approx(of_counts, rel=1e-6)) == same


def test_embeddings_of_the_original_are_not_negative(case, configure):
    inputs = make_inputs(case.data, configure("paper"))
    embedding = fit_sci2cl(inputs, configure("paper"), device="cpu").embedding
    assert embedding.shape == (100, 6)
    assert embedding.min() >= 0


# -- minibatches ---------------------------------------------------------------------------------


def test_shuffled_minibatches_are_new_and_whole():
    batches = CellBatches(50, 16, shuffle=True, seed=0)
    first, second = list(batches.epoch()), list(batches.epoch())
    assert len(batches) == 3
    assert [len(cells) for cells in first] == [16, 16, 16]
    assert len(set(np.concatenate(first))) == 48
    assert not np.array_equal(first[0], second[0])
    assert [len(cells) for cells in CellBatches(9, 16, shuffle=True, seed=0).epoch()] == [9]


def test_unshuffled_minibatches_are_the_same_and_complete():
    batches = CellBatches(50, 16, shuffle=False, seed=0)
    for _ in range(2):
        cells = list(batches.epoch())
        assert len(cells) == len(batches) == 4
        np.testing.assert_array_equal(np.concatenate(cells), np.arange(50))


def awake(data, config):
    """Build a network whose parts that start at zero do not."""
    _, network, layers, _ = build(data, config)
    for layer in network.layers:
        if hasattr(layer.encoder, "last"):
            torch.nn.init.normal_(layer.encoder.last.weight, std=0.3)
    start_anchors(network, layers, 0)
    return network, layers


def embeddings_of_batches(data, config):
    network, layers = awake(data, config)
    return [embed_cells(network, layers, size) for size in (100, 33, 7)]


@pytest.mark.parametrize(
    ("preset", "options", "depends"),
    [
        ("default", {}, False),
        ("no_attention", {"embedding": "fused"}, False),
        ("default", {"embedding": "attended"}, False),
        ("default", {"embedding": "fused", "projections": True}, False),
        ("batch_attention", {}, True),
        ("paper", {}, True),
        ("paper", {"attention": "none"}, False),
    ],
)
def test_whether_a_cell_depends_on_its_minibatch(case, configure, preset, options, depends):
    whole, *parts = embeddings_of_batches(case.data, configure(preset, **options))
    size = np.abs(whole).max()
    for part in parts:
        difference = np.abs(part - whole).max() / size
        if depends:
            assert difference > 1e-3
        else:
            assert difference < 1e-5


def test_the_order_of_cells_does_not_matter_to_a_trained_model(case, configure):
    network, layers = awake(case.data, configure(embedding="attended"))
    expected = embed_cells(network, layers, 32)
    order = np.random.default_rng(0).permutation(100)
    turned = {name: layer.take(order) for name, layer in case.data.layers.items()}
    inputs = make_inputs(dataclasses.replace(case.data, layers=turned), configure())
    others = (LayerData(inputs.layers[0], CPU), LayerData(inputs.layers[1], CPU))
    np.testing.assert_allclose(embed_cells(network, others, 32), expected[order], atol=1e-4)


def test_anchors_start_at_centres_of_both_layers(case, configure):
    _, network, layers, _ = build(case.data, configure())
    start_anchors(network, layers, 0)
    anchors = network.cross.anchors.detach().clone()
    assert anchors.shape == (2, 10, 6)
    cells = torch.arange(100)
    with torch.no_grad():
        z = torch.stack(network.encode(tuple(layer.batch(cells) for layer in layers)))
    for k in range(2):
        assert (anchors[k] >= z[k].amin(0) - 1e-5).all()
        assert (anchors[k] <= z[k].amax(0) + 1e-5).all()
    start_anchors(network, layers, 0)
    assert torch.equal(network.cross.anchors, anchors)


def test_small_data_have_fewer_anchors(case, configure):
    few = {name: layer.take(np.arange(20)) for name, layer in case.data.layers.items()}
    _, network, _, _ = build(dataclasses.replace(case.data, layers=few), configure())
    assert network.cross.anchors.shape[1] == 6


# -- whole trainings -----------------------------------------------------------------------------


def test_both_layers_of_a_cell_get_one_embedding(case, configure):
    result = methods()["sci2cl"](configure(), seed=1, device="cpu").fit(case.data)
    order = {c: row for row, c in enumerate(case.data["atac"].cells)}
    rows = [order[c] for c in case.data["rna"].cells]
    np.testing.assert_array_equal(result.embeddings["rna"], result.embeddings["atac"][rows])
    assert result.embeddings["rna"].shape == (100, 12)
    history = result.history
    assert set(history["stage"]) == {"pretrain", "joint"}
    assert {"rna_nll", "atac_views", "contrast", "matching_accuracy"} <= set(history.columns)
    assert [stage["epochs"] for stage in result.details["stages"]] == [2, 2]
    assert result.details["features"].keys() == {"rna", "atac"}


def test_cells_without_partner_get_no_coordinates(case, configure):
    layers = {"rna": case.data["rna"].take(np.arange(5, 100)), "atac": case.data["atac"]}
    data = dataclasses.replace(case.data, layers=layers)
    result = methods()["sci2cl"](configure(), device="cpu").fit(data)
    result.check(data, "sci2cl")
    assert np.isfinite(result.embeddings["rna"]).all()
    assert np.isnan(result.embeddings["atac"]).all(1).sum() == 5


@pytest.mark.parametrize("preset", UNLABELLED_PRESETS)
def test_every_preset_trains(case, configure, preset):
    result = methods()["sci2cl"](configure(preset, max_epochs=1), device="cpu").fit(case.data)
    assert np.isfinite(result.embeddings["rna"]).all()
    assert ("rna_views" in result.history) == (preset != "no_views")
    assert ("pretrain" in set(result.history["stage"])) == (preset != "no_pretrain")


def test_rna_and_proteins_train(prepared, configure):
    case = prepared("cite", task="paired", n_cells=100, n_peaks=50, n_proteins=12)
    result = methods()["sci2cl"](configure(), device="cpu").fit(case.data)
    assert result.embeddings["adt"].shape == (100, 12)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_training_lowers_its_losses(case, configure, preset):
    rates = {"pretrain_rate": 1e-3, "learning_rate": 1e-3}
    config = configure(preset, max_epochs=15, **rates)
    history = methods()["sci2cl"](config, device="cpu").fit(case.data).history
    for _, stage in history.groupby("stage"):
        assert stage["total"].iloc[-1] < stage["total"].iloc[0]


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_mixed_precision_keeps_weights_and_result_in_float32(case, configure, preset):
    ends = []
    for precision in ("fp32", "bf16-mixed"):
        training = TrainingRun(precision=precision)
        method = methods()["sci2cl"](configure(preset), device="cpu", training=training)
        result = method.fit(case.data)
        assert result.embeddings["rna"].dtype == np.float32
        assert np.isfinite(result.embeddings["rna"]).all()
        ends.append(result.history["total"].iloc[-1])
    assert ends[0] != ends[1]
    assert ends[1] == pytest.approx(ends[0], rel=0.03)


@pytest.mark.parametrize(
    ("preset", "still"),
    [("no_matching", ("match.", "fuse.")), ("no_contrast", ()), ("no_views", ("layers.0.views.",))],
)
def test_an_ablated_term_moves_nothing(case, configure, preset, still):
    config = configure(preset, lam_matching=0.0, lam_reconstruction=0.0)
    _, network, _, task = build(case.data, config)
    task.terms(torch.arange(20))["total"].backward()
    still = ("match.", "fuse.", "layers.0.decoder.", *still)
    if preset == "no_contrast":
        still = (*still, "heads.", "cross.")
    for name, parameter in network.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.any())
        assert not (moved and name.startswith(still)), name


def test_temperature_is_learned_within_bounds(case, configure):
    _, network, _, task = build(case.data, configure(temperature=0.1, learn_temperature=True))
    assert float(1 / network.scale.detach()) == pytest.approx(0.1)
    task.terms(torch.arange(20))["total"].backward()
    assert float(network.log_scale.grad.abs()) > 0
    with torch.no_grad():
        network.log_scale.fill_(20.0)
    assert float(1 / network.scale.detach()) == pytest.approx(0.01)
    for preset, temperature in (("default", 0.5), ("paper", 1.0)):
        _, network, _, task = build(case.data, configure(preset))
        task.terms(torch.arange(20))["total"].backward()
        assert network.log_scale.grad is None
        assert float(1 / network.scale) == pytest.approx(temperature)


# -- labels --------------------------------------------------------------------------------------


def test_the_labelled_method_needs_labels_of_two_types(case, configure):
    method = methods()["sci2cl_labels"](configure(method="sci2cl_labels"), device="cpu")
    with pytest.raises(NotApplicable, match="sci2cl_labels needs the truth table"):
        method.fit(case.data)
    one = case.truth.assign(cell_type="T")
    with pytest.raises(NotApplicable, match=r"the truth has 1 type\(s\)"):
        method.fit(case.data, None, Truth(one))
    with pytest.raises(NotApplicable, match="the one given has no column 'cell_type'"):
        method.fit(case.data, None, Truth(case.truth.drop(columns="cell_type")))
    # Of the cells with both layers all are of one type.
    common = case.data["rna"].cells[:60]
    apart = case.truth.assign(cell_type=np.where(case.truth["cell"].isin(common), "A", "B"))
    rows = np.flatnonzero(np.isin(case.data["atac"].cells, common))
    layers = {"rna": case.data["rna"], "atac": case.data["atac"].take(rows)}
    data = dataclasses.replace(case.data, layers=layers)
    with pytest.raises(NotApplicable, match=r"the truth has 1 type\(s\) of the cells with both"):
        method.fit(data, None, Truth(apart))


def test_labels_change_the_labelled_method_and_no_other(case, configure):
    rng = np.random.default_rng(0)
    other = case.truth.assign(cell_type=rng.permutation(case.truth["cell_type"].to_numpy()))

    def embed(name, truth):
        method = methods()[name](configure(method=name), device="cpu")
        return method.fit(case.data, None, Truth(truth)).embeddings["rna"]

    assert not np.array_equal(embed("sci2cl_labels", case.truth), embed("sci2cl_labels", other))
    np.testing.assert_array_equal(embed("sci2cl", case.truth), embed("sci2cl", other))


def test_declarations_tell_who_sees_labels():
    plain, labelled = methods()["sci2cl"], methods()["sci2cl_labels"]
    assert plain.info.uses == {"pairing"}
    assert plain.info.role == "subject"
    assert labelled.info.uses == {"pairing", "labels"}
    assert labelled.info.role == "oracle"
    for preset in plain.presets:
        assert plain.configure(preset).negatives in ("random", "hard")
    for preset in labelled.presets:
        assert labelled.configure(preset).negatives == "labels"
    assert labelled.configure("paper").as_dict() == {
        **plain.configure("paper").as_dict(), "negatives": "labels",
    }  # fmt: skip
    assert "negatives" not in PAPER


@pytest.mark.parametrize("method", ["sci2cl", "sci2cl_labels"])
def test_the_quirks_are_those_of_the_paper_s_presets_alone(method):
    quirks = {
        "double_softmax": True, "decoder": "original", "pretrain_target": "scaled",
        "embedding": "fused", "shared_masks": True, "view_gradient": "both", "shuffle": False,
        "heads": False,
    }  # fmt: skip
    presets = UNLABELLED_PRESETS if method == "sci2cl" else PRESETS
    for preset in ("default", *presets):
        chosen = methods()[method].configure(preset).as_dict()
        found = {name for name, value in quirks.items() if chosen[name] == value}
        assert found == (set(quirks) if preset.startswith("paper") else set()), preset


def test_the_paper_s_numbers():
    """Widths, epochs and rates of both stages, heads, views and negatives of its data sets."""
    names = (
        "hidden", "latent_dim", "pretrain_epochs", "pretrain_rate", "epochs", "learning_rate",
        "view_heads", "n_views", "n_negatives",
    )  # fmt: skip
    expected = {
        "paper": ("5000-2000-1000", 512, 300, 1e-5, 500, 1e-5, 4, 8, 3),
        "paper_pbmc3k": ("5000-2000-1000", 256, 200, 1e-5, 500, 1e-5, 4, 4, 8),
        "paper_ma2020": ("5000-2000-512", 256, 500, 1e-5, 1000, 1e-5, 8, 8, 3),
        "paper_cellmix": ("500-256-64", 16, 200, 1e-5, 800, 1e-4, 1, 8, 3),
    }
    for preset, numbers in expected.items():
        chosen = methods()["sci2cl"].configure(preset).as_dict()
        assert tuple(chosen[name] for name in names) == numbers, preset
        common = {"batch_size": 128, "mask_rate": 0.4, "temperature": 1.0, "weight_decay": 0.0}
        common |= dict.fromkeys(
            ("lam_reconstruction", "lam_views", "lam_contrast", "lam_matching"), 1.0
        )
        assert {name: chosen[name] for name in common} == common, preset
