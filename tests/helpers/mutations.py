"""Draws damaged and odd variants of good inputs, each by its number alone."""

import copy
import faulthandler
import json
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

# What people and programs leave in the places of names and numbers.
TOKENS = (
    *("", "null", "NaN", "nan", "inf", "-Infinity", "1e999", "-1", "0", "1.5", "010", "1:30", "true", "~", "NA"),
    *("[]", "{}", '""', "'", '"', ",", ":", "- ", "\n", "\t", "\x00", "\x1b[2J", "é", "\udcff", "😀", "9" * 400),
    *("x" * 5000, "../../x", "/dev/zero", "<<: *a", "&a [*a]", "!!python/object:os.system", "[" * 300, "{" * 3000),
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf"), -0.0),
    *("", "x", "voice", "x" * 5000, "\ud800", "../x", [], {}, [[]], [None], [1, 2], ["a"], [{}], {"a": 1}),
    *({"emotion": "hap", "salience": 1}, [{"emotion": ["hap"], "salience": None}], {"0": "x"}, {"": {"": {}}}),
)  # fmt: skip


def torn(content: bytes, draw: random.Random) -> bytes:
    """Bytes of which some are changed, lost, repeated or added."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        place = draw.randrange(len(data) + 1)
        end = min(len(data), place + draw.choice((1, 2, 8, 64, 512)))
        kind = draw.randrange(7)
        if kind == 0:
            data[place:end] = draw.randbytes(end - place)
        elif kind == 1:
            del data[place:end]
        elif kind == 2:
            data[place:place] = data[place:end]
        elif kind == 3:
            del data[place:]
        elif kind == 4:
            data[place:end] = bytes([draw.choice((0, 255, 127, 128))]) * (end - place)
        elif kind == 5:
            data[place:place] = draw.choice(TOKENS).encode(errors="surrogateescape")
        elif data:
            data[min(place, len(data) - 1)] ^= 1 << draw.randrange(8)
    return bytes(data)


def reworded(content: str, draw: random.Random, separators: str = ",\n") -> bytes:
    """Text of which some cells hold something else, come twice or are missing."""
    for _ in range(draw.choice((1, 1, 2, 5))):
        separator = draw.choice(separators)
        cells = content.split(separator)
        place = draw.randrange(len(cells))
        kind = draw.randrange(5)
        if kind < 2:
            cells[place] = draw.choice(TOKENS)
        elif kind == 2:
            cells[place] = draw.choice(cells)
        elif kind == 3:
            cells.insert(place, draw.choice(cells))
        else:
            del cells[place]
        content = separator.join(cells)
    return content.encode(errors="surrogateescape" if "\udcff" in content else "strict")


def altered(content: Any, draw: random.Random) -> Any:
    """A JSON value of which some parts are others."""
    content = json.loads(json.dumps(content))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        _places(content, places)
        if not places:
            return copy.deepcopy(draw.choice(VALUES))
        holder, key = draw.choice(places)
        kind = draw.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(("x", "", "labels", "7", "../x", "_name_or_path", "dtype"))] = copy.deepcopy(
                draw.choice(VALUES)
            )
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(draw.choice(VALUES)))
        elif kind == 3:
            other, name = draw.choice(places)
            holder[key] = json.loads(json.dumps(other[name])) if _has(other, name) else None
        else:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
    return content if draw.randrange(20) else copy.deepcopy(draw.choice(VALUES))


def altered_json(content: Any, draw: random.Random) -> bytes:
    """The text of a JSON value that is torn, reworded or altered."""
    kind = draw.randrange(4)
    text = json.dumps(content, indent=1)
    if kind == 0:
        return torn(text.encode(), draw)
    if kind == 1:
        return reworded(text, draw, ",:\n")
    return json.dumps(altered(content, draw)).encode()


def odd_array(draw: random.Random, rows: int) -> np.ndarray:
    """An array of any type and shape, often with a row for each clip."""
    random_state = np.random.default_rng(draw.randrange(2**32))
    shape = draw.choice(
        [(rows,), (rows, 3), (rows, 2, 3), (rows, 0), (rows, 0, 3), (rows, 2, 2, 2), (0,), (0, 3), (), (rows + 1, 3)]
    )
    values = random_state.normal(size=shape) * draw.choice((1, 1e5, 1e300))
    dtype = draw.choice(
        ("f2", "f4", "f8", "longdouble", "i1", "u8", "i8", "?", "c8", "U5", "S5", "O", "M8[s]", "m8[s]", ">f4", "V4")
    )
    with np.errstate(all="ignore"):
        if dtype == "M8[s]" or dtype == "m8[s]":
            return np.zeros(shape, "i8").astype(dtype)
        if dtype == "V4":
            return np.zeros(shape, [("a", "f4"), ("b", "U2")])
        array = np.asarray(values).astype(dtype)
    if array.size and array.dtype.kind == "f" and draw.randrange(2):
        array.flat[draw.randrange(array.size)] = draw.choice((np.nan, np.inf, 0))
    return array


def odd_column(draw: random.Random, rows: int) -> pa.Array:
    """A column of Arrow of any type, with or without empty cells."""
    number = draw.choice(
        (pa.float32(), pa.float16(), pa.int8(), pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.string())
    )
    kinds: list[tuple[pa.DataType, Any]] = [
        (number, 1),
        (pa.list_(number), [1, 2]),
        (pa.list_(number, 2), [1, 2]),
        (pa.large_list(number), [1, 2]),
        (pa.list_(pa.list_(number)), [[1, 2], [1, 2]]),
        (pa.list_(pa.list_(number, 2)), [[1, 2]]),
        (pa.list_(pa.list_(pa.list_(number))), [[[1]]]),
        (pa.struct({"a": pa.list_(pa.float32()), "clip": pa.string()}), {"a": [1.0, 2.0], "clip": "x"}),
        (pa.map_(pa.string(), pa.float32()), [("a", 1.0)]),
        (pa.binary(), b"\xff\x00"),
        (pa.timestamp("s"), 0),
        (pa.duration("s"), 0),
        (pa.date32(), 0),
        (pa.decimal128(5, 2), 1),
        (pa.null(), None),
        (pa.list_(pa.null()), []),
        (pa.dictionary(pa.int8(), pa.string()), "x"),
    ]
    kind, value = draw.choice(kinds)
    if isinstance(value, list) and number in (pa.string(), pa.bool_()):
        text = json.dumps(value)
        value = json.loads(text, parse_int=str) if number == pa.string() else json.loads(text, parse_int=bool)
    cells = [draw.choice((value, value, value, None)) if draw.randrange(2) else value for _ in range(rows)]
    if isinstance(value, list) and draw.randrange(4) == 0:
        cells[draw.randrange(rows)] = []
    try:
        return pa.array(cells, kind)
    except pa.ArrowException:
        return pa.nulls(rows, kind)


def _places(content: Any, places: list[tuple[Any, Any]]) -> None:
    keys: Any = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys):
        places.append((content, key))
        _places(content[key], places)


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


class Hang(BaseException):
    """Something took longer than it may; nothing but the drawing of inputs catches it."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Ends what takes too long, in the main thread; what does not return to Python ends the process."""

    def end(*_: Any) -> None:
        raise Hang(f"over {seconds} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
