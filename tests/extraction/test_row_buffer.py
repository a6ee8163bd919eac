import numpy as np
import pytest

from hf_blemo.extraction import row_buffer
from hf_blemo.extraction.row_buffer import RowBuffer


@pytest.mark.parametrize("sizes", [[1], [3, 1, 4, 1, 5, 9, 2, 6], [0, 7, 0], [50, 1, 1], [1] * 40])
@pytest.mark.parametrize("largest", [1, 100, 2**26])
def test_rows_come_out_as_they_went_in(sizes, largest, monkeypatch):
    monkeypatch.setattr(row_buffer, "_LARGEST_BLOCK", largest)
    parts = [np.random.default_rng(size).standard_normal((size, 5)).astype(np.float32) for size in sizes]
    buffer = RowBuffer()
    for number, part in enumerate(parts):
        buffer.append(part)
        assert len(buffer) == sum(sizes[: number + 1])
    found = buffer.take()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.concatenate(parts))
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="found no rows, expected some"):
        buffer.take()


def test_what_rows_are_a_view_of_is_not_kept():
    whole = np.zeros((100, 4), np.float32)
    buffer = RowBuffer()
    buffer.append(whole[10:20])
    whole[:] = 1
    assert (buffer.take() == 0).all()


def test_no_block_is_larger_than_the_largest_and_they_are_few():
    buffer = RowBuffer()
    for _ in range(2000):
        buffer.append(np.zeros((16, 1024), np.float32))
    sizes = [block.nbytes for block in buffer._blocks]
    assert max(sizes) == row_buffer._LARGEST_BLOCK and len(sizes) <= 13
