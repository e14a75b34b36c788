"""Digest of the code behind a result, so that results follow the code and not the date of a file.

Snakemake notices a changed script by its modification time, and changed modules not at all. The
digests here are parameters of the rules instead: they cover a script and every module of this
package that it imports, directly or not, and ignore comments, docstrings and layout.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "scbraid"
SOURCE = Path(__file__).resolve().parent


def code_digest(
    script: str | Path, modules: Iterable[str] = (), *, apart: Iterable[str] = ()
) -> str:
    """Digest of a script, of extra modules, and of all modules of the package that they import.

    Parameters
    ----------
    script
        Path of a Python file.
    modules
        Further modules, such as ``scbraid.methods.glue.method``, that the script loads by name.
    apart
        Modules that are left out, with whatever only they import: registries that import every
        entry, where one entry is asked for.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    total = hashlib.sha256()
    for file in source_files(script, modules, apart=apart):
        name = file.relative_to(SOURCE) if file.is_relative_to(SOURCE) else file.name
        total.update(f"{name} {_examine(file)[0]}\n".encode())
    return total.hexdigest()[:16]


def source_files(
    script: str | Path, modules: Iterable[str] = (), *, apart: Iterable[str] = ()
) -> list[Path]:
    """Files that `code_digest` covers, sorted; parameters as there."""
    left_out = {_files(module)[-1] for module in apart}
    waiting = [Path(script).resolve(), *(file for module in modules for file in _files(module))]
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file not in seen and file not in left_out:
            seen.add(file)
            waiting += [f for module in _examine(file)[1] for f in _files(module)]
    return sorted(seen)


@functools.cache
def _examine(file: Path) -> tuple[str, tuple[str, ...]]:
    """Digest of one file, and the modules of the package (or beside the script) it imports."""
    tree = ast.parse(file.read_text("utf-8"))
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # The name may be a module of its own: `from scbraid.data import layers`.
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    return digest, tuple(dict.fromkeys(imported))


@functools.cache
def _files(module: str) -> tuple[Path, ...]:
    """Files of ours that importing a module runs: __init__ of its packages, then its own."""
    package, *parts = module.split(".")
    if package != PACKAGE:
        return ()
    folders = [SOURCE.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    files = [folder / "__init__.py" for folder in folders]
    if parts:
        files.append(folders[-1].with_suffix(".py"))
    return tuple(file for file in files if file.is_file())
