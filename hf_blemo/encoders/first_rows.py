"""Spares an ONNX graph what it computes of tokens that nobody reads."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

# Axis along which only the first row of a tensor is used; None where all of it is.
_Axis = int | None
_OF_NUMBERS = ("Gelu", "Erf", "Sigmoid", "Tanh", "Relu", "Add", "Sub", "Mul", "Div")
_OF_LAST_AXIS = ("LayerNormalization", "Softmax")


def keep_first_rows(path: Path) -> None:
    """Has a graph cut a tensor where it arises to the rows that are used, where that is only the first.

    The pooled output of many models is that of their first token, so that in the last block the other tokens serve
    only as keys and values. The outputs stay the same, up to rounding.

    Args:
        path: of an ONNX file with the shapes of its tensors; it is replaced.
    """
    import onnx

    model = onnx.load(path)
    # A branch or a loop reads tensors that are not among its node's inputs.
    if any(each.type in (each.GRAPH, each.GRAPHS) for node in model.graph.node for each in node.attribute):
        return
    narrowed = _Narrowed(model.graph)
    if narrowed.cuts:
        narrowed.write()
        onnx.save(model, path)


class _Narrowed:
    """A graph whose nodes are looked at from its outputs to its inputs."""

    def __init__(self, graph: Any):
        from onnx import numpy_helper

        self._graph, self._numpy = graph, numpy_helper
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._shapes: dict[str, list[Any]] = {name: list(tensor.dims) for name, tensor in self._constants.items()}
        for info in (*graph.value_info, *graph.input):
            if info.type.tensor_type.HasField("shape"):
                # A size that is not known equals no other.
                sizes = info.type.tensor_type.shape.dim
                self._shapes[info.name] = [size.dim_param or size.dim_value or object() for size in sizes]
        # Tensor -> who uses it: (node, number of the input, axis).
        uses: defaultdict[str, list[tuple[Any, int, _Axis]]] = defaultdict(list)
        for output in graph.output:
            uses[output.name].append((None, 0, None))
        for node in reversed(graph.node):
            axes = {axis for name in node.output for *_, axis in uses[name]}
            passed = self._passed(node, axes.pop()) if len(axes) == 1 else None
            if passed is None:
                passed = self._first_of(node)
            else:
                uses.pop(node.output[0])
            for number, name in enumerate(node.input):
                uses[name].append((node, number, passed.get(number)))
        # (tensor, axis) -> inputs that take its first row.
        self.cuts: defaultdict[tuple[str, int], list[tuple[Any, int]]] = defaultdict(list)
        for name, users in uses.items():
            for node, number, axis in users:
                # Before a node that takes the first row itself, a cut spares nothing.
                if axis is not None and node.op_type != "Gather":
                    self.cuts[name, axis].append((node, number))

    def write(self) -> None:
        """Adds the cuts to the graph."""
        from onnx import helper

        graph, before = self._graph, list(self._graph.node)
        places = {name: number for number, node in enumerate(before) for name in node.output}
        added = defaultdict(list)
        for (name, axis), users in self.cuts.items():
            ends = [self._constant(f"rows_from_{value}", [value]) for value in (0, 1)]
            cut = f"{name}_first_of_{axis}"
            node = helper.make_node("Slice", [name, *ends, self._constant(f"rows_of_{axis}", [axis])], [cut])
            # Inputs of the graph and constants are there from the start.
            added[places.get(name, -1)].append(node)
            for user, number in users:
                user.input[number] = cut
        del graph.node[:]
        for number, node in enumerate([None, *before], -1):
            graph.node.extend([*([] if node is None else [node]), *added[number]])
        used = {name for node in graph.node for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:], graph.value_info[:]
        graph.initializer.extend(kept)

    def _constant(self, name: str, values: Any) -> str:
        if name not in self._constants:
            self._constants[name] = self._numpy.from_array(np.array(values, np.int64), name)
            self._graph.initializer.append(self._constants[name])
        return name

    def _first_of(self, node: Any) -> dict[int, _Axis]:
        """By number of an input, the axis of which a node itself takes the first row."""
        index = self._constants.get(node.input[1]) if node.op_type == "Gather" else None
        if index is None or list(index.dims) or self._numpy.to_array(index) != 0 or node.input[0] not in self._shapes:
            return {}
        return {0: _attribute(node, "axis", 0) % len(self._shapes[node.input[0]])}

    def _passed(self, node: Any, axis: _Axis) -> dict[int, _Axis] | None:
        """By number of an input, the axis of which its first row is enough for that of the output; None if all of it
        is needed."""
        shape = self._shapes.get(node.output[0])
        if axis is None or shape is None or not all(name in self._shapes for name in node.input):
            return None
        inputs = [self._shapes[name] for name in node.input]
        if node.op_type in _OF_NUMBERS:
            places = {number: axis - len(shape) + len(sizes) for number, sizes in enumerate(inputs)}
            return {number: place for number, place in places.items() if place >= 0 and inputs[number][place] != 1}
        if node.op_type in _OF_LAST_AXIS and axis < len(shape) - 1 and _attribute(node, "axis", -1) == -1:
            return {0: axis}
        if node.op_type == "MatMul" and axis == len(shape) - 2 and len(inputs[0]) == len(shape):
            return {0: axis}
        if node.op_type == "Transpose":
            return {0: _attribute(node, "perm", ())[axis]}
        if node.op_type == "Reshape" and inputs[0][: axis + 1] == shape[: axis + 1]:
            sizes = self._constants.get(node.input[1])
            if sizes is not None:
                values = self._numpy.to_array(sizes).copy()
                values[axis] = 1
                node.input[1] = self._constant(f"{node.output[0]}_sizes", values)
                return {0: axis}
        return None


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)
