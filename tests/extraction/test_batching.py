import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hf_blemo.encoders import load_encoder
from hf_blemo.encoders.encoder import Piece
from hf_blemo.extraction.batching import THREAD_NAME, Batches


class Watched:
    """An encoder, and what it was doing when: `around` gets the pieces of each forward, in its thread."""

    def __init__(self, model_id, around=lambda pieces: None, **options):
        self.encoder = load_encoder(model_id, device="cpu", **options)
        self.sizes, self.threads, self.torch_threads, self.most = [], set(), set(), 0
        self.running, self.lock = 0, threading.Lock()
        forward = self.encoder.forward

        def watched(pieces):
            with self.lock:
                self.running += len(pieces)
                self.most = max(self.most, self.running)
            self.sizes.append(len(pieces))
            self.threads.add(threading.current_thread().name)
            self.torch_threads.add(torch.get_num_threads())
            around(pieces)
            try:
                return forward(pieces)
            finally:
                with self.lock:
                    self.running -= len(pieces)

        self.encoder.forward = watched


@pytest.fixture
def torch_threads():
    """Sets the threads of torch for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)] == []


SOUND = Piece(np.zeros(8000, np.float32), np.zeros(1))


def pieces(count):
    generator = np.random.default_rng(0)
    return [Piece(generator.integers(0, 256, (3, 32, 32), dtype=np.uint8), np.zeros(1)) for _ in range(count)]


def run(encoders, given, is_ahead=True):
    """Rows by the name of the encoder, in the order they were handed out; given are (name, piece)."""
    found = {name: [] for name in encoders}
    batches = Batches(encoders, num_decoding=1)
    try:
        for name, piece in given:
            if batches.add(name, piece, found[name].append):
                batches.run([name], is_ahead)
            batches.collect()
        batches.run(encoders)
        batches.collect(wait=True)
    finally:
        batches.stop()
    return found


def test_parts_give_what_the_whole_gives_in_its_order(checkpoint, torch_threads):
    torch_threads(4)
    watched = Watched(checkpoint("vit"), lambda part: time.sleep(0.02 * (len(watched.sizes) % 3)), batch_size=32)
    given = pieces(50)
    plain = load_encoder(checkpoint("vit"), device="cpu")
    expected = [plain.run([piece])[0] for piece in given]
    for count in (1, 8, 50):
        watched.sizes.clear()
        found = run({"vit": watched.encoder}, [("vit", piece) for piece in given[:count]])["vit"]
        assert [rows.shape for rows in found] == [(1, 16)] * count
        np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected[:count]), atol=1e-5)
        assert sorted(watched.sizes) == sorted([8] * (count // 8) + [count % 8] * (count % 8 > 0))


def test_parts_run_side_by_side_and_are_no_more_than_a_batch(checkpoint, torch_threads):
    torch_threads(4)
    # Passed only when both are there.
    meeting = threading.Barrier(2)
    watched = Watched(checkpoint("vit"), lambda part: meeting.wait(30), batch_size=16)
    run({"vit": watched.encoder}, [("vit", piece) for piece in pieces(64)])
    assert watched.most == 16 and len(watched.threads) == 2
    # Four threads of torch's are two for each of two parts.
    assert watched.torch_threads == {2} and all(name.startswith(THREAD_NAME) for name in watched.threads)


@pytest.mark.parametrize(("num_threads", "batch_size", "expected"), [(1, 32, 8), (4, 12, 8), (4, 5, 5)])
def test_one_thread_or_a_small_batch_is_not_shared(num_threads, batch_size, expected, checkpoint, torch_threads):
    torch_threads(num_threads)
    watched = Watched(checkpoint("vit"), batch_size=batch_size)
    run({"vit": watched.encoder}, [("vit", piece) for piece in pieces(40)])
    assert watched.sizes == [expected] * (40 // expected) and watched.threads == {threading.current_thread().name}


def test_an_encoder_of_large_pieces_is_alone(checkpoint, torch_threads):
    torch_threads(2)
    images = Watched(checkpoint("vit"), lambda part: time.sleep(0.02))
    beside = []
    sound = Watched(checkpoint("hubert"), lambda part: beside.append(images.running), batch_size=1)
    given = [("hubert", SOUND) if number % 20 == 19 else ("vit", piece) for number, piece in enumerate(pieces(80))]
    found = run({"vit": images.encoder, "hubert": sound.encoder}, given)
    assert len(found["vit"]) == 76 and len(found["hubert"]) == 4
    assert images.most > 8 and beside == [0] * 4
    assert sound.torch_threads == {2} and sound.threads == {threading.current_thread().name}


def test_what_is_alone_leaves_cores_to_decoding_that_is_behind(checkpoint, torch_threads, monkeypatch):
    monkeypatch.setattr("hf_blemo.extraction.batching.os.cpu_count", lambda: 6)
    torch_threads(8)
    for is_ahead, expected in ((True, 8), (False, 5)):
        sound = Watched(checkpoint("hubert"), batch_size=1)
        run({"hubert": sound.encoder}, [("hubert", SOUND)], is_ahead)
        assert sound.torch_threads == {expected} and torch.get_num_threads() == 8


def test_threads_that_begin_later_have_as_many_threads_of_torch_as_before(checkpoint, torch_threads):
    torch_threads(2)
    watched = Watched(checkpoint("vit"))
    run({"vit": watched.encoder}, [("vit", piece) for piece in pieces(32)])
    assert watched.torch_threads == {1} and torch.get_num_threads() == 2
    with ThreadPoolExecutor() as later:
        assert later.submit(torch.get_num_threads).result() == 2


def test_an_error_of_a_part_is_the_caller_s(checkpoint, torch_threads):
    torch_threads(2)

    def fail(part):
        if len(watched.sizes) == 3:
            raise RuntimeError("the model is broken")

    watched = Watched(checkpoint("vit"), fail)
    with pytest.raises(RuntimeError, match="the model is broken"):
        run({"vit": watched.encoder}, [("vit", piece) for piece in pieces(80)])


def test_code_from_the_hub_is_not_shared(checkpoint, monkeypatch):
    plain = load_encoder(checkpoint("vit"), device="cpu")
    monkeypatch.setattr(type(plain.model), "__module__", "transformers_modules.me.model")
    strange = type(plain)(plain.model, plain.processor, plain.source)
    assert plain.part_size == 8 and strange.part_size is None
