"""What runs an encoder's network beside eager torch: onnxruntime, in float32 or int8, and torch's compiler."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from hf_blemo.encoders import first_rows
from hf_blemo.encoders.encoder import Encoder
from hf_blemo.encoders.face_cropping import CROP_DEFAULTS
from hf_blemo.encoders.first_rows import keep_first_rows
from hf_blemo.errors import one_line
from hf_blemo.files import whole_file
from hf_blemo.programs import onnx_graphs
from hf_blemo.programs.fingerprints import fingerprint, weights_fingerprint
from hf_blemo.programs.onnx_graphs import exported_program, quantized, write_graph

logger = logging.getLogger(__name__)

# The first that has the activation of transformers as one operator.
_OPSET = 20
# Part of the largest feature by which those of a graph in float32 may differ; cosine of those in int8.
_TOLERANCE, _COSINE = 1e-4, 0.99
# Pictures at once: what their tokens fill in int8, and much of it in float32, fits a core's cache.
_PART_SIZE = 4
# Options of `extraction` that choose what the network gets, not what it does.
_OF_INPUTS = {"frames_per_second", "image_backend", *CROP_DEFAULTS}


def use_backend(encoder: Encoder, backend: str, int8: bool = False) -> None:
    """Has an encoder's network run by another backend than eager torch.

    Args:
        encoder: on the CPU for `onnxruntime`.
        backend: `onnxruntime` or `compile`.
        int8: for `onnxruntime`: matrix products in int8.

    Raises:
        ValueError: it has no network, or one that cannot be exported, or the graph gives other features.
        OSError: the graph cannot be written to the cache.
    """
    if not encoder.examples():
        raise ValueError(f"{encoder.source.model_id}: has no network that backend {backend} could run; leave it out")
    if backend == "compile":
        encoder.execute = torch.compile(encoder.network, dynamic=True)
        return
    encoder.execute = _OnnxNetwork(encoder, int8)


class _Graph(nn.Module):
    """An encoder's network with named tensors as inputs, in a fixed order."""

    def __init__(self, encoder: Encoder, names: tuple[str, ...]):
        super().__init__()
        self.model = encoder.model
        self._run, self._names = encoder.network, names
        # Its model is in this mode, too, and may lack parts that setting it would look for.
        self.training = False

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._run(**dict(zip(self._names, inputs, strict=True)))


class _OnnxNetwork:
    """Runs an encoder's network with onnxruntime, one graph for each set of inputs.

    Graphs are exported once and kept in the folder of `huggingface_hub`'s assets, under a hash of all that they
    depend on. Each appears whole, so any number of processes may share them.
    """

    def __init__(self, encoder: Encoder, int8: bool):
        self._encoder, self._int8 = encoder, int8
        self._where = encoder.source.model_id
        if encoder.part_size is not None:
            encoder.part_size = min(encoder.part_size, _PART_SIZE)
        # Parts of a batch run side by side, so each has one thread.
        self._num_threads = torch.get_num_threads() if encoder.part_size is None else 1
        self._key = self._hash()
        self._sessions = {tuple(example): self._session(example) for example in encoder.examples()}

    def __call__(self, **inputs: torch.Tensor) -> torch.Tensor:
        return _ran(self._sessions[tuple(inputs)], inputs)

    def _hash(self) -> str:
        import onnxruntime
        import transformers

        encoder = self._encoder
        extraction = {name: value for name, value in encoder.source.extraction.items() if name not in _OF_INPUTS}
        what: list[Any] = [type(encoder).__name__, encoder.model.config.to_json_string(), extraction, _OPSET]
        versions = [torch.__version__, transformers.__version__, onnxruntime.__version__ if self._int8 else ""]
        # Another way of exporting makes another graph.
        ways = [Path(file).read_bytes() for file in (__file__, first_rows.__file__, onnx_graphs.__file__)]
        return fingerprint(*what, *versions, *ways, weights_fingerprint(encoder.model))

    def _session(self, example: dict[str, torch.Tensor]) -> Any:
        from huggingface_hub import cached_assets_path

        suffix = "_int8" if self._int8 else ""
        name = f"{self._encoder.model.config.model_type}_{fingerprint(self._key, list(example))}{suffix}.onnx"
        path = cached_assets_path("hf_blemo", "encoders", "onnx") / name
        if path.is_file():
            try:
                session = self._opened(path)
                self._check(session, example)
                return session
            # Whatever a damaged file makes onnxruntime raise.
            except Exception as error:
                logger.warning("%s: %s is exported anew: %s", self._where, path, one_line(error))
        self._export(path, example)
        session = self._opened(path)
        self._check(session, example)
        return session

    def _opened(self, path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._num_threads
        # A thread that spins takes a core that decodes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _export(self, path: Path, example: dict[str, torch.Tensor]) -> None:
        axes = {axis: Dim.DYNAMIC for axis in self._encoder.free_axes}
        try:
            with self._encoder.exportable(), _plain_attention(self._encoder.model):
                graph = _Graph(self._encoder, tuple(example))
                program = exported_program(graph, tuple(example.values()), (tuple(axes for _ in example),))
            with whole_file(path) as temporary:
                write_graph(program, temporary, list(example), ["rows"], opset=_OPSET)
                keep_first_rows(temporary)
                if self._int8:
                    os.replace(quantized(temporary, by_column=True), temporary)
        except OSError:
            raise
        # An architecture that the exporter does not know fails in ways of its own.
        except Exception as error:
            raise ValueError(
                f"{self._where}: its network cannot be exported for backend onnxruntime ({one_line(error)}); "
                "leave the backend out"
            ) from error

    def _check(self, session: Any, example: dict[str, torch.Tensor]) -> None:
        """Compares the graph's features of the example with those of eager torch."""
        with torch.inference_mode(), warnings.catch_warnings():
            # What a network has to say, it says where it is used.
            warnings.simplefilter("ignore")
            expected = self._encoder.network(**example).numpy()
        found = _ran(session, example).numpy()
        if found.shape != expected.shape:
            raise ValueError(f"{self._where}: its graph gives {found.shape}, expected {expected.shape}")
        if self._int8:
            cosine = float(_cosines(found, expected).min())
            if cosine < _COSINE:
                logger.warning(
                    "%s: features in int8 have a cosine of %.3f to those in float32 for noise, expected at least %.2f",
                    *(self._where, cosine, _COSINE),
                )
            return
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-9))
        if not difference <= _TOLERANCE:
            raise ValueError(
                f"{self._where}: features of backend onnxruntime differ by {difference:.0e} of the largest, expected "
                f"at most {_TOLERANCE:.0e}; leave the backend out"
            )


@contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """Has all parts of a model use the plain formula of attention, which the exporter knows for every model."""
    configs: dict[int, Any] = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    try:
        for config, name in before:
            if name is not None:
                config._attn_implementation = "eager"
        yield
    finally:
        for config, name in before:
            if name is not None:
                config._attn_implementation = name


def _ran(session: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.from_numpy(session.run(None, {name: values.numpy() for name, values in inputs.items()})[0])


def _cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return (found * expected).sum(-1) / np.maximum(norms, 1e-30)
