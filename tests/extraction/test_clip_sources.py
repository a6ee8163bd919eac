"""Lists of clips: every kind of source gives the clips with their names, labels and folds, and decodes none."""

import csv
import io
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from distribution_files import write_metadata

from hf_blemo import blemore
from hf_blemo.extraction.clip_sources import MediaClip, Reading, as_clip, find_clips, find_labelled_clips
from hf_blemo.feature_sets.label_reading import LabelOptions

SINGLE, BLEND = "A1_hap_int2_ver1", "A2_mix_ang_sad_70_30_ver1"


def touch(path, content=b"clip"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_csv(path, columns, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def names_of(clips):
    return [clip.name for clip in clips]


def labels_of(clips):
    return [clip.labels.tolist() for clip in clips]


SINGLE_LABEL, BLEND_LABEL = (blemore.soft_label(name).tolist() for name in (SINGLE, BLEND))


def refused(message, source, error=ValueError, **options):
    with pytest.raises(error, match=message):
        find_clips(source, **options)


def files_of(clips):
    """Of each clip its file, or those of picture and sound."""
    found = []
    for clip in clips:
        files = clip.files()
        assert [kinds for _, kinds in files] in ([("video", "audio")], [("video",), ("audio",)])
        found.append(files[0][0] if len(files) == 1 else tuple(source for source, _ in files))
    return found


def test_a_folder_is_searched_through_and_hidden_files_are_left_out(tmp_path):
    refused("found no clip, expected at least one", tmp_path)
    paths = [touch(tmp_path / name) for name in (f"{SINGLE}.mp4", f"b/deep/{BLEND}.MOV", "sound.wav")]
    for path in (".hidden.mp4", ".trash/old.mp4", "notes.txt", "b/table.csv"):
        touch(tmp_path / path)
    (tmp_path / "a folder.mp4").mkdir()
    clips = find_clips(tmp_path)
    assert names_of(clips) == [SINGLE, BLEND, "sound"] and files_of(clips) == paths
    assert labels_of(clips) == [SINGLE_LABEL, BLEND_LABEL, [-100] * 6] and {clip.fold for clip in clips} == {-1}
    [one] = find_clips(paths[0])
    assert one.name == SINGLE and files_of([one]) == paths[:1]
    touch(tmp_path / "again" / "sound.webm")
    refused("clip 'sound' comes more than once", tmp_path)


def test_metadata_says_which_clips_there_are(tmp_path):
    for name in (SINGLE, BLEND, "A3_neu_sit1_ver1"):
        touch(tmp_path / "clips" / f"{name}.mp4")
    # Neither what it does not name nor what a file system left beside it.
    touch(tmp_path / "clips" / f".{SINGLE}.mp4")
    write_metadata(tmp_path, {BLEND: 3, SINGLE: ""})
    clips = find_clips(tmp_path)
    assert [(clip.name, clip.fold) for clip in clips] == [(BLEND, 3), (SINGLE, -1)]
    assert labels_of(clips) == [BLEND_LABEL, SINGLE_LABEL]
    assert files_of(clips[:1]) == [tmp_path / "clips" / f"{BLEND}.mp4"]
    again = touch(tmp_path / "copy" / f"{BLEND}.mov")
    refused(f"expected one file of clip '{BLEND}'", tmp_path)
    again.unlink()
    (tmp_path / "clips" / f"{BLEND}.mp4").unlink()
    refused(f"found no file of 1 of the 2 clips that train_metadata.csv names: '{BLEND}'", tmp_path, FileNotFoundError)


def test_a_list_names_files_from_its_own_folder(tmp_path):
    rows = [
        {"clip": "", "video": f"films/{SINGLE}.mp4", "audio": "", "speaker": "x"},
        {"clip": f"names/{BLEND}.mp4", "video": "films/b.mp4", "audio": str(tmp_path / "b.wav"), "speaker": "y"},
        {"clip": "", "video": "", "audio": "only.wav", "speaker": "z"},
        {"clip": "", "video": "https://host/far.mp4?key=a/b", "audio": "", "speaker": ""},
    ]
    path = write_csv(tmp_path / "clips.csv", ["clip", "video", "audio", "speaker"], rows)
    clips = find_clips(path)
    assert names_of(clips) == [SINGLE, BLEND, "only", "far"]
    assert files_of(clips) == [
        tmp_path / f"films/{SINGLE}.mp4",
        (tmp_path / "films/b.mp4", tmp_path / "b.wav"),
        tmp_path / "only.wav",
        "https://host/far.mp4?key=a/b",
    ]
    assert labels_of(clips[:2]) == [SINGLE_LABEL, BLEND_LABEL]
    others = write_csv(tmp_path / "films.csv", ["film"], [{"film": "a.mp4"}])
    assert files_of(find_clips(others, video_column="film")) == [tmp_path / "a.mp4"]
    refused("found the columns film, expected one of videos or of sound", others)
    refused("found the columns film, expected 'sound' among them", others, audio_column="sound")
    write_csv(path, ["video", "audio"], [{"video": "a.mp4", "audio": ""}, {"video": " ", "audio": ""}])
    refused("clips.csv, line 3: found no path in video or audio", path)
    refused("found no clip", write_csv(path, ["video"], []))


def saved(folder, video, **columns):
    """A data set with files as `datasets` stores them: with bytes, or with a path alone."""
    films = [
        {"path": str(touch(folder / f"{SINGLE}.mp4", b"one")), "bytes": None},
        {"path": f"{BLEND}.mp4", "bytes": b"two"},
        {"path": None, "bytes": b"three"},
    ]
    data = datasets.Dataset.from_dict({video: films, **columns}).cast_column(video, datasets.Video())
    if "voice" in columns:
        data = data.cast_column("voice", datasets.Audio())
    # Rows in another order than they are stored in.
    data.select([2, 0, 1]).save_to_disk(folder / "saved")
    return folder / "saved"


def test_columns_of_a_data_set_are_found_by_type_and_neither_read_nor_decoded(tmp_path, monkeypatch):
    folder = saved(tmp_path, "film", voice=[None, {"path": None, "bytes": b"sound"}, None])
    features, read = datasets.features.features.Features, []
    decode = features.decode_example
    monkeypatch.setattr(features, "decode_example", lambda *given, **more: read.append(1) or decode(*given, **more))
    clips = find_clips(folder)
    assert names_of(clips) == ["clip_000000", SINGLE, BLEND] and not read
    assert files_of(clips) == [b"three", b"one", (b"two", b"sound")] and len(read) == 3
    refused("found the columns film, voice, expected 'picture' among them", folder, video_column="picture")
    assert "torchcodec" not in sys.modules


def test_a_data_set_brings_names_labels_and_folds(tmp_path):
    labels = np.eye(6)[[1, 2, 3]].tolist()
    clips = find_clips(saved(tmp_path, "video", clip=["x/a.mp4", BLEND, ""], labels=labels, fold=[0, None, 2]))
    assert [(clip.name, clip.fold) for clip in clips] == [("clip_000000", 2), ("a", 0), (BLEND, -1)]
    assert labels_of(clips) == [labels[2], labels[0], labels[1]]
    assert files_of(clips) == [b"three", b"one", b"two"]


def test_a_data_set_of_paths_may_lack_some(tmp_path):
    voices = [{"path": None, "bytes": None}, None]
    data = datasets.Dataset.from_dict({"film": [None, "films/b.mp4"], "voice": voices, "clip": ["a", ""]})
    data.save_to_disk(tmp_path / "saved")
    lost, found = find_clips(tmp_path / "saved", video_column="film", audio_column="voice")
    assert found.name == "b" and files_of([found]) == ["films/b.mp4"]
    with pytest.raises(FileNotFoundError, match="a: found nothing in film or voice, expected a clip"):
        lost.files()


def test_labels_of_another_kind_are_refused(tmp_path):
    for number, labels in enumerate((["happy"], [3], [[1.0, 0.0]])):
        folder = tmp_path / str(number)
        datasets.Dataset.from_dict({"video": ["a.mp4"], "labels": labels}).save_to_disk(folder)
        refused("clip 'a' has the labels .*, expected the saliences of 6 emotions", folder)


def test_a_list_or_data_set_has_labels_of_any_space(tmp_path):
    rows = [
        {"video": f"{row}.mp4", "mood": ["up", "up+calm", "calm", ""][row % 4], "fold": row // 4, "actor": row // 2}
        for row in range(8)
    ]
    path = write_csv(tmp_path / "clips.csv", list(rows[0]), rows)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    moods = datasets.ClassLabel(names=["up", "calm"])
    columns["mood"] = [[0], [0, 1], [1], []] * 2
    features = datasets.Features(
        {"video": datasets.Value("string"), "mood": datasets.List(moods)}
        | {name: datasets.Value("int64") for name in ("fold", "actor")}
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "saved")
    for source, names in ((path, ["calm", "up"]), (tmp_path / "saved", ["up", "calm"])):
        clips, space = find_labelled_clips(source, Reading(LabelOptions("mood"), group="actor"))
        assert list(space.names) == names and space.blend_percents == ((50, 50),)
        up = [float(name == "up") for name in names]
        assert labels_of(clips[:4]) == [up, [0.5, 0.5], up[::-1], [-100] * 2]
        assert [(clip.fold, clip.group) for clip in clips] == [(row // 4, str(row // 2)) for row in range(8)]
        clips, _ = find_labelled_clips(source, Reading(LabelOptions("mood"), 2, "actor"))
        dealt = {(clip.group, clip.fold) for clip in clips if clip.labels[0] >= 0}
        assert len(dealt) == 4 and {fold for _, fold in dealt} == {0, 1}
        for options, message in (
            (Reading(LabelOptions("feeling")), "expected 'feeling' among them"),
            (Reading(LabelOptions("mood"), group="speaker"), "expected 'speaker' among them"),
            (
                Reading(LabelOptions("mood", names=["up", "low"])),
                "clip '1': found the name 'calm', expected",
            ),
            (Reading(LabelOptions(prefix="votes.")), "begin with 'votes.'"),
        ):
            with pytest.raises(ValueError, match=message):
                find_labelled_clips(source, options)
    touch(tmp_path / "films" / "a.mp4")
    with pytest.raises(ValueError, match="films: found clips without columns"):
        find_labelled_clips(tmp_path / "films", Reading(LabelOptions("mood")))
    votes = [{"video": f"{row}.mp4", "v.up": 3, "v.calm": 1 + row} for row in range(2)]
    write_csv(path, list(votes[0]), votes)
    clips, _ = find_labelled_clips(path, Reading(LabelOptions(prefix="v.", kind="soft")))
    assert labels_of(clips) == [[0.75, 0.25], [0.6, 0.4]]


def test_what_is_not_there_is_said_in_one_line():
    for source in ("gone", "./gone/clips", "gone.csv", "no/such/folder"):
        refused(f"^{source}: not a file, folder or Hub id", source, FileNotFoundError)
    refused("^clips/gone.mp4: no such folder, and from the Hub: ", "clips/gone.mp4", FileNotFoundError)


def test_anything_that_holds_a_clip_becomes_one():
    for item, name in (
        ("/some/where/A1_ang.mov", "A1_ang"),
        ("https://host/A1_ang.mov?token=a.b/c", "A1_ang"),
        (Path("what?.mp4"), "what?"),
        (b"", "clip 7"),
        (io.BytesIO(), "clip 7"),
        ({"video": None, "audio": {"path": "x/voice.wav", "bytes": b""}}, "voice"),
        ({"clip": "mine", "video": b""}, "mine"),
        ({"video": b""}, "clip 7"),
        (MediaClip("mine", b""), "mine"),
    ):
        assert as_clip(item, 7).name == name
    assert files_of([as_clip({"video": b"a", "audio": b"b"}), MediaClip("mine", b"a", b"b")]) == [(b"a", b"b")] * 2
    for late in ("a.mp4", ("a", "b")):
        assert files_of([MediaClip("late", lambda late=late: late)]) == [late]
    assert labels_of([as_clip(f"{SINGLE}.mp4")]) == [SINGLE_LABEL]
