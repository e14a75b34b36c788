from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid import __version__
from scbraid.cli import main
from scbraid.data.layers import Layer, Layers
from scbraid.methods import methods
from scbraid.prepare.h5mu import write_h5mu

COMMANDS = ("check", "list", "simulate", "guidance", "run", "score")


@pytest.fixture
def data(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    layers = {
        name: Layer(
            name,
            sp.csr_matrix(rng.poisson(1.0, (9, 4)).astype(np.float32)),
            np.array([f"{name}-{i}" for i in range(9)]),
            pd.DataFrame(index=[f"{name}{j}" for j in range(4)]),
        )
        for name in ("rna", "atac")
    }
    write_h5mu(tmp_path / "input.h5mu", Layers(layers, meta={"task": "unpaired"}))
    return tmp_path / "input.h5mu"


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    """Runs note the commit of the source; the tests do not ask for it."""
    monkeypatch.setattr("scbraid.provenance.git_commit", lambda: None)


def run(data, *more, method="random"):
    output = data.parent / "run"
    return main(["run", method, "--input", str(data), "--output", str(output), *more]), output


# -- list ------------------------------------------------------------------------------------------


def test_list_of_methods_as_json_has_what_others_build_on(capsys):
    assert main(["list", "methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == methods().names()
    keys = {"name", "role", "tasks", "modalities", "uses", "presets", "tier", "available"}
    for row in rows:
        assert keys <= row.keys()
    glue = rows[0]
    assert glue["name"] == "glue"
    assert glue["uses"] == ["batch", "guidance"]
    assert {"default", "paper", "raw_input"} <= set(glue["presets"])
    assert {"name", "type", "default", "description"} <= glue["options"][0].keys()


@pytest.mark.parametrize("what", ["methods", "metrics", "datasets"])
def test_lists_are_tables_of_aligned_columns(what, capsys):
    assert main(["list", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 1
    assert lines[0].startswith("name")
    assert [line.split()[0] for line in lines[1:]] == [row["name"] for row in rows]
    second = lines[0].index(lines[0].split()[1])
    assert all(line[second - 1] == " " and line[second] != " " for line in lines)


def test_metrics_of_embeddings_and_of_tasks_are_listed(capsys):
    from scbraid.metrics import METRICS
    from scbraid.metrics.registry import AGGREGATES
    from scbraid.metrics.tasks import TASK_METRICS
    from scbraid.metrics.tasks.derived import DERIVED_METRICS

    assert main(["list", "metrics", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    aggregates = [aggregate.name for aggregate in AGGREGATES]
    tasks = [*TASK_METRICS.names(), *DERIVED_METRICS.names()]
    assert list(rows) == [*METRICS.names(), *aggregates, *tasks]
    assert all(row["definition"] and row["needs"] for row in rows.values())
    assert (rows["nmi"]["default"], rows["nmi"]["benchmark"]) == (False, True)
    assert (rows["nmi_scan"]["default"], rows["nmi_scan"]["benchmark"]) == (True, False)
    assert rows["rmse"]["maximum"] is None


def test_list_of_something_else_names_the_choices(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["list", "method"])
    assert caught.value.code == 2
    assert "invalid choice: 'method'" in capsys.readouterr().err


# -- run -------------------------------------------------------------------------------------------


def test_run_writes_the_files_and_says_how_it_ended(data, capsys):
    code, output = run(
        data, "--seed", "4", "--set", "latent_dim=3", "--set", " latent_dim = 5", "--threads", "1",
        "--dataset", "toy", "--condition", "unpaired", "--device", "cpu", "--strict",
    )  # fmt: skip
    assert code == 0
    assert capsys.readouterr().out.startswith("random:latent_dim=5, seed 4: ok (")
    status = json.loads((output / "status.json").read_text())
    assert status["status"] == "ok"
    assert status["config"] == {"latent_dim": 5}
    assert (status["dataset"], status["condition"], status["seed"]) == ("toy", "unpaired", 4)
    assert status["versions"]["scbraid"] == __version__
    assert status["versions"]["numpy"] == np.__version__
    assert (output / "embedding.h5ad").is_file()


def test_a_failed_run_is_a_result_and_an_error_only_when_strict(data, capsys):
    missing = data.with_name("absent.h5mu")
    code, output = run(missing)
    assert code == 0
    assert "random, seed 0: failed: DataError: " in capsys.readouterr().out
    assert json.loads((output / "status.json").read_text())["status"] == "failed"
    assert run(missing, "--strict")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "method", "message"),
    [
        ((), "randon", "scbraid run: unknown method 'randon'; did you mean 'random'? Known: "),
        (("--preset", "papper"), "glue", "unknown preset of glue 'papper'; did you mean 'paper'?"),
        (("--set", "latent_dims=4"), "random", "unknown option 'latent_dims'; did you mean 'laten"),
        (("--set", "latent_dim=0"), "random", "WidthConfig.latent_dim is 0; expected a value >= 1"),
        (("--set", "latent_dim=x"), "random", "option 'latent_dim' is 'x'; expected int"),
        ((), "random:latent_dim=0", "WidthConfig.latent_dim is 0; expected a value >= 1"),
        ((), "random:latent_dim", "has the option 'latent_dim'; expected key=value"),
        (("--preset", "default"), "glue.paper", "names the preset 'paper', and --preset 'default'"),
        (("--set", "latent_dim=4"), "random:latent_dim=5", "'latent_dim' is in the method 'random"),
        (("--set", "latent_dim"), "random", "--set takes key=value; got 'latent_dim'"),
        (("--seed", "-1"), "random", "seed is -1; expected a number >= 0"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(data, capsys, arguments, method, message):
    code, output = run(data, *arguments, method=method)
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not output.exists()


def test_a_method_can_be_written_as_studies_write_it(data, capsys):
    code, output = run(data, "--set", "scale=2", method="random:latent_dim=3")
    assert code == 2  # options of both places reach the method, which has no such one
    assert "unknown option 'scale'" in capsys.readouterr().err
    code, output = run(data, method="random:latent_dim=3")
    assert code == 0
    assert "random:latent_dim=3, seed 0: ok" in capsys.readouterr().out
    assert json.loads((output / "status.json").read_text())["method"] == "random"
    assert h5py.File(output / "embedding.h5ad")["obsm/X_random"].shape[1] == 3


def test_the_method_is_named_beside_a_wrong_option(data, capsys):
    run(data, "--set", "latent_dim=0", method="glue")
    assert "while configuring method 'glue', preset 'default'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "random", "--input", "x"],
        ["run", "random", "--input", "x", "--output", "y", "--seed", "many"],
        ["run", "random", "--input", "x", "--output", "y", "--device", "tpu"],
        ["integrate"],
        [],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: scbraid" in capsys.readouterr().err


# -- the program -----------------------------------------------------------------------------------


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "options:" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"scbraid {__version__}"


def test_interruption_is_exit_code_130(monkeypatch):
    import scbraid.cli

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setitem(scbraid.cli._LISTS, "methods", interrupt)
    assert main(["list", "methods"]) == 130


def test_module_is_the_program_and_starts_light():
    code = (
        "import sys; sys.argv = ['scbraid', 'list', 'methods'];"
        "from scbraid.cli import main; main();"
        "print({'torch', 'scanpy', 'anndata', 'sklearn', 'matplotlib', 'numba', 'umap'}"
        " & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr.strip() == "set()"
    done = subprocess.run(
        [sys.executable, "-m", "scbraid", "--version"], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == f"scbraid {__version__}"
