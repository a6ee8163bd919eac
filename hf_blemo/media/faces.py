"""Faces of a clip, followed from frame to frame, and square pictures of them. Needs the extra `face`."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from hf_blemo.media.decoding import Frame
from hf_blemo.media.face_detection import MULTIPLE, DetectorFile, overlaps, without_doubles

# A detection after as many frames, or after as many seconds where there are fewer frames.
_FRAMES_APART, _SECONDS_APART = 6, 0.25
# Whole pictures are searched, reduced to this longer side, only so often; detections between look where faces were.
_WHOLE_SIDE, _WHOLE_APART, _FACELESS_APART = 640, 1.5, 0.6
# A region is as many sizes of its face wide, and reduced or enlarged to this side.
_REGION, _REGION_SIDE, _SMALLEST_REGION = 3.0, 160, 64
# Share of overlap of one face found twice; longer side in a reduced picture of a face that needs no closer look.
_SAME, _LARGE, _MOST_LOOKS = 0.2, 48, 8
# With more faces, one search of the whole picture costs less.
_MOST_REGIONS = 4
MOST_FACES = 32
# Of one face in two detections: sizes from one centre to the other, at once, per second between, and at most; ratio
# of sizes.
_REACH, _REACH_PER_SECOND, _FARTHEST, _MOST_GROWTH = 0.75, 1.5, 2.0, 2.0
# Velocities that are older say nothing.
_VELOCITY_HOLDS = 0.5
# Moves of this share of a face's size are followed at once; smaller ones are mostly noise of the detector.
_STILL, _LEAST_FOLLOWED = 0.1, 0.3
# Seconds without a sight of the chosen face after which another one takes its place.
_PATIENCE = 0.4
# A face is chosen instead of another if it is as many times as large, or by this share of the picture more central.
_LARGER, _MORE_CENTRAL = 1.3, 0.1
# Share of a clip's frames in which further faces are no mistake of the detector.
_MANY = 0.2
# Seconds for which one must be seen to count as a person, if any is.
_SHORTEST_PERSON = 1.0


@dataclass
class Face:
    """A face in a frame.

    Args:
        person: number of the person, from 1, in the order of appearance, from left to right.
        box: (4,) left, top, width and height in pixels.
        unseen: seconds since it was found last; 0 while it is followed.
    """

    person: int
    box: np.ndarray
    unseen: float = 0.0


@dataclass
class FrameFaces:
    """A frame with its faces.

    Args:
        frame: of the clip.
        faces: of confirmed persons.
        size: width and height of the picture.
        gone: persons that will not come again.
    """

    frame: Frame
    faces: list[Face]
    size: tuple[int, int]
    gone: list[int] = field(default_factory=list)


def square_of(box: np.ndarray, margin: float, size: tuple[int, int]) -> tuple[int, int, int]:
    """The square around a face.

    Args:
        box: of the face, as in [`Face`].
        margin: at each side, as a share of the longer side of the face.
        size: width and height of the picture.

    Returns:
        Left, top and side in pixels: inside the picture, and so moved where the face lies at a border.
    """
    side = max(1, min(round((1 + 2 * margin) * float(max(box[2:]))), *size))
    left, top = (
        int(np.clip(round(float(start + length / 2 - side / 2)), 0, most - side))
        for start, length, most in zip(box[:2], box[2:], size, strict=True)
    )
    return left, top, side


def cropped(frame: Frame, box: np.ndarray, margin: float) -> Frame:
    """A frame that shows only the square around a face; see [`square_of`]."""

    def pixels() -> np.ndarray:
        height, width = frame.image.shape[:2]
        left, top, side = square_of(box, margin, (width, height))
        return frame.image[top : top + side, left : left + side]

    return Frame(frame.time, pixels)


class _Track:
    """One face from detection to detection."""

    def __init__(self, box: np.ndarray, time: float):
        self.person: int | None = None
        # As detected, and smoothed; smoothed at the detection before.
        self.box, self.smooth, self.before = box, box, box
        self.velocity = np.zeros(2)
        self.born, self.seen, self.was_found = time, time, True

    @property
    def size(self) -> float:
        return float(max(self.box[2:]))

    def predicted(self, time: float) -> np.ndarray:
        """The box where the face is expected."""
        ahead = min(time - self.seen, _VELOCITY_HOLDS)
        return np.concatenate([self.box[:2] + self.velocity * ahead, self.box[2:]])

    def distance(self, box: np.ndarray, time: float) -> float:
        """How far a box is from the expected place, as a share of what is believed: above 1 it is another face."""
        expected = self.predicted(time)
        size = max(expected[2:].max(), box[2:].max())
        growth = size / max(1e-6, min(expected[2:].max(), box[2:].max()))
        away = np.linalg.norm(expected[:2] + expected[2:] / 2 - box[:2] - box[2:] / 2) / size
        # Where a new face moves is not known yet.
        within = _FARTHEST if self.person is None else _REACH + _REACH_PER_SECOND * (time - self.seen)
        within = min(_FARTHEST, within)
        return float("inf") if growth > _MOST_GROWTH else float(away / within)

    def move(self, box: np.ndarray, time: float) -> None:
        """Takes the box of a new detection."""
        centre, old = box[:2] + box[2:] / 2, self.smooth[:2] + self.smooth[2:] / 2
        elapsed = max(time - self.seen, 1e-6)
        moved = centre - self.box[:2] - self.box[2:] / 2
        self.velocity = moved / elapsed if elapsed <= _VELOCITY_HOLDS else np.zeros(2)
        self.before = self.smooth
        if self.was_found:
            still = _STILL * self.size
            part = _followed(float(np.linalg.norm(centre - old)), still)
            extent = self.smooth[2:] + _followed(np.abs(box[2:] - self.smooth[2:]).max(), still) * (
                box[2:] - self.smooth[2:]
            )
            self.smooth = np.concatenate([old + part * (centre - old) - extent / 2, extent])
        else:
            # Its place was held; it is not drawn towards the new one.
            self.smooth = box
        self.box, self.seen, self.was_found = box, time, True


def _followed(change: float, still: float) -> float:
    return float(np.clip(change / max(still, 1e-6), _LEAST_FOLLOWED, 1.0))


class FaceTracker:
    """Follows the faces of one clip; memory holds the frames from one detection to the next.

    A detector looks at every sixth frame, or each 0.25 seconds: every 1.5 seconds at the whole picture, else around
    the faces it knows. Between detections boxes are interpolated. A face that two detections in a row find is a
    person; one that is lost keeps its place for a while, and is a new person when it comes back later than that.

    Args:
        file: of the detector.
        hold: seconds for which the place of a lost face is kept.
    """

    def __init__(self, file: DetectorFile, hold: float = 1.0):
        self._detector, self._hold = file.detector(), hold
        self._pending: deque[Frame] = deque()
        self._tracks: list[_Track] = []
        self._size = (1, 1)
        self._last: float | None = None
        self._searched: float | None = None
        self._num_persons = 0
        self._gone: list[int] = []
        self._seconds: dict[int, float] = {}
        self.is_crowded = False

    def push(self, frame: Frame) -> Iterator[FrameFaces]:
        """Takes the next frame, and gives those whose faces are known now."""
        self._pending.append(frame)
        if self._last is None or len(self._pending) > _FRAMES_APART or frame.time - self._last >= _SECONDS_APART:
            yield from self._detect()

    def finish(self) -> Iterator[FrameFaces]:
        """Gives the remaining frames."""
        if len(self._pending) > 1:
            yield from self._detect()
        # What only the last detection found had no second chance.
        self._name(self._tracks)
        while self._pending:
            yield self._faces(self._pending.popleft(), None)

    def persons(self) -> list[int]:
        """Those that were seen for a second; all, if none was."""
        longest = max(self._seconds.values(), default=0.0)
        least = min(_SHORTEST_PERSON, longest)
        return [person for person, seconds in sorted(self._seconds.items()) if seconds >= least]

    @property
    def num_brief(self) -> int:
        """Others, who were seen for less."""
        return len(self._seconds) - len(self.persons())

    def _detect(self) -> Iterator[FrameFaces]:
        """Looks at the last frame, and gives those before it."""
        frame = self._pending[-1]
        self._size = (frame.image.shape[1], frame.image.shape[0])
        known = list(self._tracks)
        found = self._follow(frame.image, frame.time)
        self._name([track for track in known if track.was_found])
        while len(self._pending) > 1:
            earlier = self._pending.popleft()
            yield self._faces(earlier, frame.time, known)
        # One that was found once only was none.
        lost = [track for track in known if not track.was_found]
        for track in lost:
            if track.person is None or frame.time - track.seen > self._hold:
                self._tracks.remove(track)
                self._gone += [] if track.person is None else [track.person]
        for box in found[: max(0, MOST_FACES - len(self._tracks))]:
            self._tracks.append(_Track(box, frame.time))
        self.is_crowded |= len(self._tracks) >= MOST_FACES
        self._last = frame.time

    def _faces(self, frame: Frame, end: float | None, tracks: Sequence[_Track] | None = None) -> FrameFaces:
        """The faces of a frame between the last detection and the one at `end`."""
        faces = []
        for track in self._tracks if tracks is None else tracks:
            if track.person is None:
                continue
            if end is None or not track.was_found:
                unseen = max(0.0, frame.time - track.seen)
                if unseen <= self._hold:
                    faces.append(Face(track.person, track.smooth, unseen))
            else:
                start = end if self._last is None else self._last
                share = (frame.time - start) / max(end - start, 1e-9)
                faces.append(Face(track.person, track.before + share * (track.smooth - track.before)))
        gone, self._gone = self._gone, []
        return FrameFaces(frame, faces, self._size, gone)

    def _name(self, tracks: Sequence[_Track]) -> None:
        """Numbers new persons, from left to right."""
        for track in sorted((track for track in tracks if track.person is None), key=lambda track: track.box[0]):
            self._num_persons += 1
            track.person = self._num_persons
            self._seconds[track.person] = track.seen - track.born

    def _follow(self, picture: np.ndarray, time: float) -> list[np.ndarray]:
        """Moves the tracks to where their faces are now; returns the boxes of other faces."""
        elapsed = float("inf") if self._searched is None else time - self._searched
        if not self._tracks and elapsed < _FACELESS_APART:
            return []
        boxes = np.zeros((0, 4))
        looks_around = 0 < len(self._tracks) <= _MOST_REGIONS
        if looks_around:
            regions = [track.predicted(time) for track in self._tracks]
            boxes = without_doubles(np.concatenate([self._around(picture, box) for box in regions]))
        pairs = self._pairs(boxes, time)
        is_lost = any(track.was_found and track not in pairs for track in self._tracks)
        if not looks_around or is_lost or elapsed >= _WHOLE_APART:
            self._searched = time
            boxes = self._whole(picture, boxes)
            pairs = self._pairs(boxes, time)
        for track in self._tracks:
            if track in pairs:
                if track.person is not None:
                    self._seconds[track.person] += time - track.seen if track.was_found else 0.0
                track.move(boxes[pairs[track]], time)
            else:
                track.before, track.was_found = track.smooth, False
        return [box for number, box in enumerate(boxes) if number not in pairs.values()]

    def _pairs(self, boxes: np.ndarray, time: float) -> dict[_Track, int]:
        """Which box is whose, the nearest first."""
        near = sorted(
            (away, order, number)
            for order, track in enumerate(self._tracks)
            for number, box in enumerate(boxes)
            if (away := track.distance(box, time)) <= 1
        )
        pairs: dict[_Track, int] = {}
        for _, order, number in near:
            if self._tracks[order] not in pairs and number not in pairs.values():
                pairs[self._tracks[order]] = number
        return pairs

    def _whole(self, picture: np.ndarray, known: np.ndarray) -> np.ndarray:
        """The known faces and all others of a picture; the small and the doubtful ones after a closer look."""
        height, width = picture.shape[:2]
        scale = min(1.0, _WHOLE_SIDE / max(height, width))
        found = self._search(picture, (0, 0), scale, (width, height))
        boxes, looks = known, 0
        for box in found:
            if (overlaps(box, boxes) > _SAME).any():
                continue
            is_sure = box[4] >= self._detector.sure
            if is_sure and (scale * max(box[2:4]) >= _LARGE or looks >= _MOST_LOOKS):
                boxes = np.concatenate([boxes, box[None, :4]])
            elif looks < _MOST_LOOKS:
                looks += 1
                boxes = without_doubles(np.concatenate([boxes, self._around(picture, box[:4])]))
        return boxes

    def _around(self, picture: np.ndarray, box: np.ndarray) -> np.ndarray:
        """The faces around a place, without those that the region cuts off."""
        side = max(_SMALLEST_REGION, round(_REGION * float(max(box[2:]))))
        start = (box[:2] + box[2:] / 2 - side / 2).round().astype(int)
        found = self._search(picture, (int(start[0]), int(start[1])), _REGION_SIDE / side, (side, side))
        ends, size = found[:, :2] + found[:, 2:4], np.array(picture.shape[1::-1])
        whole = (found[:, :2] > start + 1) | (start <= 0)
        whole &= (ends < start + side - 1) | (start + side >= size)
        return found[whole.all(1) & (found[:, 4] >= self._detector.sure), :4]

    def _search(self, picture: np.ndarray, start: tuple[int, int], scale: float, size: tuple[int, int]) -> np.ndarray:
        """The faces of a part of a picture, which may reach beyond its borders."""
        import cv2

        height, width = picture.shape[:2]
        left, top = max(0, start[0]), max(0, start[1])
        right, bottom = min(width, start[0] + size[0]), min(height, start[1] + size[1])
        if right - left < 2 or bottom - top < 2:
            return np.zeros((0, 5))
        small = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
        part = picture[top:bottom, left:right]
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        filled = np.zeros((*(MULTIPLE * -(-round(side * scale) // MULTIPLE) for side in size[::-1]), 3), np.uint8)
        filled[: small[1], : small[0]] = cv2.resize(part, small, interpolation=how)
        found = self._detector.faces(filled)
        found[:, :4] /= [small[0] / (right - left), small[1] / (bottom - top)] * 2
        found[:, :2] += (left, top)
        centres = found[:, :2] + found[:, 2:4] / 2
        return found[((centres >= 0) & (centres < (width, height))).all(1)]


class PersonChoice:
    """Chooses one face of each frame of a clip, and counts the frames without.

    Args:
        person: `largest` or `central`, which change only to a face that is clearly more so; or the number of a person.
    """

    def __init__(self, person: str | int):
        self._person = person
        self._current: int | None = None
        self.num_frames = self.num_held = self.num_missing = self.num_shared = 0

    def choose(self, seen: FrameFaces) -> Face | None:
        """The face; None where there is none."""
        face = self._chosen(seen)
        self.num_frames += 1
        self.num_missing += face is None
        self.num_held += face is not None and face.unseen > 0
        self.num_shared += sum(not one.unseen for one in seen.faces) > 1
        return face

    def notes(self) -> list[str]:
        """Sentences on the frames without the face, and where it was chosen among others in many frames."""
        whom = f"person {self._person}" if isinstance(self._person, int) else "the face"
        if self.num_missing == self.num_frames:
            return [f"none of {self.num_frames} frames shows {whom.replace('the', 'a')}"]
        missing, held = self.num_missing, self.num_held
        parts = [f"{missing} {'were' if missing > 1 else 'was'} left out"] if missing else []
        parts += [f"in {held} its last place was used"] if held else []
        count = self.num_frames
        notes = [f"{missing + held} of {count} frames do not show {whom}: {', '.join(parts)}"] if parts else []
        if not isinstance(self._person, int) and self.num_shared > _MANY * count:
            which = "largest" if self._person == "largest" else "most central"
            notes.append(f"{self.num_shared} of {count} frames show several faces: the {which} one was taken")
        return notes

    def _chosen(self, seen: FrameFaces) -> Face | None:
        if isinstance(self._person, int):
            return next((face for face in seen.faces if face.person == self._person), None)
        current = next((face for face in seen.faces if face.person == self._current), None)
        others = [face for face in seen.faces if not face.unseen]
        if current is not None and (current.unseen and current.unseen <= _PATIENCE or not others):
            return current
        best = min(others or seen.faces, key=partial(self._cost, seen), default=None)
        if current is None or current.unseen or (best and self._cost(seen, best) < self._bar(seen, current)):
            current = best
        self._current = None if current is None else current.person
        return current

    def _cost(self, seen: FrameFaces, face: Face) -> float:
        if self._person == "largest":
            return -float(max(face.box[2:]))
        return float(np.linalg.norm(face.box[:2] + face.box[2:] / 2 - np.array(seen.size) / 2))

    def _bar(self, seen: FrameFaces, current: Face) -> float:
        cost = self._cost(seen, current)
        return cost * _LARGER if self._person == "largest" else cost - _MORE_CENTRAL * float(np.hypot(*seen.size))
