"""Modules of torch as ONNX files, in float32 and in int8. Needs the extra `onnx`."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

OPSET = 18


def exported_program(graph: nn.Module, inputs: tuple[torch.Tensor, ...], shapes: Any) -> torch.export.ExportedProgram:
    """Traces a module in float32 and evaluation mode, by inputs at least 2 long along the axes that `shapes`, of
    `torch.export.export`, says are free."""
    device = next(graph.parameters()).device
    with torch.no_grad(), _quiet():
        return torch.export.export(graph, tuple(value.to(device) for value in inputs), dynamic_shapes=shapes)


def write_graph(
    program: torch.export.ExportedProgram,
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
    opset: int = OPSET,
) -> None:
    """Writes a traced module as an ONNX file, with metadata as JSON, which quantising keeps."""
    with _quiet():
        torch.onnx.export(
            program,
            (),
            str(path),
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        )
    if metadata is not None:
        import onnx

        graph = onnx.load(path)
        onnx.helper.set_model_props(graph, {name: json.dumps(value) for name, value in metadata.items()})
        onnx.save(graph, path)


def quantized(path: Path, by_column: bool = False) -> Path:
    """Writes a float32 file once more in int8, beside it, as `NAME_int8.onnx`.

    Matrix products are quantised dynamically: weights when the file is written, each matrix or each of its columns by
    a scale of its own, activations when it runs.

    Source: the quantiser is onnxruntime's.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    output = path.with_name(f"{path.stem}_int8{path.suffix}")
    graph = onnx.load(path)
    # The exporter's shapes conflict with those of the quantiser.
    del graph.graph.value_info[:]
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # Convolutions have no fast dynamic kernel.
        quantize_dynamic(*(graph, output, ["MatMul", "Gemm"]), per_channel=by_column, weight_type=QuantType.QInt8)
    finally:
        logger.setLevel(level)
    return output


def _stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """Replaces torch's stable sort, unknown to the exporter, by a TopK of everything; ties keep their order."""
    from onnxscript import opset18

    op: Any = opset18
    size = op.Reshape(op.Gather(op.Shape(values), op.Constant(value_ints=[dim])), op.Constant(value_ints=[1]))
    return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the log of torch's exporter off the terminal."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
