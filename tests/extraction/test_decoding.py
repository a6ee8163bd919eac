import threading
import time

from hf_blemo.extraction.decoding import _Queue


def putting(queue, *items):
    """A thread that puts items, with what each put returned."""
    answers = []

    def work():
        for item, num_bytes in items:
            answers.append(queue.put(item, num_bytes))

    thread = threading.Thread(target=work)
    thread.start()
    return thread, answers


def settled(answers, count):
    """Waits until so many puts are over, and makes sure that there come no more."""
    end = time.monotonic() + 5
    while len(answers) < count and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(0.05)
    return len(answers) == count


def test_items_come_in_their_order_and_no_more_than_there_is_room_for():
    queue = _Queue(2, 1000)
    thread, answers = putting(queue, *((number, 1) for number in range(5)))
    assert settled(answers, 2)
    assert [queue.get(), queue.get()] == [0, 1]
    assert settled(answers, 4)
    assert [queue.get() for _ in range(3)] == [2, 3, 4]
    thread.join(5)
    assert answers == [True] * 5 and len(queue) == 0


def test_memory_is_bounded_and_one_large_item_finds_room():
    queue = _Queue(100, 10)
    thread, answers = putting(queue, ("a", 6), ("b", 4), ("c", 1), ("large", 50), ("d", 1))
    assert settled(answers, 2)
    assert queue.get() == "a" and settled(answers, 3)
    assert [queue.get(), queue.get()] == ["b", "c"] and settled(answers, 4)
    assert [queue.get(), queue.get()] == ["large", "d"]
    thread.join(5)


def test_closing_lets_everybody_go():
    queue = _Queue(1, 10)
    waiting = [putting(queue, ("a", 1), ("b", 1)) for _ in range(3)]
    assert settled([answer for _, answers in waiting for answer in answers], 1) or len(queue) == 1
    queue.close()
    for thread, _ in waiting:
        thread.join(5)
        assert not thread.is_alive()
    assert sum(answers.count(True) for _, answers in waiting) == 1
    assert queue.put("c") is False and len(queue) == 0
