"""Where a training step of GLUE spends its time on a CPU, part by part.

    python benchmarks/glue_step.py FOLDER [--threads 1] [--repeats 15] [--torch]

FOLDER holds input.h5mu and guidance.npz, as `scbraid simulate` or a study leaves them. Every line is one part
of a step with its gradient: the least and the median of the processor milliseconds, and the least of the wall
clock. With more than one thread processor time includes threads that wait, so look at the wall clock.
`--torch` leaves the compiled loops out, as in an environment without numba.
"""  # noqa: E501

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from scbraid.data.layers import Layers
from scbraid.guidance.graph import Guidance
from scbraid.methods.glue.inputs import make_inputs
from scbraid.methods.glue.method import GlueMethod
from scbraid.methods.glue.network import GlueNetwork, LayerData
from scbraid.methods.glue.objective import GlueTask
from scbraid.nn import kernels
from scbraid.nn.graph import edge_nll
from scbraid.train.devices import describe_kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15, help="times every part is run")
    parser.add_argument("--torch", action="store_true", help="without the compiled loops")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.torch:
        kernels.has_numba = lambda: False

    task = make_task(options.folder)
    shapes = ", ".join(
        f"{layer.n_cells:,} x {layer.n_features:,} ({layer.name})" for layer in task.layers
    )
    ran = "torch" if options.torch else describe_kernels(task.device)
    print(f"{shapes}; {options.threads} threads; {ran}\n")
    print("part\tcpu_ms_min\tcpu_ms_median\twall_ms_min")
    # As in a training: the threads are those of the loops.
    with contextlib.nullcontext() if options.torch else kernels.one_thread():
        for name, part in parts(task).items():
            cpu, wall = measure(part, options.repeats)
            if name == "draw edges":  # a whole graph epoch at a time
                n_steps = task.config.edge_batches
                cpu, wall = ([value / n_steps for value in values] for values in (cpu, wall))
            row = min(cpu), statistics.median(cpu), min(wall)
            print(name, *(f"{value:.2f}" for value in row), sep="\t", flush=True)


def make_task(folder: Path) -> GlueTask:
    config = GlueMethod.configure("default", {})
    inputs = make_inputs(
        Layers.read(folder / "input.h5mu"), Guidance.load(folder / "guidance.npz"), config
    )
    layers = [LayerData(layer, torch.device("cpu")) for layer in inputs.layers]
    torch.manual_seed(0)
    network = GlueNetwork(inputs, config, [layer.input_dim for layer in layers], None)
    for layer in inputs.layers:
        network.decoder(layer.name).start_from(layer.values, layer.batch)
    network.train()
    return GlueTask(
        network, layers, inputs, config, weights=None, noise_level=lambda epoch: 0.5,
        n_shared_batches=None, paired=False, seed=0,
    )  # fmt: skip


def parts(task: GlueTask) -> dict[str, Callable[[], object]]:
    """Whole step first, then its parts, each with its backward pass."""
    steps = endless_steps(task)
    next(steps)
    network = task.network
    rows, drawn = next(task.cells.epoch("train"))
    batch = task._gather(rows, drawn)
    edges = task._next_edges()
    v = network.graph_encoder.sample()[0].detach().requires_grad_()
    seen = [torch.randn(len(rows), v.shape[1]) for _ in batch]
    found: dict[str, Callable[[], object]] = {"step": lambda: next(steps)}

    def sample() -> None:
        drawn, kl = network.graph_encoder.sample()
        (drawn.sum() + kl).backward()

    found["draw cells"] = lambda: task._gather(rows, drawn)
    found["draw edges"] = task.edges.epoch
    found["graph encoder"] = sample
    found["edges"] = lambda: edge_nll(v, edges).backward()
    for layer in batch:
        u = torch.randn(len(rows), v.shape[1], requires_grad=True)
        own = network.split_features(v)
        own = {name: part.detach().requires_grad_() for name, part in own.items()}
        found[f"likelihood, {layer.data.name}"] = lambda layer=layer, u=u, own=own: task._nll(
            layer, u, own
        ).backward()
        found[f"encoder, {layer.data.name}"] = lambda layer=layer: sum(
            part.sum() for part in task._encode(layer)
        ).backward()
    found["discriminator"] = lambda: task._discriminate(batch, seen, 0.5).backward()
    found["optimiser"] = task._generator.step
    return found


def endless_steps(task: GlueTask):
    epoch = 0
    while True:
        epoch += 1
        yield from task.train_steps(epoch)


def measure(part: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Processor and wall milliseconds of a call, by repetition."""
    part()
    cpu, wall = [], []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        part()
        cpu.append((time.process_time() - used) * 1e3)
        wall.append((time.perf_counter() - began) * 1e3)
    return cpu, wall


if __name__ == "__main__":
    main()
