"""Gradient steps of pydance's scMoGNN on the matrix of ``scmognn_epoch.py``; prints one JSON line.

Runs in an environment of its own (docs/peers.md), started by ``benchmarks/scmognn_epoch.py
--peer-python``. The network is built with the library's class and its options of the same meaning;
a step is that of its ``fit``, without the evaluations that follow each.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch

# DGL 2.1 has no graph sampler for this torch; nothing here uses it.
sys.modules["dgl.graphbolt"] = types.ModuleType("dgl.graphbolt")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dgl  # noqa: E402 - after the line above
from dance.modules.multi_modality.predict_modality.scmogcn import ScMoGCNWrapper  # noqa: E402
from scmognn_epoch import simulated  # noqa: E402


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("cells", "genes", "targets", "width", "layers", "steps", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--density", type=float, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    values = simulated(args.cells, args.genes, args.density, 0)
    rng = np.random.default_rng(1)
    y = torch.from_numpy(rng.random((args.cells, args.targets), dtype=np.float32))
    told = torch.from_numpy(rng.standard_normal((args.cells, 9), dtype=np.float32))
    found = {"edges": values.nnz, "data_mib": peak_mib()}
    start = time.process_time()
    cells = torch.from_numpy(np.repeat(np.arange(args.cells), np.diff(values.indptr)))
    genes = torch.from_numpy(values.indices.astype(np.int64))
    graph = dgl.heterograph(
        {
            ("cell", "cell2feature", "feature"): (cells, genes),
            ("feature", "feature2cell", "cell"): (genes, cells),
        },
        num_nodes_dict={"cell": args.cells, "feature": args.genes},
    )
    for relation in ("cell2feature", "feature2cell"):
        graph.edges[relation].data["weight"] = torch.from_numpy(values.data)
    graph.nodes["cell"].data["id"] = torch.zeros(args.cells, dtype=torch.int64)
    graph.nodes["cell"].data["bf"] = told
    graph.nodes["feature"].data["id"] = torch.arange(args.genes)
    found["graph_cpu"] = time.process_time() - start
    torch.manual_seed(0)
    model = ScMoGCNWrapper(
        argparse.Namespace(
            device="cpu",
            hidden_size=args.width,
            conv_layers=args.layers,
            OUTPUT_SIZE=args.targets,
            FEATURE_SIZE=args.genes,
            BATCH_NUM=9,
            edge_dropout=args.dropout,
            model_dropout=0.2,
            pathway=False,
            pathway_aggregation="alpha",
            pathway_alpha=0.5,
            subpath_activation=False,
            no_readout_concatenate=False,
            weighted_sum=False,
            readout_layers=1,
            no_batch_features=False,
            cell_init="none",
            embedding_layers=1,
            activation="gelu",
            normalization="group",
            residual="res_cat",
            initial_residual=False,
            agg_function="mean",
            output_relu="none",
        )
    ).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-5)
    train = torch.arange(round(0.15 * args.cells), args.cells)
    cpu, wall, losses = [], [], []
    model.train()
    for _ in range(args.steps):
        start, clock = time.process_time(), time.perf_counter()
        loss = torch.nn.functional.mse_loss(model(graph)[train], y[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - clock)
    found |= {
        "steps": len(cpu),
        "steps_per_epoch": 1,
        "epoch_cpu": cpu,
        "epoch_wall": wall,
        "first_loss": losses[0],
        "peak_mib": peak_mib(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
