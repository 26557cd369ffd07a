"""Show what OpenVINO really runs: node counts of the executed graphs of a model, as a Markdown table.

    python benchmarks/executed_graph.py FOLDER
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import openvino as ov

from moss_audio.checkpoint import find_model
from moss_audio.runtime.openvino.backend import OpenVINOBackend

PRECISIONS = ("float32", "int8", "int4")
QUIET = ("Const", "Input", "Output")
"""Node types that run nothing."""


def layer_types(compiled: ov.CompiledModel) -> Counter[str]:
    """How often each layer type occurs in the executed graph."""
    nodes = compiled.get_runtime_model().get_ops()
    return Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)


def matrix_types(compiled: ov.CompiledModel) -> str:
    """The element types of the matrices that FullyConnected nodes read, as in `210 u4, 1 i8`."""
    types: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected":
            types[node.input(1).get_source_output().get_element_type().to_string()] += 1
    return ", ".join(f"{count} {name}" for name, count in types.most_common())


def table(counts: dict[str, Counter[str]], matrices: dict[str, str]) -> str:
    """One column a precision, one row a layer type, the most frequent first."""
    rows = [["executed layer", *counts], ["---", *["--:"] * len(counts)]]
    total = sum(counts.values(), Counter[str]())
    names = [name for name, _ in total.most_common() if name not in QUIET]
    rows += [[name, *(str(column[name]) for column in counts.values())] for name in names]
    rows.append(["*matrices as stored*", *matrices.values()])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="mini, a folder, or a hub id")
    folder = find_model(parser.parse_args().model)
    backends = {precision: OpenVINOBackend.load(Path(folder), precision) for precision in PRECISIONS}
    for part in ("decoder", "encoder"):
        graphs = {precision: getattr(backend, part) for precision, backend in backends.items()}
        counts = {precision: layer_types(graph) for precision, graph in graphs.items()}
        print(f"\n{part} of {folder.name}\n")
        print(table(counts, {precision: matrix_types(graph) for precision, graph in graphs.items()}))


if __name__ == "__main__":
    main()
