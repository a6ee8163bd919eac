"""Detectors of faces in a picture, run by OpenCV: YuNet, and CenterFace. Needs the extra `face`."""

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_blemo.errors import check_extra, check_regular

# Networks halve a picture five times.
MULTIPLE = 32
_EXPECTED = "a detector of faces as ONNX: YuNet, or CenterFace"
# Outputs of each network: of YuNet four for each of three sizes of faces.
_OUTPUTS = {12: "YuNet", 4: "CenterFace"}
# Scores of what is a face, and of what is worth a closer look.
_SURE = {"YuNet": 0.7, "CenterFace": 0.4}
_LEAST_SCORE = {"YuNet": 0.4, "CenterFace": 0.2}
_MOST_OVERLAP = 0.3
# Pixels for each number of CenterFace's outputs.
_STRIDE = 4
# Best places of a picture that are looked at.
_MOST_PLACES = 1000
# Sizes of pictures for which a network is kept; a clip needs two.
_MOST_SIZES = 4
# What OpenCV logs has one level for all threads; this one is without warnings.
_LOGGING, _ERRORS = threading.Lock(), 2


@dataclass(frozen=True)
class DetectorFile:
    """The file of a detector.

    Args:
        name: for messages.
        content: of the file.
        kind: `YuNet` or `CenterFace`.
        sha256: of the content, in hexadecimal digits.
    """

    name: str
    content: bytes = field(repr=False)
    kind: str
    sha256: str

    def detector(self) -> "FaceDetector":
        """Makes a detector, for one thread."""
        return _YuNet(self) if self.kind == "YuNet" else _CenterFace(self)


def read_detector(path: str | Path, name: str | None = None) -> DetectorFile:
    """Reads the file of a detector.

    Args:
        path: of an ONNX file.
        name: for messages; the path by default.

    Raises:
        ValueError: it holds no detector that is known here.
        MissingExtraError: OpenCV is not installed.
    """
    check_extra("face")
    import cv2

    name = str(path) if name is None else name
    check_regular(path, _EXPECTED)
    content = Path(path).read_bytes()
    try:
        count = len(cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8)).getUnconnectedOutLayersNames())
    except cv2.error:
        raise ValueError(f"{name}: found a file that OpenCV cannot read, expected {_EXPECTED}") from None
    if count not in _OUTPUTS:
        raise ValueError(f"{name}: found a network with {count} outputs, expected {_EXPECTED}")
    kind = _OUTPUTS[count]
    file = DetectorFile(name, content, kind, hashlib.sha256(content).hexdigest())
    try:
        file.detector().faces(np.zeros((MULTIPLE, MULTIPLE, 3), np.uint8))
    except (cv2.error, IndexError, KeyError, ValueError):
        raise ValueError(f"{name}: found a network that is not {kind}, expected {_EXPECTED}") from None
    return file


class FaceDetector(ABC):
    """Finds faces in pictures.

    Args:
        file: of the network.
    """

    def __init__(self, file: DetectorFile):
        self._content = np.frombuffer(file.content, np.uint8)
        self.sure, self._least_score = _SURE[file.kind], _LEAST_SCORE[file.kind]
        # OpenCV's older engine is wrong about a second size of pictures in one network.
        self._networks: dict[tuple[int, int], Any] = {}

    def faces(self, picture: np.ndarray) -> np.ndarray:
        """Finds the faces of a picture.

        Args:
            picture: (H, W, 3) uint8, RGB; both sides are multiples of `MULTIPLE`.

        Returns:
            (n, 5) float64: left, top, width and height in pixels, and the score, the surest first. Scores below `sure`
            are worth a closer look only.
        """
        size = picture.shape[1], picture.shape[0]
        if size not in self._networks:
            while len(self._networks) >= _MOST_SIZES:
                del self._networks[next(iter(self._networks))]
            self._networks[size] = self._network(size)
        found = np.asarray(self._found(self._networks[size], picture), np.float64).reshape(-1, 5)
        found = found[np.isfinite(found).all(1) & (found[:, 2:4] > 0).all(1)]
        return without_doubles(found[np.argsort(-found[:, 4], kind="stable")])

    @abstractmethod
    def _network(self, size: tuple[int, int]) -> Any:
        """A network for pictures of this width and height."""

    @abstractmethod
    def _found(self, network: Any, picture: np.ndarray) -> Any:
        """(n, 5): boxes with their scores."""


class _YuNet(FaceDetector):
    def _network(self, size: tuple[int, int]) -> Any:
        import cv2

        # In OpenCV 5 and in OpenCV 4.
        empty, logging = np.zeros(0, np.uint8), getattr(cv2.utils, "logging", cv2)
        with _LOGGING:
            level = logging.getLogLevel()
            # OpenCV 5 warns of its own choice of where to run each network.
            logging.setLogLevel(min(level, _ERRORS))
            try:
                return cv2.FaceDetectorYN.create(
                    "onnx", self._content, empty, size, self._least_score, _MOST_OVERLAP, _MOST_PLACES
                )
            finally:
                logging.setLogLevel(level)

    def _found(self, network: Any, picture: np.ndarray) -> Any:
        _, found = network.detect(np.ascontiguousarray(picture[..., ::-1]))
        # Left, top, width, height; five points of the face; score.
        return np.zeros((0, 5)) if found is None else found[:, [0, 1, 2, 3, 14]]


class _CenterFace(FaceDetector):
    """Source: Xu et al. 2019, "CenterFace: Joint Face Detection and Alignment Using Face as Point"."""

    def _network(self, size: tuple[int, int]) -> Any:
        import cv2

        return cv2.dnn.readNetFromONNX(self._content)

    def _found(self, network: Any, picture: np.ndarray) -> Any:
        import cv2

        network.setInput(cv2.dnn.blobFromImage(picture))
        outputs: Sequence[np.ndarray] = network.forward(sorted(network.getUnconnectedOutLayersNames()))
        # How probable it is that a face has its centre in a place; logarithms of height and width, and how far the
        # centre is from the place downwards and to the right, all in places.
        centre, sizes, offsets = (output[0] for output in outputs[:3])
        rows, columns = np.nonzero(centre[0] > self._least_score)
        best = np.argsort(-centre[0, rows, columns])[:_MOST_PLACES]
        rows, columns = rows[best], columns[best]
        high, wide = np.exp(np.minimum(sizes[:, rows, columns], 8.0)) * _STRIDE
        down, right = offsets[:, rows, columns]
        left, top = (columns + right + 0.5) * _STRIDE - wide / 2, (rows + down + 0.5) * _STRIDE - high / 2
        return np.stack([left, top, wide, high, centre[0, rows, columns]], axis=1)


def without_doubles(boxes: np.ndarray) -> np.ndarray:
    """Of boxes (n, 4 or more) that overlap, keeps the first."""
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left):
        kept.append(int(left[0]))
        left = left[1:][overlaps(boxes[left[0]], boxes[left[1:]]) < _MOST_OVERLAP]
    return boxes[kept]


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Shared area of a box (4,) and each of others (n, 4), by the area that both cover: 0 to 1."""
    extent, extents = box[2:4], boxes[:, 2:4]
    start = np.maximum(box[:2], boxes[:, :2])
    end = np.minimum(box[:2] + extent, boxes[:, :2] + extents)
    shared = np.prod(np.maximum(end - start, 0.0), axis=1)
    return shared / (np.prod(extent) + np.prod(extents, axis=1) - shared)
