"""Graphs that compute only the tokens that are read give the same."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim

from hf_blemo.encoders.first_rows import keep_first_rows
from hf_blemo.programs.onnx_graphs import exported_program, write_graph

TOKENS, WIDTH, HEADS = 5, 8, 2


class Block(nn.Module):
    """A block of a transformer in plain operators, with positions, and what is made of its tokens."""

    def __init__(self, pool):
        super().__init__()
        self.pool, self.positions = pool, nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])
        self.inputs = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
        self.output = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))

    def forward(self, tokens):
        tokens = tokens + self.positions
        normed = self.norms[0](tokens)
        queries, keys, values = (
            layer(normed).view(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2) for layer in self.inputs
        )
        weights = (queries @ keys.transpose(2, 3) * 0.5 + self.positions.mean()).softmax(-1)
        tokens = tokens + self.output((weights @ values).transpose(1, 2).reshape(-1, TOKENS, WIDTH))
        return self.pool(self.norms[2](tokens + self.mlp(self.norms[1](tokens))))


@pytest.mark.parametrize(
    ("pool", "num_cuts"),
    [
        (lambda tokens: tokens[:, 0], 2),
        (lambda tokens: torch.relu(tokens[:, 0, :]) * 2, 2),
        (lambda tokens: tokens[:, 1], 0),
        (lambda tokens: tokens.mean(1), 0),
        (lambda tokens: tokens, 0),
        (lambda tokens: tokens.flatten(1)[:, 0], 0),
    ],
    ids=["first", "first, then more", "second", "mean", "all", "one number"],
)
def test_outputs_stay_the_same(pool, num_cuts, tmp_path):
    from onnxruntime import InferenceSession

    torch.manual_seed(0)
    block, tokens, path = Block(pool).eval(), torch.randn(3, TOKENS, WIDTH), tmp_path / "block.onnx"
    write_graph(exported_program(block, (tokens,), ({0: Dim.DYNAMIC},)), path, ["tokens"], ["rows"], opset=20)
    before = path.read_bytes()
    keep_first_rows(path)
    nodes = onnx.load(path).graph.node
    assert sum("_first_of_" in name for node in nodes for name in node.output) == num_cuts
    assert (path.read_bytes() == before) == (num_cuts == 0)
    found = InferenceSession(path).run(None, {"tokens": tokens.numpy()})[0]
    np.testing.assert_allclose(found, block(tokens).detach().numpy(), rtol=0, atol=1e-6)


def _branch(op_type):
    node, output = helper.make_node(op_type, ["squashed"], ["one"], keepdims=0), ("one", TensorProto.FLOAT, [])
    return helper.make_graph([node], op_type, [], [helper.make_tensor_value_info(*output)])


@pytest.mark.parametrize(
    ("op_type", "axis", "is_shaped", "has_branches"),
    [
        ("Softmax", 1, True, False),
        ("Softmax", -2, True, False),
        ("Softmax", -1, True, False),
        ("Sigmoid", 1, True, True),
        ("Sigmoid", 1, False, False),
    ],
    ids=["axis", "axis from the end", "last axis from the end", "read by a branch", "shape not known"],
)
def test_graphs_of_others(op_type, axis, is_shaped, has_branches, tmp_path):
    from onnxruntime import InferenceSession

    path, shape = tmp_path / "graph.onnx", (2, TOKENS, WIDTH)
    tokens = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nodes = [
        helper.make_node(op_type, ["tokens"], ["squashed"]),
        helper.make_node("Gather", ["squashed", "zero"], ["first"], axis=axis),
    ]
    if has_branches:
        ways = {"then_branch": _branch("ReduceMean"), "else_branch": _branch("ReduceMax")}
        nodes += [
            helper.make_node("If", ["yes"], ["one"], **ways),
            helper.make_node("Add", ["first", "one"], ["rows"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["first"], ["rows"]))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(value), name) for name, value in (("zero", 0), ("yes", True))],
        value_info=[helper.make_tensor_value_info("squashed", TensorProto.FLOAT, shape if is_shaped else None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    before = InferenceSession(path).run(None, {"tokens": tokens})[0]
    keep_first_rows(path)
    np.testing.assert_allclose(InferenceSession(path).run(None, {"tokens": tokens})[0], before, rtol=0, atol=1e-6)
