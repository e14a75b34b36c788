from __future__ import annotations

from pathlib import Path

from scbraid.sources import SOURCE, code_digest, source_files
from scbraid.study import Catalogue

ROOT = Path(__file__).resolve().parents[2]
REGISTRIES = ("scbraid.methods", "scbraid.methods.baselines")

SCRIPT = '''"""Words."""
from scbraid.errors import DataError

def work(x):
    """More words."""
    return x + 1
'''


def _digest(folder: Path, text: str) -> str:
    # A folder each: files are read once a process.
    script = folder / str(len(list(folder.iterdir()))) / "script.py"
    script.parent.mkdir()
    script.write_text(text)
    return code_digest(script)


def test_the_digest_follows_the_code_and_nothing_else(tmp_path: Path) -> None:
    own = _digest(tmp_path, SCRIPT)
    assert _digest(tmp_path, SCRIPT.replace("words", "other words")) == own
    assert _digest(tmp_path, f"# a comment\n{SCRIPT}\n\n") == own
    assert _digest(tmp_path, SCRIPT.replace("x + 1", "x + 2")) != own
    assert _digest(tmp_path, SCRIPT.replace("errors", "registry")) != own


def test_modules_count_that_are_imported_indirectly_or_inside_functions() -> None:
    files = {file.name for file in source_files(ROOT / "scripts" / "guidance.py")}
    assert {"guidance.py", "_job.py"} - files == {"_job.py"}
    assert {"build.py", "graph.py", "errors.py", "files.py", "__init__.py"} <= files


def test_a_run_does_not_depend_on_other_methods() -> None:
    def files(method: str) -> set[str]:
        module = Catalogue.read(ROOT / "workflow" / "catalogue.json").methods[method]["module"]
        found = source_files(
            ROOT / "scripts" / "integrate.py", ("scbraid.child", module), apart=REGISTRIES
        )
        return {str(f.relative_to(SOURCE)) for f in found if f.is_relative_to(SOURCE)}

    baseline, glue = files("random"), files("glue")
    assert {"runner.py", "child.py", "worker.py", "methods/baselines/anchors.py"} <= baseline
    assert not {file for file in baseline if "glue" in file or file.startswith("nn/")}
    # What the worker hands to every method is of the package `train`; the engine itself is not.
    engine = {"engine", "schedules", "averaging", "precision", "progress"}
    assert not {file for file in baseline if file.startswith("train/")} & {
        f"train/{name}.py" for name in engine
    }
    assert {"methods/glue/fit.py", "train/engine.py", "runner.py"} <= glue
    assert not {file for file in glue if "baselines" in file}
