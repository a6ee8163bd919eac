"""The sessions of all encoders for one clip: who gets which frames, sound and faces."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hf_blemo.encoders.face_cropping import ALL, FaceCrop
from hf_blemo.encoders.pieces import Piece, Session
from hf_blemo.media import Audio, Frame, Thumbnails
from hf_blemo.media.faces import MOST_FACES, Face, FaceTracker, FrameFaces, PersonChoice, cropped, square_of


@dataclass
class _Faces:
    """The encoders that look at the faces one tracker follows."""

    tracker: FaceTracker
    crops: dict[str, FaceCrop] = field(default_factory=dict)
    # By the option `person`.
    choices: dict[str | int, PersonChoice] = field(default_factory=dict)


class ClipSessions:
    """Cuts one clip into pieces for several encoders; its faces are looked for once for all of them.

    Of `video` and `audio` the modalities that are to be read. Thumbnails get every frame; with faces, their squares
    too.
    """

    def __init__(self, encoders: Mapping[str, Any], modalities: Iterable[str], thumbnails: Thumbnails | None = None):
        modalities = set(modalities)
        self._encoders = {name: encoder for name, encoder in encoders.items() if encoder.modality in modalities}
        self._thumbnails = thumbnails if "video" in modalities else None
        # (encoder, person); 0 is whoever was chosen, or the whole frame.
        self._sessions: dict[tuple[str, int], Session] = {}
        self._faces: dict[tuple[str, float], _Faces] = {}
        for name, encoder in self._encoders.items():
            crop = encoder.face_crop
            if crop is not None:
                key = (crop.detector.sha256, crop.hold)
                if key not in self._faces:
                    self._faces[key] = _Faces(FaceTracker(crop.detector, crop.hold))
                faces = self._faces[key]
                faces.crops[name] = crop
                if crop.person != ALL:
                    faces.choices.setdefault(crop.person, PersonChoice(crop.person))
            if crop is None or crop.person != ALL:
                self._sessions[name, 0] = encoder.session()

    @property
    def with_video(self) -> bool:
        """Whether frames are to be read."""
        return self._thumbnails is not None or any(enc.modality == "video" for enc in self._encoders.values())

    @property
    def audio_rates(self) -> list[int]:
        """Rates of the sound to be read."""
        return sorted({rate for encoder in self._encoders.values() if (rate := encoder.audio_rate) is not None})

    def push(self, item: Frame | Audio) -> Iterator[tuple[str, Piece]]:
        """Takes the next frame or stretch of sound; yields (encoder, piece) of pieces that are complete now."""
        if isinstance(item, Audio):
            for name, encoder in self._encoders.items():
                if encoder.audio_rate == item.rate:
                    yield from self._pieces(name, 0, self._sessions[name, 0].push(item))
            return
        for name, encoder in self._encoders.items():
            if encoder.modality == "video" and encoder.face_crop is None:
                yield from self._pieces(name, 0, self._sessions[name, 0].push(item))
        if self._thumbnails is not None and not self._faces:
            self._thumbnails.add(item)
        for faces in self._faces.values():
            for seen in faces.tracker.push(item):
                yield from self._see(faces, seen)

    def finish(self) -> Iterator[tuple[str, Piece]]:
        """Ends the clip; yields the remaining pieces."""
        for faces in self._faces.values():
            for seen in faces.tracker.finish():
                yield from self._see(faces, seen)
        for name, person in list(self._sessions):
            yield from self._end(name, person)

    def persons(self) -> list[int]:
        """Those of encoders that look at all persons, without who was seen only briefly."""
        return sorted({person for faces in self._of_all() for person in faces.tracker.persons()})

    def notes(self) -> list[str]:
        """Sentences on the faces."""
        notes = [note for faces in self._faces.values() for one in faces.choices.values() for note in one.notes()]
        for faces in self._of_all():
            count, brief = len(faces.tracker.persons()), faces.tracker.num_brief
            others = f"; {brief} more seen for less than a second {'are' if brief > 1 else 'is'} left out"
            notes.append(f"{count} {'person' if count == 1 else 'persons'} seen{others if brief else ''}")
        if any(faces.tracker.is_crowded for faces in self._faces.values()):
            notes.append(f"{MOST_FACES} faces at once are followed, others were left out")
        return list(dict.fromkeys(notes))

    def _of_all(self) -> list[_Faces]:
        return [faces for faces in self._faces.values() if any(crop.person == ALL for crop in faces.crops.values())]

    def _see(self, faces: _Faces, seen: FrameFaces) -> Iterator[tuple[str, Piece]]:
        chosen = {person: choice.choose(seen) for person, choice in faces.choices.items()}
        if self._thumbnails is not None and faces is next(iter(self._faces.values())):
            crop = next(iter(faces.crops.values()))
            shown: dict[int, Face | None] = {face.person: face for face in seen.faces}
            if crop.person != ALL:
                shown = {0: chosen[crop.person]}
            squares = {who: square_of(face.box, crop.margin, seen.size) for who, face in shown.items() if face}
            self._thumbnails.add(seen.frame, squares)
        for name, crop in faces.crops.items():
            looked_at = {face.person: face for face in seen.faces}
            if crop.person != ALL:
                found = chosen[crop.person]
                looked_at = {} if found is None else {0: found}
            for person, face in looked_at.items():
                if (name, person) not in self._sessions:
                    self._sessions[name, person] = self._encoders[name].session()
                pieces = self._sessions[name, person].push(cropped(seen.frame, face.box, crop.margin))
                yield from self._pieces(name, person, pieces)
            for person in seen.gone if crop.person == ALL else ():
                yield from self._end(name, person)

    def _end(self, name: str, person: int) -> Iterator[tuple[str, Piece]]:
        session = self._sessions.pop((name, person), None)
        if session is not None:
            yield from self._pieces(name, person, session.finish())

    @staticmethod
    def _pieces(name: str, person: int, pieces: Iterator[Piece]) -> Iterator[tuple[str, Piece]]:
        for piece in pieces:
            yield name, replace(piece, person=person) if person else piece
