"""What every registered method must keep, whoever wrote it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest

from scbraid.data.layers import Layers
from scbraid.errors import ConfigError, ContractError, NotApplicable
from scbraid.guidance.graph import Guidance
from scbraid.methods import Truth, describe_methods, methods
from scbraid.methods.base import DEFAULT_PRESET, Method, MethodInfo, MethodResult

NAMES = methods().names()
ROLES = {"subject", "baseline", "control", "oracle"}
TASKS = {"unpaired", "paired", "hybrid", "prediction", "matching", "joint", "imputation"}
USES = {"labels", "pairing", "batch", "guidance"}


def quick_options(method: type[Method], quick: dict) -> dict:
    known = {row["name"] for row in method.Config.describe()}
    return {name: value for name, value in quick.items() if name in known}


class Fits:
    """Runs of methods on the small data set, each made once."""

    def __init__(self, prepared, quick):
        self.prepared, self.quick = prepared, quick
        self.fit = cache(self._fit)

    def case(self, name: str):
        info = methods()[name].info
        task = "unpaired" if "unpaired" in info.tasks else info.tasks[0]
        return self.prepared(task=task, n_cells=100)

    def run(self, name: str, data: Layers, seed: int = 0) -> MethodResult:
        method, case = methods()[name], self.case(name)
        if missing := method.info.missing_packages():
            pytest.skip(f"{name} needs {', '.join(missing)}, in an environment of its own")
        config = method.configure(DEFAULT_PRESET, quick_options(method, self.quick))
        uses = method.info.uses
        return method(config, seed=seed, device="cpu").fit(
            data,
            case.guidance if "guidance" in uses else None,
            Truth(case.truth) if uses & {"labels", "pairing"} else None,
        )

    def _fit(self, name: str, seed: int, copy_number: int) -> MethodResult:
        return self.run(name, self.case(name).data, seed)


def answer_of(result: MethodResult) -> dict[str, np.ndarray]:
    """Arrays that a result consists of."""
    found = dict(result.embeddings)
    if result.prediction is not None:
        found["prediction"] = result.prediction.values
    if result.matching is not None:
        found["matching"] = result.matching.weights.toarray()
    return found


@pytest.fixture(scope="module")
def fits(prepared, quick_everywhere):
    return Fits(prepared, quick_everywhere)


def arrays_of(data: Layers, guidance: Guidance) -> dict[str, bytes]:
    found = {}
    for name, layer in data.layers.items():
        found |= {
            f"{name}.{part}": getattr(layer.counts, part).tobytes()
            for part in ("data", "indices", "indptr")
        }
        found |= {f"{name}.{key}": rep.tobytes() for key, rep in layer.reps.items()}
        found[f"{name}.cells"] = layer.cells.tobytes()
        found[f"{name}.features"] = layer.features.to_csv()
    for part in ("features", "source", "target", "sign", "weight", "highly_variable"):
        found[f"guidance.{part}"] = getattr(guidance, part).tobytes()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone_and_result_is_sound(fits, name):
    case = fits.case(name)
    before = arrays_of(case.data, case.guidance)
    truth = case.truth.copy()
    result = fits.run(name, case.data)
    assert arrays_of(case.data, case.guidance) == before
    assert case.truth.equals(truth)
    result.check(case.data, name)
    assert answer_of(result)
    widths = set()
    for layer, embedding in result.embeddings.items():
        assert embedding.shape[0] == case.data[layer].n_cells
        assert np.isfinite(embedding).all()
        assert embedding.std() > 0
        widths.add(embedding.shape[1])
    assert len(widths) == bool(result.embeddings)
    for layer, (features, embedding) in result.features.items():
        assert len(features) == len(embedding)
        assert set(features) <= set(case.data[layer].features.index)
        assert np.isfinite(embedding).all()
    json.dumps(result.details)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_bytes(fits, name):
    first, again = fits.fit(name, 0, 0), fits.fit(name, 0, 1)
    for part, values in answer_of(first).items():
        assert values.tobytes() == answer_of(again)[part].tobytes()
    for layer, (_, embedding) in first.features.items():
        assert embedding.tobytes() == again.features[layer][1].tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_seed_changes_the_result_unless_the_method_is_deterministic(fits, name):
    first, other = fits.fit(name, 0, 0), fits.fit(name, 1, 0)
    again = answer_of(other)
    same = all(np.array_equal(values, again[part]) for part, values in answer_of(first).items())
    assert same == methods()[name].info.deterministic


@pytest.mark.parametrize("name", [n for n in NAMES if methods()[n].info.deterministic])
def test_permuted_cells_give_a_permuted_embedding(fits, name):
    data = fits.case(name).data
    rng = np.random.default_rng(5)
    order = {layer: rng.permutation(data[layer].n_cells) for layer in data.names}
    shuffled = Layers(
        {layer: data[layer].take(rows) for layer, rows in order.items()}, data.paired, data.meta
    )
    found = fits.run(name, shuffled)
    expected = fits.fit(name, 0, 0)
    for layer in expected.embeddings:
        rows = order[layer]
        scale = np.abs(expected.embeddings[layer]).max()
        np.testing.assert_allclose(
            found.embeddings[layer] / scale, expected.embeddings[layer][rows] / scale, atol=1e-3
        )
    if expected.prediction is not None:
        rows = pd.Index(found.prediction.cells).get_indexer(expected.prediction.cells)
        values = found.prediction.values[rows]
        np.testing.assert_allclose(values, expected.prediction.values, atol=1e-3)
    if expected.matching is not None:
        a, b = (
            pd.Index(cells).get_indexer(wanted)
            for cells, wanted in zip(found.matching.cells, expected.matching.cells, strict=True)
        )
        weights = found.matching.weights.toarray()[a][:, b]
        np.testing.assert_allclose(weights, expected.matching.weights.toarray(), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_declaration_is_complete(name):
    method = methods()[name]
    info = method.info
    assert info.name == name
    assert info.role in ROLES
    assert info.tasks
    assert set(info.tasks) <= TASKS
    assert info.uses <= USES
    assert info.summary.endswith(".")
    assert info.title
    if info.role in {"subject", "baseline"}:
        assert "doi" in info.citation
    if info.role == "oracle":
        assert info.uses & {"labels", "pairing"}
    elif info.tasks != ("joint",):
        # The labels of a joint task's exploration part are its input; nobody else's reach a method.
        assert "labels" not in info.uses
    described = method.Config.describe()
    assert method.configure().as_dict().keys() == {row["name"] for row in described}
    for row in described:
        assert row["description"]
        assert row["default"] == getattr(method.configure(), row["name"])
    for preset, options in method.presets.items():
        assert preset != DEFAULT_PRESET
        configured = method.configure(preset).as_dict()
        assert all(configured[key] == value for key, value in options.items())


def test_listing_names_everything_and_is_json():
    rows = describe_methods()
    assert [row["name"] for row in rows] == NAMES
    json.dumps(rows)
    keys = {"name", "role", "tasks", "modalities", "uses", "presets", "tier", "available"}
    for row in rows:
        assert keys <= row.keys()
        assert row["presets"][0] == DEFAULT_PRESET
        assert row["available"] is True or row["available"].startswith("needs ")


def test_missing_packages_are_named():
    info = MethodInfo(
        "x", "X", "X.", "baseline", ("unpaired",), requires=("no_such_package", "json")
    )
    assert info.missing_packages() == ["no_such_package"]


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def test_listing_methods_imports_nothing_heavy():
    code = (
        "import sys, scbraid.methods as m; m.describe_methods();"
        "heavy = {'torch', 'scanpy', 'anndata', 'mudata', 'sklearn', 'matplotlib', 'numba',"
        " 'igraph', 'umap', 'pyranges', 'harmonypy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert python(code).strip() == "[]"


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("scbraid", set()),
        ("scbraid.nn.likelihoods, scbraid.nn.graph, scbraid.train.engine", {"torch"}),
        ("scbraid.methods.glue.fit, scbraid.methods.glue.model", {"torch"}),
        ("scbraid.methods.baselines, scbraid.worker, scbraid.runner, scbraid.cli", set()),
    ],
)
def test_a_training_node_needs_only_the_core_packages(module, allowed):
    code = f"import sys, {module}; print(' '.join({{m.partition('.')[0] for m in sys.modules}}))"
    loaded = set(python(code).split())
    heavy = {"torch", "scanpy", "anndata", "mudata", "sklearn", "matplotlib", "igraph", "numba"}
    assert loaded & heavy <= allowed


def test_importing_the_package_is_quick():
    # Processor time, so that a busy machine does not matter.
    code = "import time; a = time.process_time(); import scbraid; print(time.process_time() - a)"
    assert min(float(python(code)) for _ in range(2)) < 0.3


# -- what the contract refuses -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("atac"), "method 'toy' returned no embedding of layer 'atac'"),
        (lambda e: e.update(rna=e["rna"][:-1]), r"shape \(99, 4\) for layer 'rna'; expected \(100"),
        (lambda e: e.update(rna=e["rna"][:, 0]), r"shape \(100,\) for layer 'rna'"),
        (lambda e: e.update(rna=e["rna"][:, :2]), r"of different widths: \[2, 4\]"),
        (lambda e: e["rna"].fill(np.nan), "returned no finite value for layer 'rna'"),
    ],
)
def test_unsound_results_are_refused(prepared, change, message):
    data = prepared(n_cells=100).data
    embeddings = {name: np.ones((data[name].n_cells, 4)) for name in data.names}
    change(embeddings)
    with pytest.raises(ContractError, match=message):
        MethodResult(embeddings).check(data, "toy")


def test_some_cells_without_embedding_are_allowed(prepared):
    data = prepared(n_cells=100).data
    embeddings = {name: np.ones((data[name].n_cells, 4)) for name in data.names}
    embeddings["rna"][:5] = np.nan
    MethodResult(embeddings).check(data, "toy")


def test_modalities_decide_applicability(prepared):
    class RnaOnly(Method):
        info = MethodInfo("rna_only", "R", "R.", "control", ("unpaired",), modalities=("rna",))

        def fit(self, data, guidance=None, truth=None):
            raise AssertionError

    data = copy.deepcopy(prepared(n_cells=100).data)
    with pytest.raises(NotApplicable, match="rna_only takes rna; got layers rna, atac"):
        RnaOnly.check_applicable(data)
    del data.layers["atac"]
    RnaOnly.check_applicable(data)


def test_a_second_method_of_a_name_is_refused():
    with pytest.raises(ConfigError, match="method 'glue' is registered twice"):
        methods().register("glue", methods()["random"])
