"""The queue between decoding and encoding: in order, bounded in items and bytes, and never a trap."""

import threading
import time

from hf_blemo.extraction.decoding import _Queue


def putting(queue, *items):
    """A thread that puts items, and the answers of the puts."""
    answers = []
    thread = threading.Thread(target=lambda: [answers.append(queue.put(*item)) for item in items])
    thread.start()
    return thread, answers


def settled(answers, count):
    """Waits until so many puts are over, and makes sure that no more follow."""
    end = time.monotonic() + 5
    while len(answers) < count and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(0.05)
    return len(answers) == count


def test_items_come_in_their_order_as_far_as_there_is_room():
    queue = _Queue(2, 10)
    thread, answers = putting(queue, ("a", 6), ("b", 4), ("c", 1), ("large", 50), ("d", 1), ("e", 6), ("f", 5))
    # Two by number, then one that fits beside the other, then the large one alone; bytes alone stop the last.
    for count, taken in ((2, "a"), (3, "b"), (3, "c"), (4, "large"), (6, "d"), (6, "e")):
        assert settled(answers, count) and queue.get() == taken
    assert queue.get() == "f"
    thread.join(5)
    assert answers == [True] * 7 and len(queue) == 0


def test_closing_frees_every_thread_that_waits():
    queue = _Queue(1, 10)
    waiting = [putting(queue, ("a", 1), ("b", 1)) for _ in range(3)]
    assert settled([answer for _, answers in waiting for answer in answers], 1) or len(queue) == 1
    queue.close()
    for thread, _ in waiting:
        thread.join(5)
        assert not thread.is_alive()
    assert sum(answers.count(True) for _, answers in waiting) == 1
    assert queue.put("c") is False and len(queue) == 0
