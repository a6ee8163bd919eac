"""What waits between the threads that decode and the one that encodes, bounded in number and in memory."""

import threading
from collections import deque
from typing import Any


class BoundedQueue:
    """Items in their order; whoever puts waits for room.

    Args:
        length: items at most.
        num_bytes: of all items at most; one item finds room however large it is.

    Source: this project's choice.
    """

    def __init__(self, length: int, num_bytes: int):
        self.length, self.num_bytes = length, num_bytes
        self._items: deque[tuple[Any, int]] = deque()
        self._size = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Any, num_bytes: int = 0) -> bool:
        """Adds an item, once there is room.

        Args:
            item: anything.
            num_bytes: of memory that it holds.

        Returns:
            False where the queue is closed and the item not wanted any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(num_bytes))
            if self._closed:
                return False
            self._items.append((item, num_bytes))
            self._size += num_bytes
            self._changed.notify_all()
            return True

    def get(self) -> Any:
        """Takes the first item, once there is one."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items))
            item, num_bytes = self._items.popleft()
            self._size -= num_bytes
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Drops all items, and lets those go who wait for room."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def _has_room(self, num_bytes: int) -> bool:
        return len(self._items) < self.length and (not self._items or self._size + num_bytes <= self.num_bytes)
