"""Pairs are read from wherever they lie, and every pair of a pass is read once, whoever reads."""

import io
import itertools
import json

import datasets
import pytest
from huggingface_hub import HfApi
from pair_files import encoded, pairs_of, write_tar
from PIL import Image

from hf_blemo.built_in import make_synthetic_pairs
from hf_blemo.pairs.pair_sources import PairSourceSettings, PairStream, PairTable, open_source
from hf_blemo.programs.settings import settings_of

COUNT = 12


def red(value: int, form: str = "PNG") -> bytes:
    return encoded(Image.new("RGB", (8, 8), (value, 0, 0)), form)


def caption(number: int) -> str:
    return f"picture {number}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same pairs in every form."""
    root = tmp_path_factory.mktemp("pairs")
    data = pairs_of([caption(number) for number in range(COUNT)], [red(number) for number in range(COUNT)])
    data = data.cast_column("image", datasets.Image())
    data.save_to_disk(str(root / "saved"))
    datasets.DatasetDict({"train": data, "held": data.select([0])}).save_to_disk(str(root / "splits"))
    (root / "parquet").mkdir()
    for part in range(3):
        data.shard(3, part, contiguous=True).to_parquet(str(root / "parquet" / f"train-{part}.parquet"))
    data.to_parquet(str(root / "one.parquet"))
    for name in ("table", "images"):
        (root / name).mkdir()
        for number in range(COUNT):
            (root / name / f"{number}.png").write_bytes(red(number))
    rows = "".join(f"{number}.png,{caption(number)}\n" for number in range(COUNT))
    (root / "table" / "pairs.csv").write_text(f"image,caption\n{rows}")
    (root / "table" / "pairs.tsv").write_text(f"image,caption\n{rows}".replace(",", "\t"))
    (root / "images" / "metadata.csv").write_text(f"file_name,caption\n{rows}")
    (root / "shards").mkdir()
    for part in range(3):
        files = {}
        for number in range(4 * part, 4 * part + 4):
            content = {"jpg": red(number, "JPEG"), "txt": caption(number).encode(), "json": b'{"n": 1}'}
            files |= {f"{number:04d}.{suffix}": value for suffix, value in content.items()}
        write_tar(root / "shards" / f"part-{part}.tar", files)
    return root


PLACES = ("saved", "splits", "parquet", "one.parquet", "table/pairs.csv", "table/pairs.tsv", "images", "shards")


# `datasets` leaves the file of metadata beside images open.
LEFT_OPEN = pytest.mark.filterwarnings("ignore:.*metadata.csv:pytest.PytestUnraisableExceptionWarning")


@LEFT_OPEN
@pytest.mark.parametrize("place", PLACES)
def test_pairs_are_found_in_every_form(folders, place):
    table = open_source(PairSourceSettings(data=str(folders / place)))
    assert isinstance(table, PairTable) and len(table) == COUNT
    pairs = table.pairs([7, 2])
    assert [pair["caption"] for pair in pairs] == [caption(7), caption(2)]
    assert [pair["key"] for pair in pairs] == [(0, 7), (0, 2)]
    assert pairs[0]["where"] == f"{folders / place}, row 7"
    image = pairs[0]["image"]
    opened = Image.open(
        image if isinstance(image, str) else io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]
    )
    assert abs(opened.convert("RGB").getpixel((3, 3))[0] - 7) <= 2


@LEFT_OPEN
@pytest.mark.parametrize("place", PLACES)
def test_the_same_pairs_come_in_a_stream(folders, place):
    stream = open_source(PairSourceSettings(data=str(folders / place), streaming=True), block_size=5, seed=3)
    assert isinstance(stream, PairStream)
    read = stream.read(0, 1, {})
    passes = [[next(read)[0]["caption"] for _ in range(COUNT)] for _ in range(2)]
    every = sorted(caption(number) for number in range(COUNT))
    assert [sorted(found) for found in passes] == [every, every]
    assert passes[0] != passes[1]


@pytest.mark.parametrize("consumers", [1, 2, 3, 5])
def test_consumers_share_a_pass_without_overlap(folders, consumers):
    stream = open_source(PairSourceSettings(data=str(folders / "shards"), streaming=True), block_size=1, seed=0)
    found = []
    for consumer in range(consumers):
        for pair, _ in stream.read(consumer, consumers, {}):
            if pair["visit"] > 0:
                break
            found.append(pair["caption"])
    assert sorted(found) == sorted(caption(number) for number in range(COUNT))


@pytest.mark.parametrize(("consumer", "consumers"), [(0, 1), (1, 2), (3, 4)])
def test_reading_goes_on_from_any_state(folders, consumer, consumers):
    stream = open_source(PairSourceSettings(data=str(folders / "shards"), streaming=True), block_size=5, seed=1)
    whole = list(itertools.islice(stream.read(consumer, consumers, {}), 20))
    for stop in range(20):
        state = json.loads(json.dumps(whole[stop][1]))
        rest = itertools.islice(stream.read(consumer, consumers, state), 19 - stop)
        assert [pair for pair, _ in rest] == [pair for pair, _ in whole[stop + 1 :]], stop


def test_the_order_depends_on_the_seed_and_changes_from_pass_to_pass(folders):
    def order(seed):
        stream = open_source(PairSourceSettings(data=str(folders / "shards"), streaming=True), block_size=4, seed=seed)
        return [pair["caption"] for pair, _ in itertools.islice(stream.read(0, 1, {}), 3 * COUNT)]

    assert order(1) == order(1) != order(2)
    first = order(1)
    assert first[:COUNT] != first[COUNT : 2 * COUNT]


def test_nothing_is_decoded_on_opening(tmp_path):
    """A broken image is the reader's to find, with its place."""
    pairs_of(["x"], [b"no image"]).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "x"))
    pair = open_source(PairSourceSettings(data=str(tmp_path / "x"))).pairs([0])[0]
    assert pair["image"]["bytes"] == b"no image"


def test_built_in_pairs_take_their_options():
    table = open_source(PairSourceSettings("synthetic", options={"num_pairs": 3, "seed": 5}))
    assert [pair["caption"] for pair in table.pairs(range(3))] == list(make_synthetic_pairs(3, 5)["caption"])


# --- Bad input ---


def written(folder, **columns):
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder))
    return str(folder)


def test_a_missing_column_is_named(tmp_path):
    data = written(tmp_path / "x", picture=["a.png"], caption=["b"])
    with pytest.raises(ValueError, match=r"no column 'image' \(image_column\), found picture, caption"):
        open_source(PairSourceSettings(data=data))
    with pytest.raises(ValueError, match=r"no column 'text' \(caption_column\)"):
        open_source(PairSourceSettings(data=data, image_column="picture", caption_column="text"))


def test_a_missing_split_is_named(folders):
    with pytest.raises(ValueError, match="expected a split 'test', found train, held"):
        open_source(PairSourceSettings(data=str(folders / "splits"), split="test"))
    assert len(open_source(PairSourceSettings(data=str(folders / "splits"), split="held"))) == 1


def test_no_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="found no pairs"):
        open_source(PairSourceSettings(data=written(tmp_path / "none", image=[], caption=[])))
    with pytest.raises(FileNotFoundError, match="not a file, folder or Hub id"):
        open_source(PairSourceSettings(data="gone"))
    with pytest.raises(FileNotFoundError, match="data 'owner/gone': no such folder, and from the Hub"):
        open_source(PairSourceSettings(data="owner/gone"))
    (tmp_path / "pairs.json").write_text("[]")
    with pytest.raises(ValueError, match=r"found a file '.json', expected one of .parquet, .csv"):
        open_source(PairSourceSettings(data=str(tmp_path / "pairs.json")))
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="cannot be read: "):
        open_source(PairSourceSettings(data=str(tmp_path / "bare")))


@pytest.mark.parametrize("consumers", [1, 3])
def test_a_stream_without_pairs_ends_with_an_error(consumers):
    data = datasets.IterableDataset.from_generator(lambda: iter(()))
    stream = PairStream(PairSourceSettings(data="here"), data, 10, 0)
    with pytest.raises(ValueError, match=f"data 'here': found no pairs for consumer 0 of {consumers}"):
        next(stream.read(0, consumers, {}))


def test_an_empty_shard_is_named_on_opening(tmp_path):
    (tmp_path / "empty.csv").write_text("image,caption\n")
    with pytest.raises(ValueError, match="empty.csv.*corresponds to no data"):
        open_source(PairSourceSettings(data=str(tmp_path / "empty.csv")))
    stream = PairSourceSettings(data=str(tmp_path / "empty.csv"), streaming=True)
    with pytest.raises(ValueError, match="empty.csv"):
        next(open_source(stream).read(0, 1, {}))


def test_bad_settings_are_named():
    for values, message in (
        ({"data": "x", "wieght": 2}, "unknown setting 'wieght'; the nearest known one is 'weight'"),
        ({"data": "x", "weight": 0.0}, "source 'x': weight must be above 0, found 0.0"),
        ({"data": "synthetic", "streaming": True}, "the built-in data is a table, found streaming"),
    ):
        with pytest.raises(ValueError, match=message):
            settings_of(PairSourceSettings, values, "sources")


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_shard_may_have_images_of_any_kind(tmp_path, hub, streaming):
    kinds = [("jpg", "JPEG")] * 8 + [("png", "PNG"), ("webp", "WEBP"), ("JPEG", "JPEG"), ("jpg", "JPEG")] * 4
    files = {}
    for number, (suffix, form) in enumerate(kinds):
        files |= {f"{number:04d}.{suffix}": red(number, form), f"{number:04d}.txt": caption(number).encode()}
    del files["0010.txt"]
    write_tar(tmp_path / "shard.tar", files)
    HfApi().create_repo("you/shards", repo_type="dataset", exist_ok=True)
    hub.repositories["dataset", "you/shards"].edit("train.tar", (tmp_path / "shard.tar").read_bytes())
    for data in (tmp_path / "shard.tar", tmp_path, "you/shards"):
        source = open_source(PairSourceSettings(data=str(data), streaming=streaming))
        pairs = source.first(len(kinds))
        expected = [None if number == 10 else caption(number) for number in range(len(kinds))]
        assert [pair["caption"] for pair in pairs] == expected
        forms = [Image.open(io.BytesIO(pair["image"]["bytes"])).format for pair in pairs]
        assert forms == [form for _, form in kinds]
