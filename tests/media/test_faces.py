"""Faces found, followed and cropped: a real detector on a real face, and the tracker on patches that are exact."""

import numpy as np
import onnx
import pytest
from face_scenes import BrightFaces, Pose, background, centerface, patches, save_yunet, scene, wandering
from onnx import TensorProto, helper
from PIL import Image

from hf_blemo.media import Frame
from hf_blemo.media.face_detection import overlaps, read_detector
from hf_blemo.media.faces import MOST_FACES, Face, FaceTracker, FrameFaces, PersonChoice, cropped, square_of

pytest.importorskip("cv2", reason="opencv-python-headless is not installed")

SIZE = (1280, 720)


@pytest.fixture(scope="module")
def detector():
    return read_detector(centerface())


def follow(file, frames, rate=25, hold=1.0):
    """The tracker, and all frames with their faces."""
    tracker = FaceTracker(file, hold)
    seen = []
    for number, pixels in enumerate(frames):
        seen += tracker.push(Frame(number / rate, pixels))
        assert len(seen) >= number - 6
    seen += tracker.finish()
    assert [found.frame.time for found in seen] == [number / rate for number in range(len(seen))]
    return tracker, seen


def found_share(seen, poses, least=0.7):
    """In how many frames the square of a face overlaps the true one, and in how many its box does."""
    squares, boxes = [], []
    for frame, pose in zip(seen, poses, strict=True):
        true, *ones = (
            np.array([*(found := square_of(box, 0.25, SIZE)), found[2]])
            for box in (pose.box, *(face.box for face in frame.faces))
        )
        squares.append(max((overlaps(one, true[None])[0] for one in ones), default=0.0) >= least)
        boxes.append(max((overlaps(face.box, pose.box[None])[0] for face in frame.faces), default=0.0) >= least)
    return np.mean(squares), np.mean(boxes)


# --- A real detector on a real face ---


@pytest.mark.parametrize(("smallest", "largest", "phase"), [(40, 400, 0.0), (40, 400, 4.0), (40, 60, 1.0)])
def test_a_face_that_moves_grows_and_turns_is_found(detector, smallest, largest, phase):
    poses = wandering(30, smallest, largest, phase=phase)
    tracker, seen = follow(detector, scene(poses))
    squares, boxes = found_share(seen, poses)
    assert squares >= 0.99 and boxes >= 0.96 and tracker.persons() == [1]


def test_two_faces_are_two_persons_from_left_to_right(detector):
    left = [Pose(300 + 4 * number, 300, 120, 10) for number in range(12)]
    right = [Pose(900 - 2 * number, 350, 160, -20) for number in range(12)]
    tracker, seen = follow(detector, scene(right, left))
    assert tracker.persons() == [1, 2]
    for person, poses in ((1, left), (2, right)):
        ones = [FrameFaces(found.frame, [f for f in found.faces if f.person == person], SIZE) for found in seen]
        assert found_share(ones, poses) == (1, 1)


@pytest.mark.parametrize(
    "picture",
    [
        lambda: np.zeros((16, 16, 3), np.uint8),
        lambda: background(640, 360),
        # A drawing: a circle with two eyes.
        lambda: _drawing(),
        lambda: np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8),
        lambda: np.zeros((1, 100, 3), np.uint8),
    ],
)
def test_nothing_is_no_face(detector, picture):
    tracker, seen = follow(detector, [picture()] * 3)
    assert len(seen) == 3 and tracker.persons() == [] and not any(found.faces for found in seen)


def _drawing():
    rows, columns = np.mgrid[:240, :320]
    pixels = np.full((240, 320, 3), 255, np.uint8)
    for x, y, radius, level in ((160, 120, 60, 230), (140, 105, 6, 0), (180, 105, 6, 0)):
        pixels[np.hypot(rows - y, columns - x) < radius] = level
    return pixels


def test_faces_at_a_border_and_fifty_at_once(detector):
    _, seen = follow(detector, scene([Pose(20, 300, 160)] * 2))
    assert len(seen[0].faces) == 1
    left, top, side = square_of(seen[0].faces[0].box, 0.25, SIZE)
    assert left == 0 and 0 <= top <= 720 - side
    many = [[Pose(64 + 128 * (number % 10), 72 + 144 * (number // 10), 56)] * 2 for number in range(50)]
    tracker, seen = follow(detector, scene(*many))
    assert tracker.is_crowded and len(seen[0].faces) == MOST_FACES


# --- What holds two forms of networks together ---


def test_yunet_reads_colours_and_boxes_as_opencv_says(tmp_path, capfd):
    file = read_detector(save_yunet(tmp_path / "yunet.onnx", 64, 32))
    assert file.kind == "YuNet" and len(file.sha256) == 64
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[8:16, 40:48, 0] = 255
    # Blue is no red.
    picture[16:24, 0:8, 2] = 255
    np.testing.assert_allclose(file.detector().faces(picture), [[40, 8, 8, 8, 1]], atol=1e-3)
    # OpenCV would log a line or two for each clip.
    assert capfd.readouterr().err == ""


def test_a_yunet_of_one_size_takes_pictures_of_others(tmp_path):
    """As the published file, whose network is for 640 x 640 pixels."""
    detector = read_detector(save_yunet(tmp_path / "yunet.onnx", 96, 96)).detector()
    for width, height in ((160, 160), (64, 32), (160, 160)):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[16:24, 32:40, 0] = 255
        np.testing.assert_allclose(detector.faces(picture), [[32, 16, 8, 8, 1]], atol=1e-3)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path.write_bytes(b""), "found a file that OpenCV cannot read"),
        (lambda path: path.write_text("no network"), "found a file that OpenCV cannot read"),
        (lambda path: Image.new("RGB", (64, 64)).save(path, "PNG"), "found a file that OpenCV cannot read"),
        (lambda path: _save_network(path, 1), "found a network with 1 outputs"),
        (lambda path: _save_network(path, 4), "found a network that is not CenterFace"),
        (lambda path: _save_network(path, 12), "found a network that is not YuNet"),
    ],
)
def test_a_file_that_is_no_detector_is_refused(tmp_path, make, expected):
    make(tmp_path / "detector.onnx")
    with pytest.raises(ValueError, match="detector.onnx: ") as error:
        read_detector(tmp_path / "detector.onnx")
    assert expected in str(error.value) and "expected a detector of faces as ONNX: YuNet, or CenterFace" in str(
        error.value
    )


def _save_network(path, num_outputs):
    """A network with as many outputs, each its input."""
    names = [f"output_{number}" for number in range(num_outputs)]
    nodes = [helper.make_node("Relu", ["input"], [name]) for name in names]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 32, 32]) for name in ["input", *names]]
    graph = helper.make_graph(nodes, "other", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


# --- From frame to frame ---


def test_boxes_between_detections_lie_between_theirs():
    boxes = [(20 + 6 * number, 60 + 2 * number, 60, 60) for number in range(21)]
    _, seen = follow(BrightFaces(), [patches(box) for box in boxes])
    for found, box in zip(seen, boxes, strict=True):
        [face] = found.faces
        assert face.person == 1 and face.unseen == 0
        np.testing.assert_allclose(face.box, box, atol=1.5)


@pytest.mark.parametrize(
    ("absent", "hold", "kinds", "persons"),
    [
        # Every sixth frame is looked at: s is seen or between two sights, h is held.
        (range(10, 15), 1.0, "s" * 7 + "h" * 5 + "s" * 18, [1]),
        (range(8, 21), 1.0, "s" * 7 + "h" * 11 + "s" * 12, [1]),
        (range(8, 21), 0.0, "s" * 7 + "-" * 22 + "s", [1, 2]),
        (range(8, 30), 0.5, "s" * 7 + "h" * 12 + "-" * 11, [1]),
    ],
)
def test_a_lost_face_keeps_its_place_for_a_while(absent, hold, kinds, persons):
    frames = [patches(None if number in absent else (100, 80, 60, 60)) for number in range(30)]
    tracker, seen = follow(BrightFaces(), frames, hold=hold)
    assert "".join("-" if not one.faces else "h" if one.faces[0].unseen else "s" for one in seen) == kinds
    assert sorted({face.person for one in seen for face in one.faces}) == persons
    for face in (face for one in seen for face in one.faces):
        np.testing.assert_allclose(face.box, (100, 80, 60, 60), atol=1.5)
    assert tracker.num_brief + len(tracker.persons()) == len(persons)


def test_what_one_detection_alone_finds_is_no_person():
    frames = [patches((200, 150, 60, 60) if number in (12, 13) else None, (30, 30, 60, 60)) for number in range(30)]
    tracker, seen = follow(BrightFaces(), frames)
    assert {face.person for one in seen for face in one.faces} == {1} == set(tracker.persons())


def test_a_person_seen_briefly_is_counted_apart():
    frames = [patches((200, 150, 60, 60) if number < 9 else None, (30, 30, 60, 60)) for number in range(50)]
    tracker, seen = follow(BrightFaces(), frames)
    assert (tracker.persons(), tracker.num_brief) == ([1], 1)
    assert [person for one in seen for person in one.gone] == [2]


def _choice(person, *frames):
    """Whom a choice takes in each frame; a face is (person, left, size, seconds unseen)."""
    choice = PersonChoice(person)
    chosen = []
    for faces in frames:
        listed = [Face(who, np.array([left, 100, size, size], float), unseen) for who, left, size, unseen in faces]
        found = choice.choose(FrameFaces(Frame(0.0, np.zeros((8, 8, 3), np.uint8)), listed, (640, 360)))
        chosen.append(found and found.person)
    return chosen, choice.notes()


@pytest.mark.parametrize(
    ("person", "frames", "chosen", "notes"),
    [
        # The larger one, which stays until the other is clearly larger.
        ("largest", [[(1, 0, 50, 0), (2, 300, 60, 0)], [(1, 0, 70, 0), (2, 300, 60, 0)]], [2, 2],
         ["2 of 2 frames show several faces: the largest one was taken"]),
        ("largest", [[(1, 0, 50, 0), (2, 300, 60, 0)], [(1, 0, 90, 0), (2, 300, 60, 0)]], [2, 1],
         ["2 of 2 frames show several faces: the largest one was taken"]),
        # A held face gives way to one that is seen, after a while.
        ("largest", [[(1, 0, 90, 0)], [(1, 0, 90, 0.2), (2, 0, 40, 0)], [(1, 0, 90, 0.6), (2, 0, 40, 0)]], [1, 1, 2],
         ["1 of 3 frames do not show the face: in 1 its last place was used"]),
        ("central", [[(1, 0, 90, 0), (2, 300, 40, 0)], [(1, 250, 90, 0), (2, 270, 40, 0)]], [2, 2],
         ["2 of 2 frames show several faces: the most central one was taken"]),
        (2, [[(1, 0, 90, 0)], [(1, 0, 90, 0), (2, 0, 9, 0)]], [None, 2],
         ["1 of 2 frames do not show person 2: 1 was left out"]),
        (3, [[(1, 0, 90, 0)], []], [None, None], ["none of 2 frames shows person 3"]),
        # Now and then, another one is taken for a mistake.
        ("largest", [*[[(1, 0, 50, 0)]] * 9, [(1, 0, 50, 0), (2, 300, 40, 0)]], [1] * 10, []),
    ],
)  # fmt: skip
def test_whom_a_choice_takes(person, frames, chosen, notes):
    assert _choice(person, *frames) == (chosen, notes)


@pytest.mark.parametrize(
    ("box", "margin", "size", "expected"),
    [
        ((100, 100, 40, 60), 0.25, (640, 360), (75, 85, 90)),
        # Moved inside at a border, and no larger than the picture.
        ((-20, 100, 40, 60), 0.25, (640, 360), (0, 85, 90)),
        ((600, 330, 40, 60), 0.0, (640, 360), (580, 300, 60)),
        ((0, 0, 500, 500), 0.25, (640, 360), (70, 0, 360)),
        ((3, 3, 2, 2), 0.0, (16, 16), (3, 3, 2)),
    ],
)
def test_the_square_of_a_face(box, margin, size, expected):
    assert square_of(np.array(box, float), margin, size) == expected
    frame = Frame(2.0, np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    found = cropped(frame, np.array(box, float), margin)
    left, top, side = expected
    assert found.time == 2.0
    np.testing.assert_array_equal(found.image, frame.image[top : top + side, left : left + side])
