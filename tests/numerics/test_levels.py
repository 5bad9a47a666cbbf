import math

import pytest

from bitsfusion.errors import InputError
from bitsfusion.numerics import check_bits, half_levels, level_bits, level_count

TRUTH = {1: (1, 3), 2: (2, 5), 3: (4, 9), 4: (8, 17), 5: (16, 33), 6: (32, 65), 7: (64, 129), 8: (128, 257)}


@pytest.mark.parametrize("bits", TRUTH)
def test_truth_table(bits):
    half, count = TRUTH[bits]
    assert (half_levels(bits), level_count(bits)) == (half, count)
    assert level_bits(bits) == math.log2(count)


@pytest.mark.parametrize("bits", [0, 9, -1, 1.5, True, "2", None])
def test_bits_out_of_range_name_the_place(bits):
    with pytest.raises(InputError, match=r"mid\.conv: got .* bits, wanted a whole number from 1 to 8"):
        check_bits(bits, "mid.conv")
