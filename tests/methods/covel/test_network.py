"""What the readers make of tokens, and what the networks read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scbraid.methods.covel.config import PRESETS
from scbraid.methods.covel.network import ConcatProjection, LatentReader, TokenReader, embed


def test_a_projection_in_two_parts_is_that_of_the_concatenation():
    torch.manual_seed(0)
    projection = ConcatProjection(4, 3, 5)
    f, e = torch.randn(7, 4), torch.randn(2, 6, 3)
    place = torch.randint(7, (2, 6))
    found = projection(projection.position(f), place, e)
    weight = torch.cat([projection.position.weight, projection.value.weight], 1)
    expected = torch.cat([f[place], e], -1) @ weight.T + projection.position.bias
    torch.testing.assert_close(found, expected)


def reading(p, layer=0, rows=None, *, training=False):
    """What the reader of a layer makes of its cells, in evaluation mode."""
    p.network.eval()
    cells = p.cells[layer]
    rows = torch.arange(cells.n_cells) if rows is None else rows
    tokens = cells.tokens(cells.gather(rows).observed, training=training)
    f = p.network.features()[0][p.network.vertices(cells.name)]
    with torch.no_grad():
        return p.network.reader(cells.name)(f, tokens)


@pytest.mark.parametrize("encoder", ["latent", "performer", "exact"])
@pytest.mark.parametrize("tokens", ["nonzero", "all"])
def test_cells_are_read_alike_in_parts_alone_and_in_any_company(
    problem, monkeypatch, encoder, tokens
):
    p = problem(encoder=encoder, tokens=tokens)
    whole = reading(p)
    assert torch.isfinite(whole).all()
    for kind in (LatentReader, TokenReader):
        monkeypatch.setattr(kind, "chunk_tokens", 20)
    tight = {"atol": 2e-6, "rtol": 1e-5}
    torch.testing.assert_close(reading(p), whole, **tight)
    order = torch.tensor([5, 0, 17, 3])
    torch.testing.assert_close(reading(p, rows=order), whole[order], **tight)


def test_recomputed_parts_have_the_same_gradients(problem, monkeypatch):
    found = []
    for recompute in (True, False):
        monkeypatch.setattr(TokenReader, "recompute", recompute)
        p = problem(encoder="performer")
        p.network.eval()
        cells = p.cells[0]
        tokens = cells.tokens(cells.gather(torch.arange(9)).observed, training=False)
        f = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        p.network.reader("rna")(f, tokens).square().sum().backward()
        found.append(f.grad)
    torch.testing.assert_close(*found)


def test_a_token_ends_as_one_number_in_the_place_of_its_feature(problem):
    p = problem(encoder="exact")
    reader, cells = p.network.reader("rna"), p.cells[0]
    p.network.eval()
    observed = cells.gather(torch.tensor([4])).observed
    tokens = cells.tokens(observed, training=False)
    f = p.network.features()[0][p.network.vertices("rna")]
    with torch.no_grad():
        found = reader(f, tokens)[0]
        value = reader.value(tokens.value)
        hidden = reader.project(reader.project.position(f), tokens.feature, value)
        for block in reader.blocks:
            hidden = block(hidden, tokens.log_weight)
        score = reader.score(reader.norm(hidden))[0, :, 0]
    expected = torch.zeros(9)
    expected[tokens.feature[0]] = score
    torch.testing.assert_close(found, expected)
    absent = np.setdiff1d(np.arange(9), observed.columns.numpy())
    assert len(absent)
    assert not found[absent].any()


def test_latents_see_the_graph_position_and_the_value_of_a_token(problem):
    p = problem()
    reader, cells = p.network.reader("rna"), p.cells[0]
    p.network.eval()
    tokens = cells.tokens(cells.gather(torch.arange(3, 6)).observed, training=False)
    f = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    used = tokens.feature[0, 0]
    with torch.no_grad():
        before = reader(f, tokens)
        f2 = f.clone()
        f2[used] += 1
        assert not torch.allclose(reader(f2, tokens)[0], before[0])
        tokens.value[0, 0] += 1
        assert not torch.allclose(reader(f, tokens)[0], before[0])


def test_one_attention_network_for_all_layers_or_one_each(problem):
    shared, own = problem(), problem(share_attention=False)
    assert shared.network.reader("rna") is shared.network.reader("atac")
    assert own.network.reader("rna") is not own.network.reader("atac")
    assert problem(encoder="mlp").network.reader("rna") is None
    # The random directions of FAVOR+ differ between layers and blocks.
    p = problem(encoder="performer", share_attention=False, depth=2)
    omegas = [
        block.attention.features.omega
        for name in ("rna", "atac")
        for block in p.network.reader(name).blocks
    ]
    assert len({tuple(omega.flatten().tolist()) for omega in omegas}) == 4


def test_directions_are_redrawn_by_training_passes_alone(problem):
    p = problem(encoder="performer", redraw_every=2)
    features = p.network.reader("rna").blocks[0].attention.features
    first = features.omega.clone()
    p.validated()
    p.validated()
    p.train()
    assert features.omega.equal(first)
    p.train()
    assert not features.omega.equal(first)
    assert features.passes == 2


def test_what_is_averaged_or_restored_is_whole(problem):
    """Loading a state brings back the directions, and the state has every parameter once."""
    p, q = problem(encoder="performer", redraw_every=1), problem(encoder="performer", seed=3)
    p.train()
    state = p.network.state_dict()
    pointers = [t.data_ptr() for t in state.values() if t.is_floating_point()]
    assert len(pointers) == len(set(pointers))
    q.network.load_state_dict(state)
    for block in q.network.reader("rna").blocks:
        assert block.attention.features.passes == 1


# -- the cells -----------------------------------------------------------------------------------


def test_tokens_tell_scaled_log_values(problem):
    p = problem(names=("rna", "met"), tokens="all", use_rep=False)
    for cells, layer in zip(p.cells, p.inputs.layers, strict=True):
        x = layer.values.toarray().astype(float)
        if layer.likelihood == "nb":
            x = 1e4 * x / np.maximum(x.sum(1, keepdims=True), 1e-7)
        x = np.log1p(x)
        expected = np.clip((x - x.mean(0)) / x.std(0), -10, 10)
        batch = cells.gather(torch.arange(layer.n_cells))
        tokens = cells.tokens(batch.observed, training=True)
        np.testing.assert_allclose(tokens.value, expected, atol=1e-4)
        np.testing.assert_allclose(batch.own, expected, atol=1e-4)


def test_bins_are_those_of_scbert(problem):
    p = problem(tokens="all", value="bins")
    x = p.inputs.layers[0].values.toarray().astype(float)
    scaled = 1e4 * x / np.maximum(x.sum(1, keepdims=True), 1e-7)
    expected = np.minimum(np.floor(np.log2(1 + scaled)), 5)
    cells = p.cells[0]
    found = cells.tokens(cells.gather(torch.arange(len(x))).observed, training=True).value
    np.testing.assert_array_equal(found, expected)
    assert p.network.reader("rna").value.table.num_embeddings == 6


def test_features_that_never_vary_are_left_at_zero(problem):
    p = problem(use_rep=False)
    layer = p.inputs.layers[0]
    values = layer.values.toarray()
    values[:, 2] = 0
    layer.values = type(layer.values)(values)
    cells = type(p.cells[0])(layer, p.config, torch.device("cpu"))
    own = cells.gather(torch.arange(30)).own
    assert torch.isfinite(own).all()
    assert not own[:, 2].any()


def test_token_options(problem):
    p = problem(tokens="sampled", max_tokens=3)
    cells = p.cells[1]
    observed = cells.gather(torch.arange(10)).observed
    training = cells.tokens(observed, training=True)
    assert training.feature.shape == (10, 6)
    assert cells.tokens(observed, training=False).feature.shape == (10, 14)
    assert [c.tokens_are for c in problem(tokens="all", token_limit=10).cells] == ["all", "nonzero"]
    whole = problem(tokens="nonzero", max_tokens=3).cells[1].tokens(observed, training=False)
    assert whole.feature.shape[1] == int((observed.dense() > 0).sum(1).max())


@pytest.mark.parametrize("encoder", ["latent", "performer", "mlp"])
def test_embedding_is_the_mean_without_dropout_whatever_the_chunk(problem, encoder):
    p = problem(encoder=encoder, dropout=0.5, attention_dropout=0.5)
    p.network.train()
    whole, parts = embed(p.network, p.cells), embed(p.network, p.cells, chunk=7)
    for name, found in whole.cells.items():
        np.testing.assert_allclose(found, parts.cells[name], atol=1e-5)
        assert found.dtype == np.float32
    np.testing.assert_array_equal(whole.features, p.network.features()[0].detach())
    assert p.network.training


@pytest.mark.parametrize("encoder", ["latent", "performer"])
def test_attention_starts_as_a_correction_of_nothing(problem, encoder):
    """What is added is a linear map of what was read, which starts at zero."""
    fresh = problem(encoder=encoder)
    torch.manual_seed(0)
    fresh.network = type(fresh.network)(fresh.inputs, fresh.cells, fresh.config, 0).eval()
    own = fresh.cells[0].gather(torch.arange(30)).own
    with torch.no_grad():
        expected, _ = fresh.network.teachers["rna"].head(own)
    np.testing.assert_array_equal(embed(fresh.network, fresh.cells).cells["rna"], expected)
    p = problem(encoder=encoder)
    teacher, reader = p.network.teachers["rna"].eval(), p.network.reader("rna")
    assert (reader.merge is None) == (encoder == "performer")
    read = teacher.standardize(reading(p))
    with torch.no_grad():
        mean, _ = teacher.head(p.cells[0].gather(torch.arange(30)).own)
        expected = mean + (reader.merge or teacher.merge)(read)
    np.testing.assert_allclose(embed(p.network, p.cells).cells["rna"], expected, atol=1e-5)


@pytest.mark.parametrize("residual", ["none", "concat"])
def test_the_head_reads_attention_alone_or_beside_the_input(problem, residual):
    p = problem(residual=residual)
    teacher = p.network.teachers["rna"].eval()
    read = teacher.standardize(reading(p))
    own = p.cells[0].gather(torch.arange(30)).own
    with torch.no_grad():
        expected, _ = teacher.head(read if residual == "none" else torch.cat([read, own], 1))
    np.testing.assert_allclose(embed(p.network, p.cells).cells["rna"], expected, atol=1e-5)
    assert p.network.reader("rna").merge is None


@pytest.mark.parametrize("names", [("rna", "atac"), ("rna", "met")])
def test_pooled_positions_are_sums_over_all_features_by_their_values(problem, names):
    p = problem(names=names)
    for cells, layer in zip(p.cells, p.inputs.layers, strict=True):
        x = layer.values.toarray().astype(float)
        if layer.likelihood == "nb":
            x = 1e4 * x / np.maximum(x.sum(1, keepdims=True), 1e-7)
        z = np.log1p(x)
        f = np.random.default_rng(3).normal(size=(layer.values.shape[1], 5))
        expected = [sum(value * at for value, at in zip(row, f, strict=True)) for row in z]
        expected -= np.mean(expected, axis=0)
        rows = torch.tensor([4, 0, 11, 4])
        found = cells.pooled(cells.gather(rows).observed, torch.tensor(f).float())
        np.testing.assert_allclose(found, expected[rows.numpy()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_rep", [True, False])
def test_joined_embeddings_are_the_unit_mean_and_smoothed_pooled_positions(problem, use_rep):
    p = problem(student="pooled", use_rep=use_rep, join_weight=0.7)
    means, unit, joined = (
        embed(p.network, p.cells, form, chunk=7).cells for form in ("mean", "unit", "joined")
    )
    features = p.network.eval().features()[0].detach()

    def normed(values):
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    for cells, layer in zip(p.cells, p.inputs.layers, strict=True):
        np.testing.assert_allclose(unit[cells.name], normed(means[cells.name]), atol=1e-6)
        observed = cells.gather(torch.arange(cells.n_cells)).observed
        pooled = cells.pooled(observed, features[p.network.vertices(cells.name)]).double().numpy()
        pooled -= pooled.mean(0)
        if use_rep:
            # Least squares on the representation, with an intercept.
            design = np.column_stack([np.ones(cells.n_cells), layer.rep])
            pooled = design @ np.linalg.lstsq(design, pooled, rcond=None)[0]
        expected = normed(unit[cells.name] + 0.7 * normed(pooled))
        np.testing.assert_allclose(joined[cells.name], expected, atol=1e-4)


def test_without_the_fine_grained_view_no_cell_is_read_by_its_features(problem):
    """Given PCA/LSI, counts change nothing in evaluation mode; with the view they do."""
    for options, same in (({**PRESETS["no_fine_grained"]}, True), ({"embedding": "joined"}, False)):
        p = problem(**{"encoder": "mlp", **options})
        before = embed(p.network, p.cells).cells["rna"]
        matrix = p.cells[0].matrix
        matrix.values = matrix.values.flip(0)
        after = embed(p.network, p.cells).cells["rna"]
        assert np.array_equal(before, after) == same


def test_the_control_without_attention_is_glues_encoder(problem):
    p = problem(encoder="mlp")
    cells = p.cells[0]
    with torch.no_grad():
        expected, std = p.network.eval().teachers["rna"].head(cells.gather(torch.arange(30)).own)
    np.testing.assert_array_equal(embed(p.network, p.cells).cells["rna"], expected)
    assert (std > 0).all()
