"""Runs in a child process: every way to end, what a method may see, and plug-in methods."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid import runner, worker
from scbraid.data.layers import Layer, Layers
from scbraid.errors import ConfigError, UnknownNameError
from scbraid.files import write_json
from scbraid.methods import methods
from scbraid.prepare.h5mu import write_h5mu
from scbraid.runner import RunRequest, parse_options, run_method

# Methods of a third party, as an installed package with an entry point would bring them.
PLUGIN = """
import dataclasses, json, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
from scbraid.errors import NotApplicable
from scbraid.methods.base import Method, MethodInfo, MethodResult
from scbraid.methods.config import MethodConfig, option


@dataclasses.dataclass(frozen=True)
class ToyConfig(MethodConfig):
    how: str = option("ok", "how to end")
    note: str = option("", "file that is told what was seen")


class Toy(Method):
    info = MethodInfo("toy", "Toy", "Ends as it is told.", "control", ("unpaired",))
    Config = ToyConfig
    presets = {"crash": {"how": "crash"}}

    def fit(self, data, guidance=None, truth=None):
        self.tell(data, guidance, truth)
        return getattr(self, "end_" + self.config.how)(data)

    def tell(self, data, guidance, truth):
        if not self.config.note:
            return
        Path(self.config.note).write_text(json.dumps({
            "paired": data.paired,
            "cells": {name: data[name].cells.tolist() for name in data.names},
            "batch": {name: data[name].batch is not None for name in data.names},
            "first": {name: data[name].counts[:, [0]].toarray()[:, 0].tolist()
                      for name in data.names},
            "guidance": guidance is not None,
            "truth": None if truth is None else truth.table.astype(str).to_dict("list"),
            "pid": os.getpid(),
        }))

    def end_ok(self, data):
        # The embedding tells which cell it was made for: its number is in the first column.
        return MethodResult({n: data[n].counts[:, [0, 1]].toarray() for n in data.names},
                            details={"n": 3})

    def end_crash(self, data):
        raise ValueError("the matrix is singular")

    def end_not_applicable(self, data):
        raise NotApplicable("needs three layers")

    def end_sleep(self, data):
        time.sleep(120)

    def end_hog(self, data):
        hoard = []
        while True:
            hoard.append(np.ones(8_000_000))
            time.sleep(0.02)

    def end_memory_error(self, data):
        np.ones(1 << 58)

    def end_torch_memory(self, data):
        raise RuntimeError("CUDA out of memory. Tried to allocate 80 GiB")

    def end_killed(self, data):
        os.kill(os.getpid(), signal.SIGKILL)

    def end_segfault(self, data):
        os.kill(os.getpid(), signal.SIGSEGV)

    def end_exit(self, data):
        os._exit(3)

    def end_wrong_shape(self, data):
        return MethodResult({n: np.ones((2, 2)) for n in data.names})

    def end_numpy_details(self, data):
        result = self.end_ok(data)
        result.details = {"score": np.float32(0.5), "sizes": np.arange(3), "n": np.int64(4)}
        return result

    def end_half(self, data):
        # Leaves an unfinished file behind.
        Path("embedding.h5ad").write_text("half")
        raise KeyError("late")

    def end_children(self, data):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
        time.sleep(120)


class Batchy(Toy):
    info = dataclasses.replace(Toy.info, name="batchy", uses=frozenset({"batch"}))


class Pairy(Toy):
    info = dataclasses.replace(
        Toy.info, name="pairy", tasks=("paired",), uses=frozenset({"pairing", "guidance"}))


class Labelled(Toy):
    info = dataclasses.replace(
        Toy.info, name="labelled", tasks=("unpaired", "paired"), uses=frozenset({"labels"}))


class Oracle(Toy):
    info = dataclasses.replace(
        Toy.info, name="oracle", tasks=("paired",), uses=frozenset({"labels", "pairing"}))


class Heavy(Toy):
    info = dataclasses.replace(Toy.info, name="heavy", requires=("no_such_package",))
"""
N_CELLS = 12


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "toy_methods.py").write_text(PLUGIN)
    info = folder / "toy_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-methods\nVersion: 1.0\n")
    names = ("Toy", "Batchy", "Pairy", "Labelled", "Oracle", "Heavy")
    lines = [f"{name.lower()} = toy_methods:{name}" for name in names]
    (info / "entry_points.txt").write_text("[scbraid.methods]\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def installed(plugin, monkeypatch):
    """Make the plug-in importable here and in child processes, for one test."""
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.setenv("PYTHONPATH", str(plugin), prepend=os.pathsep)
    monkeypatch.setattr(
        runner, "provenance", lambda: {"versions": {}, "commit": None, "platform": "test"}
    )
    methods.cache_clear()
    yield
    methods.cache_clear()


def write_input(path: Path, *, paired: bool) -> Path:
    """Two layers of 12 cells; the first feature counts the cells, the pairs by the same number."""
    rng = np.random.default_rng(0)
    layers = {}
    for k, name in enumerate(("rna", "atac")):
        order = np.arange(N_CELLS) if paired else rng.permutation(N_CELLS)
        values = rng.poisson(1.0, (N_CELLS, 5 + k))
        values[:, 0] = order + 1
        layers[name] = Layer(
            name,
            sp.csr_matrix(values.astype(np.float32)),
            np.array([f"{'cell' if paired else name}-{i}" for i in range(N_CELLS)]),
            pd.DataFrame(index=[f"{name}{j}" for j in range(5 + k)]),
            batch=np.array(["a", "b"])[order % 2],
        )
    meta = {"task": "paired" if paired else "unpaired", "dataset": "toy"}
    write_h5mu(path, Layers(layers, paired=paired, meta=meta))
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return {p: write_input(folder / f"{p}.h5mu", paired=p) for p in (False, True)}


@pytest.fixture
def truth(tmp_path) -> Path:
    rows = [
        {
            "modality": name,
            "cell": f"cell-{i}",
            "origin": f"donor-{i}",
            "pair": i,
            "cell_type": f"type{i % 3}",
            "batch": "a",
            "scored": True,
        }
        for name in ("rna", "atac")
        for i in range(N_CELLS)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "truth.parquet")
    return tmp_path / "truth.parquet"


@pytest.fixture
def run(inputs, tmp_path):
    def start(how="ok", *, method="toy", paired=False, options=None, **fields):
        request = RunRequest(
            method=method,
            input=str(fields.pop("input", inputs[paired])),
            output=str(tmp_path / "run"),
            options={"how": how, **(options or {})} if method != "random" else options or {},
            **fields,
        )
        return run_method(request), tmp_path / "run"

    return start


@pytest.fixture
def work(inputs, tmp_path):
    """Do in this process what the child of a run does; give its outcome and its folder."""

    def start(how="ok", *, method="toy", paired=False, options=None, **fields):
        folder = tmp_path / "scratch"
        folder.mkdir(exist_ok=True)
        request = RunRequest(
            method=method,
            input=str(fields.pop("input", inputs[paired])),
            output=str(tmp_path),
            options={"how": how, **(options or {})},
            **fields,
        )
        write_json(folder / "request.json", dataclasses.asdict(request))
        worker.main(folder)
        return json.loads((folder / "outcome.json").read_text()), folder

    return start


def read_embedding(folder: Path, key: str = "X_toy"):
    with h5py.File(folder / "embedding.h5ad") as file:
        cells = file["obs/_index"].asstr()[:]
        modality = file["obs/modality"].asstr()[:]
        return cells, modality, file[f"obsm/{key}"][:]


def assert_left_nothing(folder: Path) -> None:
    """A run that did not end well leaves a status and an embedding of no cell, nothing else."""
    assert sorted(p.name for p in folder.iterdir()) == ["embedding.h5ad", "status.json"]
    cells, _, embedding = read_embedding(folder)
    assert len(cells) == len(embedding) == 0


# -- ways to end -----------------------------------------------------------------------------------


def test_ok(run, inputs):
    status, folder = run(seed=5, dataset="toy", condition="unpaired", threads=1)
    assert status["status"] == "ok"
    assert status["reason"] == status["traceback"] == ""
    assert json.loads((folder / "status.json").read_text()) == status
    assert status["config"] == {"how": "ok", "note": ""}
    assert status["details"] == {"n": 3}
    expected = {"method": "toy", "preset": "default", "seed": 5, "dataset": "toy",
                "condition": "unpaired", "threads": 1}  # fmt: skip
    assert {key: status[key] for key in expected} == expected
    assert 0 <= status["seconds"] <= status["wall_seconds"]
    assert status["cpu_seconds"] > 0
    assert status["peak_rss_mib"] > 20
    assert status["limits"] == {"seconds": None, "memory_mib": None}
    assert {"versions", "commit", "platform", "peak_gpu_mib", "device"} <= status.keys()
    cells, modality, embedding = read_embedding(folder)
    data = Layers.read(inputs[False])
    assert modality.tolist() == ["rna"] * N_CELLS + ["atac"] * N_CELLS
    assert cells.tolist() == [*data["rna"].cells, *data["atac"].cells]
    assert embedding.dtype == np.float32
    np.testing.assert_array_equal(
        embedding, np.concatenate([data[n].counts[:, :2].toarray() for n in data.names])
    )
    assert sorted(p.name for p in folder.iterdir()) == ["embedding.h5ad", "status.json"]


def test_failure(run):
    status, folder = run("crash")
    assert status["status"] == "failed"
    assert status["reason"] == "ValueError: the matrix is singular"
    assert "Traceback" in status["traceback"]
    assert "toy_methods.py" in status["traceback"]
    assert_left_nothing(folder)


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("not_applicable", "not_applicable", "needs three layers"),
        ("memory_error", "out_of_memory", "MemoryError"),
        ("torch_memory", "out_of_memory", "RuntimeError: CUDA out of memory"),
        (
            "wrong_shape",
            "failed",
            "returned an embedding of shape (2, 2) for layer 'rna'; expected",
        ),
    ],
)
def test_what_a_method_raises_decides_the_status(work, how, status, reason):
    outcome, folder = work(how)
    assert outcome["status"] == status
    assert reason in outcome["reason"]
    assert not (folder / "embedding.h5ad").exists()
    if how == "not_applicable":
        assert "traceback" not in outcome


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("killed", "out_of_memory", "killed by signal 9, as the system does when memory runs out"),
        ("segfault", "failed", "the process ended with signal 11 and left no word"),
        ("exit", "failed", "the process ended with exit code 3 and left no word"),
    ],
)
def test_a_process_that_ends_without_a_word_has_a_status(run, how, status, reason):
    found, folder = run(how)
    assert (found["status"], found["reason"]) == (status, reason)
    assert_left_nothing(folder)


def test_time_limit(run):
    began = time.perf_counter()
    status, folder = run("sleep", time_limit=1.5)
    assert time.perf_counter() - began < 30
    assert status["status"] == "timeout"
    assert status["reason"] == "stopped after its limit of 1.5 s"
    assert status["limits"]["seconds"] == 1.5
    assert_left_nothing(folder)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="memory is watched through /proc")
def test_memory_limit(run):
    status, folder = run("hog", memory_limit=400, time_limit=60)
    assert status["status"] == "out_of_memory"
    assert "over its limit of 400 MiB" in status["reason"]
    assert status["peak_rss_mib"] > 400
    assert_left_nothing(folder)


def test_peak_memory_is_that_of_the_method_alone(run):
    # A child process starts as a copy of its parent: the parent's memory must not count.
    ballast = np.ones(80_000_000)  # 640 MB
    status, _ = run()
    assert ballast.sum() > 0
    assert status["peak_rss_mib"] < 500


def test_missing_input_and_missing_packages_are_results_too(work, tmp_path):
    outcome, _ = work(input=tmp_path / "none.h5mu")
    assert outcome["status"] == "failed"
    assert "none.h5mu does not exist; expected an h5mu or h5ad file" in outcome["reason"]
    outcome, _ = work(method="heavy")
    assert outcome["status"] == "not_applicable"
    assert outcome["reason"] == "heavy needs no_such_package, which this environment lacks"


def test_task_that_does_not_fit(work):
    outcome, _ = work(method="pairy")
    assert outcome["status"] == "not_applicable"
    assert outcome["reason"] == "pairy needs paired data; got unpaired"


def test_details_may_hold_numpy_values(work):
    outcome, _ = work("numpy_details")
    assert outcome["status"] == "ok", outcome["reason"]
    assert outcome["details"] == {"score": 0.5, "sizes": [0, 1, 2], "n": 4}


def test_wrong_requests_run_nothing(run, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown method 'toi'; did you mean 'toy'"):
        run(method="toi")
    with pytest.raises(UnknownNameError, match="unknown preset of toy 'crush'; did you mean 'cras"):
        run(preset="crush")
    with pytest.raises(UnknownNameError, match="unknown option 'hwo'; did you mean 'how'"):
        run(options={"hwo": "ok"})
    with pytest.raises(ConfigError, match="seed is -1; expected a number >= 0"):
        run(seed=-1)
    with pytest.raises(ConfigError, match="checkpoint_every is -1; expected seconds, or 0 for non"):
        run(checkpoint_every=-1)
    with pytest.raises(UnknownNameError, match="unknown precision 'bf16'; did you mean"):
        run(precision="bf16")
    assert not (tmp_path / "run").exists()


def test_preset_decides_where_options_do_not(inputs, tmp_path):
    request = RunRequest("toy", str(inputs[False]), str(tmp_path / "p"), preset="crash")
    status = run_method(request)
    assert (status["status"], status["preset"]) == ("failed", "crash")
    assert status["config"]["how"] == "crash"


def test_old_results_are_replaced(run):
    _, folder = run("exit")
    for name in ("features.npz", "history.tsv", "embedding.h5ad"):
        (folder / name).write_text("old")
    (folder / ".run-old").mkdir()
    (folder / ".run-old" / "embedding.h5ad").write_text("half")
    status, folder = run("exit")
    assert status["status"] == "failed"
    assert_left_nothing(folder)


@pytest.mark.parametrize("how", ["exit", "crash", "not_applicable"])
def test_a_checkpoint_outlives_what_is_no_success(run, tmp_path, how):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("checkpoint.pt", ".checkpoint.pt.half.pt", ".history.tsv.half.tsv"):
        (folder / name).write_text("state")
    run(how)
    # What was being written when a process was killed is of no use.
    names = ["checkpoint.pt", "embedding.h5ad", "status.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    status, _ = run()
    assert status["status"] == "ok"
    assert sorted(path.name for path in folder.iterdir()) == names[1:]


def test_status_of_a_method_that_does_not_train(run):
    status, _ = run()
    assert status["precision"] == "fp32"
    assert status["training"] == {
        "checkpoints": 0, "checkpoint_seconds": 0.0, "resumed": [],
        "earlier_seconds": 0.0, "earlier_cpu_seconds": 0.0,
    }  # fmt: skip


# -- what a method may see -------------------------------------------------------------------------


def seen(work, tmp_path, method, *, paired, **fields) -> dict:
    note = tmp_path / "note.json"
    outcome, _ = work(method=method, paired=paired, options={"note": str(note)}, **fields)
    assert outcome["status"] == "ok", outcome["reason"]
    return json.loads(note.read_text())


def test_batches_are_shown_to_methods_that_use_them(work, tmp_path):
    assert seen(work, tmp_path, "toy", paired=False)["batch"] == {"rna": False, "atac": False}
    assert seen(work, tmp_path, "batchy", paired=False)["batch"] == {"rna": True, "atac": True}


def test_pairing_is_withheld_and_results_return_to_their_cells(work, tmp_path, inputs):
    found = seen(work, tmp_path, "toy", paired=True, seed=1)
    assert found["paired"] is False
    rna, atac = found["cells"]["rna"], found["cells"]["atac"]
    assert not set(rna) & set(atac)
    assert all("cell-" not in name for name in (*rna, *atac))
    # Neither the order nor its relation between layers tells the pairs.
    assert found["first"]["rna"] != found["first"]["atac"]
    assert found["first"]["rna"] != sorted(found["first"]["rna"])
    assert sorted(found["first"]["rna"]) == list(range(1, N_CELLS + 1))
    cells, modality, embedding = read_embedding(tmp_path / "scratch")
    data = Layers.read(inputs[True])
    for name in data.names:
        own = modality == name
        assert cells[own].tolist() == data[name].cells.tolist()
        np.testing.assert_array_equal(embedding[own], data[name].counts[:, :2].toarray())


def test_pairing_is_shown_to_methods_that_use_it(work, tmp_path):
    found = seen(work, tmp_path, "pairy", paired=True)
    assert found["paired"] is True
    assert found["cells"]["rna"] == found["cells"]["atac"] == [f"cell-{i}" for i in range(N_CELLS)]


def test_unpaired_data_keep_their_opaque_names(work, tmp_path, inputs):
    found = seen(work, tmp_path, "toy", paired=False)
    assert found["cells"]["rna"] == Layers.read(inputs[False])["rna"].cells.tolist()


def test_truth_and_guidance_are_withheld_unless_declared(work, tmp_path, truth, prepared_guidance):
    shown = {"truth": str(truth), "guidance": str(prepared_guidance)}
    found = seen(work, tmp_path, "toy", paired=True, **shown)
    assert found["truth"] is None
    assert found["guidance"] is False
    found = seen(work, tmp_path, "pairy", paired=True, **shown)
    assert found["guidance"] is True


def test_an_oracle_sees_all_of_the_truth(work, tmp_path, truth):
    found = seen(work, tmp_path, "oracle", paired=True, truth=str(truth))["truth"]
    assert found["cell"] == [f"cell-{i}" for i in range(N_CELLS)] * 2
    assert found["pair"] == [str(i) for i in range(N_CELLS)] * 2


def test_a_method_that_uses_labels_alone_learns_no_pairs(work, tmp_path, truth, inputs):
    found = seen(work, tmp_path, "labelled", paired=True, truth=str(truth))
    table = pd.DataFrame(found["truth"])
    # Neither the pairs nor the original names, which partners share.
    assert set(table["pair"]) == {"-1"}
    assert "origin" not in table
    # Labels belong to the cells under the names that were shown.
    labels = table.set_index(["modality", "cell"])["cell_type"]
    for name in ("rna", "atac"):
        for cell, number in zip(found["cells"][name], found["first"][name], strict=True):
            assert labels[name, cell] == f"type{(int(number) - 1) % 3}"
    for name, part in table.groupby("modality"):
        assert part["cell"].tolist() == found["cells"][name]


def test_a_method_that_uses_pairing_alone_learns_no_labels(work, tmp_path, truth):
    found = seen(work, tmp_path, "pairy", paired=True, truth=str(truth))["truth"]
    assert found is None or "cell_type" not in found


@pytest.fixture
def prepared_guidance(tmp_path) -> Path:
    from scbraid.guidance import complete
    from scbraid.guidance.graph import Guidance

    graph = Guidance(
        features=["rna0", "atac0"], layer=["rna", "atac"], highly_variable=[True, True],
        source=[0], target=[1], sign=[1], weight=[1.0], dist=[0], kind=["fwd"], evidence=["x"],
    )  # fmt: skip
    complete(graph).save(tmp_path / "guidance.npz")
    return tmp_path / "guidance.npz"


# -- interruption ----------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition, seconds: float = 40) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
@pytest.mark.parametrize(
    "how", [pytest.param("SIGINT", marks=pytest.mark.slow), "SIGTERM", "SIGKILL"]
)
def test_an_interrupted_run_leaves_no_child(inputs, tmp_path, how):
    note = tmp_path / "note.json"
    request = {
        "method": "toy",
        "input": str(inputs[False]),
        "output": str(tmp_path / "run"),
        "options": {"how": "sleep", "note": str(note)},
    }
    # A shell lets what it starts in the background ignore the signal; a person's terminal does not.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"from scbraid.runner import *; run_method(RunRequest(**{request!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        assert wait_for(note.exists)
        assert wait_for(lambda: note.read_text().endswith("}"))
        child = json.loads(note.read_text())["pid"]
        assert is_alive(child)
        parent.send_signal(getattr(signal, how))
        parent.wait(timeout=20)
        assert wait_for(lambda: not is_alive(child), 10)
    finally:
        parent.kill()
        parent.wait()
        if note.exists() and is_alive(child):
            os.kill(child, signal.SIGKILL)
    # Nothing that could be taken for a result.
    assert not (tmp_path / "run" / "status.json").exists()
    assert not (tmp_path / "run" / "embedding.h5ad").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_a_stopped_method_takes_its_own_children_along(run, tmp_path):
    note = tmp_path / "note.json"
    status, _ = run("children", options={"note": str(note)}, time_limit=4)
    assert status["status"] == "timeout"
    group = json.loads(note.read_text())["pid"]

    def members():
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and is_alive(int(entry.name)):
                try:
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                found += [entry.name] if int(stat[2]) == group else []
        return found

    assert wait_for(lambda: not members(), 10)


# -- small parts -----------------------------------------------------------------------------------


def test_options_of_the_command_line():
    assert parse_options(["a=1", " b = x=y "]) == {"a": "1", "b": "x=y"}
    for wrong in ("a", "=1", ""):
        with pytest.raises(ConfigError, match="--set takes key=value; got"):
            parse_options([wrong])


def test_request_fields_are_all_json(inputs):
    request = RunRequest("toy", str(inputs[False]), "out", options={"how": "ok"})
    assert json.loads(json.dumps(dataclasses.asdict(request)))["method"] == "toy"


def test_a_plugin_stands_in_the_list():
    from scbraid.methods import describe_methods

    rows = {row["name"]: row for row in describe_methods()}
    assert rows["toy"]["presets"] == ["default", "crash"]
    assert rows["heavy"]["available"] == "needs no_such_package"


def test_a_plugin_that_takes_a_taken_name_is_refused(plugin, monkeypatch):
    source = textwrap.dedent("""
        import dataclasses
        from toy_methods import Toy
        class Thief(Toy):
            info = dataclasses.replace(Toy.info, name="glue")
    """)
    (plugin / "thief.py").write_text(source)
    entry = plugin / "toy_methods-1.0.dist-info" / "entry_points.txt"
    before = entry.read_text()
    entry.write_text(before + "thief = thief:Thief\n")
    try:
        methods.cache_clear()
        with pytest.raises(ConfigError, match="method 'glue' is registered twice"):
            methods()
    finally:
        entry.write_text(before)
