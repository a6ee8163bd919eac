"""`crop: face`: features are those of the squares around the faces, and the detector is a part of the options."""

import numpy as np
import pytest
from direct_features import frame_features, segment_features
from face_scenes import BrightFaces, patches
from known_clips import assert_same, write_exact

from hf_blemo.encoders import load_encoder
from hf_blemo.encoders.encoder_options import check_encoders, placed, with_faces
from hf_blemo.encoders.face_cropping import check_crop
from hf_blemo.extraction.extraction import encode_clips
from hf_blemo.media import Frame, MediaError
from hf_blemo.media.faces import FaceTracker, square_of

pytest.importorskip("cv2", reason="opencv-python-headless is not installed")

SIZE, MARGIN = (320, 240), 0.3
# Left, top and side of a small face that moves, and of a large one that goes.
SMALL = [(30 + 4 * number, 60, 50) for number in range(40)]
LARGE = [(220, 120, 70) if number < 33 else None for number in range(40)]
FACES = {"crop": "face", "margin": MARGIN, "hold": 0.2, "detector": "bright.onnx"}


def pictures(*tracks):
    """Frames with patches of noise, as an encoder gives different rows for them."""
    noise = np.random.default_rng(0).integers(0, 60, (240, 320, 3), dtype=np.uint8)
    frames = []
    for boxes in zip(*tracks, strict=True):
        frame = patches(*[box and (box[0], box[1], box[2], box[2]) for box in boxes])
        frames.append(np.where(frame > 128, frame - noise, noise))
    return frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    frames = pictures(SMALL, LARGE)
    return write_exact(tmp_path_factory.mktemp("faces") / "clip.mkv", frames, None), frames


@pytest.fixture
def bright(monkeypatch, tmp_path):
    """Every file is a detector of bright patches."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bright.onnx").touch()
    monkeypatch.setattr("hf_blemo.encoders.face_cropping.read_detector", lambda path, name=None: BrightFaces())


def squares(frames, person):
    """The square around a person in each frame, None without."""
    tracker = FaceTracker(BrightFaces(), 0.2)
    seen = [one for number, frame in enumerate(frames) for one in tracker.push(Frame(number / 25, frame))]
    seen += tracker.finish()
    boxes = [next((face.box for face in one.faces if face.person == person), None) for one in seen]
    return [None if box is None else square_of(box, MARGIN, SIZE) for box in boxes]


def crops(frames, person):
    """Its pictures, and their times."""
    found = [(n, square) for n, square in enumerate(squares(frames, person)) if square is not None]
    return [frames[n][y : y + side, x : x + side] for n, (x, y, side) in found], [n / 25 for n, _ in found]


@pytest.mark.parametrize("name", ["clip", "resnet"])
def test_an_image_encoder_sees_the_squares(name, clip, checkpoint, bright):
    path, frames = clip
    encoder = load_encoder(checkpoint(name), extraction={**FACES, "person": 1}, device="cpu")
    expected, times = crops(frames, 1)
    assert len(expected) == 40
    encoded = encoder.encode(path)
    np.testing.assert_allclose(encoded.times, times, atol=1e-6)
    assert_same(encoded.features, np.concatenate([frame_features(checkpoint(name), [crop]) for crop in expected]))


def test_a_video_encoder_sees_segments_of_one_person(clip, checkpoint, bright):
    path, frames = clip
    encoder = load_encoder(checkpoint("videomae"), extraction={**FACES, "person": 2}, device="cpu")
    expected, times = crops(frames, 2)
    encoded = encoder.encode(path)
    # Until 0.2 s after the last of the detections, one each sixth frame, that finds it.
    assert len(expected) == len(times) == 36
    np.testing.assert_allclose(encoded.times, times[::16], atol=1e-6)
    assert_same(encoded.features, segment_features(checkpoint("videomae"), expected, 16))


def test_persons_have_features_of_their_own_and_faces_are_looked_for_once(clip, checkpoint, bright, monkeypatch):
    path, frames = clip
    made = []
    monkeypatch.setattr(BrightFaces, "detector", _counted(BrightFaces.detector, made))
    options = {"device": "cpu"}
    encoders = {
        "clip": load_encoder(checkpoint("clip"), extraction={**FACES, "person": "all"}, **options),
        "videomae": load_encoder(checkpoint("videomae"), extraction={**FACES, "person": "all"}, **options),
        "resnet": load_encoder(checkpoint("resnet"), extraction={"frames_per_second": 5}, **options),
    }
    found = list(encode_clips([path], encoders, 1, num_thumbnails=3))
    assert len(made) == 1
    assert [(one.name, one.person) for one in found] == [("clip person 1", 1), ("clip person 2", 2)]
    for one in found:
        expected, times = crops(frames, one.person)
        assert list(one.features) == list(encoders)
        np.testing.assert_allclose(one.times["clip"], times, atol=1e-6)
        rows = [frame_features(checkpoint("clip"), [crop]) for crop in expected]
        assert_same(one.features["clip"], np.concatenate(rows))
        assert one.notes == ["2 persons seen"] and len(one.thumbnails) == 3
    np.testing.assert_array_equal(found[0].features["resnet"], found[1].features["resnet"])
    assert found[0].thumbnails != found[1].thumbnails


def _counted(function, calls):
    def counted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return counted


@pytest.mark.parametrize(
    ("person", "rows", "notes"),
    [
        ("largest", 40, ["5 of 40 frames do not show the face: in 5 its last place was used",
                         "31 of 40 frames show several faces: the largest one was taken"]),
        (1, 40, []),
        (2, 36, ["9 of 40 frames do not show person 2: 4 were left out, in 5 its last place was used"]),
        (3, 0, ["none of 40 frames shows person 3"]),
    ],
)  # fmt: skip
def test_frames_without_the_face_are_left_out_and_said(person, rows, notes, clip, checkpoint, bright):
    encoder = load_encoder(checkpoint("vit"), extraction={**FACES, "person": person}, device="cpu")
    [found] = encode_clips([clip[0]], {"vit": encoder}, 1)
    if rows:
        assert len(found.features["vit"]) == rows and found.notes == notes
    else:
        assert found.problem == f"clip: found no face; {notes[0]}, expected some for vit"
        with pytest.raises(MediaError, match="clip.mkv: found no face, expected some for "):
            encoder.encode(clip[0])


def test_the_detector_is_hashed_into_the_options(checkpoint, bright):
    encoder = load_encoder(checkpoint("vit"), extraction=FACES, device="cpu")
    assert encoder.source.options()["extraction"] == {**FACES, "detector_sha256": "0" * 64}
    assert "detector_sha256" not in FACES
    again = load_encoder(checkpoint("vit"), extraction=encoder.source.extraction, device="cpu")
    assert again.source.options() == encoder.source.options()
    other = {**FACES, "detector_sha256": "1" * 64}
    expected = "found a file with the SHA-256 0000000000000000..., expected 1111111111111111..., by which"
    with pytest.raises(ValueError, match=expected):
        load_encoder(checkpoint("vit"), extraction=other, device="cpu")
    plain = load_encoder(checkpoint("vit"), device="cpu").source.options()
    assert "extraction" not in plain


def test_the_default_detector_is_one_file(checkpoint, bright, monkeypatch):
    """OpenCV's, by a commit and by its content; other repositories are not held to it."""
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **named: asked.append((args, named)) or "x")
    face = {"crop": "face"}
    with pytest.raises(ValueError, match="expected 8f2383e4dd3cfbb4..., that of OpenCV's YuNet; name a file of"):
        load_encoder(checkpoint("vit"), extraction=face, device="cpu")
    load_encoder(checkpoint("vit"), extraction={**face, "detector": "own/yunet"}, device="cpu")
    file = "face_detection_yunet_2023mar.onnx"
    assert [args for args, _ in asked] == [("opencv/face_detection_yunet", file), ("own/yunet", file)]
    assert [len(named["revision"] or "") for _, named in asked] == [40, 0]


def test_a_detector_that_cannot_be_had_is_said(checkpoint, hub):
    with pytest.raises(FileNotFoundError, match="no/such: .*; a file of YuNet or CenterFace can be the detector inst"):
        load_encoder(checkpoint("vit"), extraction={"crop": "face", "detector": "no/such"}, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "faces"}, "crop must be face or null, found 'faces'"),
        ({"margin": 0.5}, "margin is for crop: face, found margin 0.5 without it"),
        ({**FACES, "person": 0}, "person must be largest, central, all or a number from 1, found 0"),
        ({**FACES, "person": True}, "person must be largest, central, all or a number from 1, found True"),
        ({**FACES, "margin": -1}, "margin must be a number from 0 to 2, found -1"),
        ({**FACES, "margin": 3}, "margin must be a number from 0 to 2, found 3"),
        ({**FACES, "hold": "long"}, "hold must be a number of seconds, 0 or more, found 'long'"),
        ({**FACES, "detector": 3}, "detector must be a file or a Hub id, found 3"),
        ({**FACES, "detector": "x/y/z.onnx"}, "detector x/y/z.onnx: not a file, folder or Hub id (owner/name)"),
    ],
)
def test_options_that_are_wrong(options, message, bright):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        check_crop(options, "vit")
    assert str(error.value) == f"vit: {message}"


def test_other_persons_and_places_of_the_detector(tmp_path, checkpoint, bright):
    (tmp_path / "own.onnx").touch()
    own = {"model_id": checkpoint("vit"), "extraction": {"crop": "face", "detector": "./own.onnx"}}
    entries = {"face": own, "voice": {"model_id": checkpoint("hubert")}}
    assert with_faces(entries) == entries
    changed = with_faces(entries, "all", "moved.onnx")
    assert changed["face"]["extraction"] == {"crop": "face", "detector": "moved.onnx", "person": "all"}
    assert changed["voice"] == entries["voice"] and own["extraction"]["detector"] == "./own.onnx"
    with pytest.raises(ValueError, match="person: found no encoder of the model that looks at faces"):
        with_faces({"voice": entries["voice"]}, "all")
    folder = tmp_path / "fusion"
    folder.mkdir()
    (folder / "own.onnx").touch()
    assert placed(folder, own)["extraction"]["detector"] == str(folder / "own.onnx")
    check_encoders(entries, folder)
    with pytest.raises(FileNotFoundError, match="moved.onnx: not a file"):
        check_encoders(changed, folder)
