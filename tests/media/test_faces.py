"""Faces found, followed and cropped: a real detector on a real face, and the tracker on patches that are exact."""

import numpy as np
import pytest
from face_scenes import centerface, scene, wandering

from hf_blemo.media import Frame
from hf_blemo.media.face_detection import overlaps, read_detector
from hf_blemo.media.faces import FaceTracker, square_of

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")

SIZE = (1280, 720)


@pytest.fixture(scope="module")
def detector():
    return read_detector(centerface())


def follow(file, frames, rate=25, hold=1.0):
    """All frames with their faces."""
    tracker = FaceTracker(file, hold)
    seen = []
    for number, pixels in enumerate(frames):
        seen += tracker.push(Frame(number / rate, pixels))
    seen += tracker.finish()
    assert [found.frame.time for found in seen] == [number / rate for number in range(len(seen))]
    return tracker, seen


def found_share(seen, poses, least=0.7):
    """Of how many frames the square of a face overlaps the true one, and of how many its box does."""
    squares, boxes = [], []
    for frame, pose in zip(seen, poses, strict=True):
        true = np.array([[*square_of(pose.box, 0.25, SIZE)]])
        true = np.append(true, true[:, 2:], axis=1)
        ones = [np.array([*(found := square_of(face.box, 0.25, SIZE)), found[2]]) for face in frame.faces]
        squares.append(max((overlaps(one, true)[0] for one in ones), default=0.0) >= least)
        boxes.append(max((overlaps(face.box, pose.box[None])[0] for face in frame.faces), default=0.0) >= least)
    return np.mean(squares), np.mean(boxes)


# --- A real detector on a real face ---


@pytest.mark.parametrize(("smallest", "largest", "phase"), [(40, 400, 0.0), (40, 400, 4.0), (40, 60, 1.0)])
def test_a_face_that_moves_grows_and_turns_is_found(detector, smallest, largest, phase):
    poses = wandering(30, smallest, largest, phase=phase)
    tracker, seen = follow(detector, scene(poses))
    squares, boxes = found_share(seen, poses)
    assert squares >= 0.98 and boxes >= 0.98 and tracker.persons() == [1]
