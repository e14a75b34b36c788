from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scbraid.data.registry import load_datasets
from scbraid.errors import ConfigError, UnknownNameError
from scbraid.study import (
    SCHEMAS,
    Catalogue,
    Config,
    Plan,
    Study,
    make_plan,
    plan_study,
    schema,
    validate,
)

ROOT = Path(__file__).resolve().parents[1]


def _method(name: str, *uses: str, deterministic: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "title": name.title(),
        "role": "baseline",
        "uses": list(uses),
        "presets": ["default", "paper"],
        "options": ["latent_dim", "lr"],
        "deterministic": deterministic,
        "module": f"scbraid.methods.{name}",
        "gpu": False,
    }


CATALOGUE = Catalogue(
    methods={
        row["name"]: row
        for row in (
            _method("glue", "guidance", "batch"),
            _method("random"),
            _method("cca", "guidance", deterministic=True),
        )
    },
    metrics={"foscttm": "lower", "map": "higher"},
    figures={"score_summary": ("scores", "runs"), "foscttm": ("scores",)},
    on_request=("map",),
)

DATASETS = """
datasets:
  demo: {kind: simulated, title: t, preset: demo, cells: 300, layers: {rna: {}, atac: {}}}
  other: {kind: simulated, title: t, preset: demo, cells: 300, layers: {rna: {}, atac: {}}}
  proteins: {kind: simulated, title: t, preset: cite, cells: 300, layers: {rna: {}, adt: {}}}
  far:
    kind: mirror
    title: t
    layers: {rna: {file: rna.h5ad}}
    files: [{name: rna.h5ad, holds: counts, mirror: far/rna.h5ad}]
"""

STUDY: dict[str, Any] = {
    "title": "t",
    "datasets": ["demo"],
    "conditions": ["unpaired"],
    "methods": ["glue", "random"],
    "seeds": [0, 1],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "config" / "studies").mkdir(parents=True)
    (tmp_path / "config" / "datasets.yaml").write_text(DATASETS)
    return tmp_path


def _plan(root: Path, config: dict[str, Any] | None = None, **studies: dict[str, Any]) -> Plan:
    for name, changes in studies.items():
        path = root / "config" / "studies" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}))
    content = {"studies": list(studies), "results": str(root / "results"), **(config or {})}
    return make_plan(content, root, catalogue=CATALOGUE)


def test_runs_are_addressed_by_what_they_are(root: Path) -> None:
    plan = _plan(root, one={"methods": ["glue.paper:latent_dim=20"], "seeds": [3]})
    assert [run.path for run in plan.runs] == [
        "runs/demo/unpaired/glue.paper+latent_dim=20/3",
    ]


def test_two_studies_share_their_runs(root: Path) -> None:
    plan = _plan(
        root, one={}, two={"conditions": [{"corrupt_rate": [0, 0.5]}], "methods": ["glue"]}
    )
    assert len(plan.studies["one"].rows) == 4
    assert len(plan.studies["two"].rows) == 4
    # Clean guidance is the same run in both.
    assert len(plan.runs) == 4 + 2


def test_predictions_run_where_their_source_is_a_layer(root: Path) -> None:
    sweep = {"task": "prediction", "source": ["rna", "adt", "atac"]}
    plan = _plan(
        root,
        one={
            "datasets": ["demo", "proteins"],
            "conditions": [sweep, "matching"],
            "methods": ["cca"],
        },
    )
    assert [(run.dataset, run.condition.slug) for run in plan.runs] == [
        ("demo", "prediction+source=rna"),
        ("demo", "prediction+source=atac"),
        ("demo", "matching"),
        ("proteins", "prediction+source=rna"),
        ("proteins", "prediction+source=adt"),
        ("proteins", "matching"),
    ]
    with pytest.raises(
        ConfigError, match="no condition suits data set 'demo': it has no layer adt"
    ):
        _plan(root, two={"conditions": ["prediction+source=adt"]})


def test_a_method_without_guidance_runs_once_for_all_graphs(root: Path) -> None:
    plan = _plan(root, one={"conditions": [{"corrupt_rate": [0, 0.5, 1]}], "methods": ["random"]})
    rows = plan.studies["one"].rows
    assert [row.condition.slug for row in rows[::2]] == [
        "unpaired",
        "unpaired@corrupt_rate=0.5",
        "unpaired@corrupt_rate=1",
    ]
    assert {run.path for run in plan.runs} == {
        "runs/demo/unpaired/random/0",
        "runs/demo/unpaired/random/1",
    }


def test_a_deterministic_method_runs_once(root: Path) -> None:
    plan = _plan(root, one={"methods": ["cca"], "seeds": [5, 6]})
    assert [run.path for run in plan.runs] == ["runs/demo/unpaired/cca/0"]


def test_metrics_on_request_are_computed_of_the_runs_of_studies_that_name_them(
    root: Path,
) -> None:
    plan = _plan(
        root,
        one={"methods": ["glue"], "metrics": ["foscttm", "map"]},
        two={"methods": ["glue", "random"]},
    )
    by_name = {run.method.name: run for run in plan.runs}
    assert plan.metrics(by_name["glue"]) == ["benchmark", "map"]
    assert plan.metrics(by_name["random"]) is None


def test_features_are_compared_with_the_lowest_other_seed(root: Path) -> None:
    plan = _plan(root, one={"methods": ["glue", "random", "cca"], "seeds": [0, 1, 4]})
    runs = {run.path: run for run in plan.runs}
    found = {path: plan.reference(run) for path, run in runs.items()}
    glue = "runs/demo/unpaired/glue/"
    assert found[f"{glue}0"] == runs[f"{glue}1"]
    assert found[f"{glue}1"] == found[f"{glue}4"] == runs[f"{glue}0"]
    # Without features, or without a second seed, there is nothing to compare.
    assert found["runs/demo/unpaired/random/1"] is None
    assert found["runs/demo/unpaired/cca/0"] is None
    alone = _plan(root, one={"methods": ["glue"], "seeds": [0]})
    assert alone.reference(alone.runs[0]) is None


def test_sweeps_of_methods_unroll(root: Path) -> None:
    sweep = {"name": "glue", "preset": ["default", "paper"], "options": {"lr": [0.1, 1e-5]}}
    plan = _plan(root, one={"methods": [sweep], "seeds": [0]})
    assert [run.method.slug for run in plan.runs] == [
        "glue+lr=0.1",
        "glue+lr=1e-05",
        "glue.paper+lr=0.1",
        "glue.paper+lr=1e-05",
    ]


def test_limits_of_a_method_deviate_where_they_say_so() -> None:
    config = Config(studies=["x"], run={"time_limit": 60}, methods={"glue": {"threads": 4}})
    assert (config.limits("glue").threads, config.limits("glue").time_limit) == (4, 60)
    assert config.limits("random").threads == 1


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"methods": ["glu"]},
            UnknownNameError,
            "one.yaml: methods: glu: unknown method 'glu'; did",
        ),
        ({"methods": ["glue.papr"]}, UnknownNameError, "did you mean 'paper'?"),
        ({"methods": ["glue:laten_dim=3"]}, UnknownNameError, "did you mean 'latent_dim'?"),
        ({"datasets": ["dmo"]}, UnknownNameError, "one.yaml: datasets: unknown dataset 'dmo'; did"),
        ({"metrics": ["foscttn"]}, UnknownNameError, "one.yaml: metrics: unknown metric 'foscttn'"),
        ({"figures": ["score_sumary"]}, UnknownNameError, "did you mean 'score_summary'?"),
        ({"conditions": ["unpaired+cell=3"]}, UnknownNameError, "did you mean 'cells'?"),
        ({"conditions": [{"corrupt_rte": [0, 1]}]}, UnknownNameError, "'corrupt_rate'?"),
        ({"conditions": [{"corrupt_rate": [0, 2]}]}, ConfigError, "a number from 0 to 1"),
        ({"seedz": [0]}, ConfigError, "one.yaml: unknown key 'seedz'; did you mean 'seeds'?"),
        ({"seeds": []}, ConfigError, "one.yaml: seeds: List should have at least 1 item"),
        ({"seeds": [1, 1]}, ConfigError, "seeds: 1 stands twice"),
        ({"seeds": [-1]}, ConfigError, "one.yaml: seeds.0:"),
        ({"minmax": "none.tsv"}, ConfigError, "one.yaml: minmax: there is no file none.tsv"),
        ({"datasets": ["far"]}, ConfigError, "data set 'far' cannot be had: "),
    ],
)
def test_mistakes_in_a_study_are_named(
    root: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        _plan(root, one=changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mirorr": "x"}, "config: unknown key 'mirorr'; did you mean 'mirror'?"),
        ({"run": {"treads": 2}}, "config: run: unknown key 'treads'; did you mean 'threads'?"),
        ({"run": {"time_limit": 0}}, "run.time_limit: Input should be greater than or equal to 1"),
        ({"methods": {"glu": {}}}, "config: methods.glu: unknown method 'glu'; did you mean"),
        ({"methods": {"glue": {"memory": 1}}}, "methods.glue: unknown key 'memory'"),
        ({"device": "gpu"}, "device: Input should be 'auto', 'cpu' or 'cuda'. Got 'gpu'"),
        ({"studies": ["on"]}, "unknown study 'on'; did you mean 'one'?"),
        ({"studies": ["no/such.yaml"]}, "there is no file no/such.yaml"),
        ({"datasets": {"mine": {"kind": "locl", "title": "t"}}}, "'mine', field 'kind'"),
    ],
)
def test_mistakes_in_the_configuration_are_named(
    root: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        _plan(root, changes, one={})
    assert words in str(caught.value)


def test_values_that_a_method_refuses_are_named_with_the_method(root: Path) -> None:
    _plan(root, one={"methods": ["glue:latent_dim=20"]})
    config = {"studies": ["one"], "results": str(root / "results")}
    live = dataclasses.replace(CATALOGUE, check_values=Catalogue.live().check_values)
    make_plan(config, root, catalogue=live)
    _plan(root, one={"methods": ["glue:latent_dim=-3"]})
    with pytest.raises(ConfigError, match=r"one\.yaml: methods: glue:latent_dim=-3: .*latent_dim"):
        make_plan(config, root, catalogue=live)


def test_own_data_sets_stand_beside_the_registered_ones(root: Path) -> None:
    (root / "mine.h5mu").touch()
    own = {
        "mine": {
            "kind": "local",
            "title": "t",
            "reader": "h5mu",
            "file": str(root / "mine.h5mu"),
        }
    }
    plan = _plan(root, {"datasets": own}, one={"datasets": ["mine", "demo"]})
    assert {run.dataset for run in plan.runs} == {"mine", "demo"}


def test_a_missing_own_file_is_named_before_anything_runs(root: Path) -> None:
    own = {"mine": {"kind": "local", "title": "t", "reader": "h5mu", "file": "nowhere.h5mu"}}
    with pytest.raises(ConfigError, match=r"'mine' cannot be had: no file nowhere\.h5mu"):
        _plan(root, {"datasets": own}, one={"datasets": ["mine"]})


def test_a_study_that_is_no_yaml_is_named(root: Path) -> None:
    path = root / "broken.yaml"
    path.write_text("title: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml cannot be read as YAML"):
        _plan(root, {"studies": [str(path)]})


def test_the_kept_catalogue_is_read_back(tmp_path: Path) -> None:
    CATALOGUE.write(tmp_path / "catalogue.json")
    assert Catalogue.read(tmp_path / "catalogue.json") == CATALOGUE


@pytest.mark.parametrize("file", sorted(SCHEMAS))
def test_schemas_are_those_of_the_models(file: str) -> None:
    kept = json.loads((ROOT / "workflow" / "schemas" / file).read_text("utf-8"))
    assert kept == schema(file), "run `make catalogue`"


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "studies").glob("*.yaml")), ids=str)
def test_shipped_studies_are_valid(path: Path) -> None:
    study = validate(Study, yaml.safe_load(path.read_text("utf-8")), str(path))
    config = [file for file in (ROOT / "config").glob("*.yaml") if file.name != "datasets.yaml"]
    own = [yaml.safe_load(file.read_text("utf-8")).get("datasets", {}) for file in config]
    known = load_datasets(
        [ROOT / "config" / "datasets.yaml"],
        {name: entry for entries in own for name, entry in entries.items()},
    )
    # Every name in it exists, and every option is accepted.
    assert plan_study(study, path, known, Catalogue.live()).rows


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    content = yaml.safe_load(path.read_text("utf-8"))
    if path.name != "datasets.yaml":
        validate(Config, content, str(path))
