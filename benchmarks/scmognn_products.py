"""Time of scMoGNN's messages by sparse and dense products: what `backend=auto` decides by.

Prints a table of milliseconds of processor time, median (lowest to highest), of both directions,
forward and backward, with and without dropout of edges. Usage::

    python benchmarks/scmognn_products.py [--cells 3000] [--features 1000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import scipy.sparse as sp
import torch

from scbraid.nn.bipartite import BACKENDS, Backend, BipartiteGraph

CASES = ((0.03, 48), (0.08, 48), (0.08, 256), (0.2, 48), (0.4, 48), (0.4, 256), (0.55, 48),
         (0.7, 48), (0.7, 256))  # fmt: skip
DROPOUTS = (0.0, 0.3)
_WARM_UP = 2


def measured(
    matrix: sp.csr_matrix, width: int, backend: Backend, dropout: float, repeats: int
) -> list[float]:
    """Milliseconds of every repeat, sorted."""
    graph = BipartiteGraph(matrix, backend)
    features = torch.randn(matrix.shape[1], width, requires_grad=True)
    cells = torch.randn(matrix.shape[0], width, requires_grad=True)
    to_cells, to_features = torch.randn_like(cells), torch.randn_like(features)
    found = []
    for _ in range(_WARM_UP + repeats):
        start = time.process_time()
        graph.to_cells(features, dropout).backward(to_cells)
        graph.to_features(cells, dropout).backward(to_features)
        found.append(1e3 * (time.process_time() - start))
        features.grad = cells.grad = None
    return sorted(found[_WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=3_000)
    parser.add_argument("--features", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = [(backend, dropout) for backend in BACKENDS for dropout in DROPOUTS]
    print(f"{args.cells:,} cells x {args.features:,} features, {args.threads} threads, ms")
    titles = [backend + (f", dropout {dropout}" if dropout else "") for backend, dropout in columns]
    print(f"{'edges':>6}{'width':>7}" + "".join(f"{title:>22}" for title in titles))
    for share, width in CASES:
        matrix = sp.random(
            args.cells, args.features, share, format="csr", random_state=0, dtype=np.float32
        )
        texts = []
        for backend, dropout in columns:
            took = measured(matrix, width, backend, dropout, args.repeats)
            texts.append(f"{statistics.median(took):.0f} ({took[0]:.0f} to {took[-1]:.0f})")
        print(f"{share:>6.0%}{width:>7}" + "".join(f"{text:>22}" for text in texts), flush=True)


if __name__ == "__main__":
    main()
