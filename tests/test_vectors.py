"""Checks of vectors: numbers that compare, as many as the others have."""

import numpy as np
import pandas as pd
import pytest

from pyterrier_selfdistill.utils.checks import require_vector, require_vectors

VECTOR = np.array([0.6, 0.8], dtype=np.float32)


@pytest.mark.parametrize("vector", [None, [0.6, 0.8], np.array([1, 0]), np.ones((1, 2)), np.array([0.6, np.nan])])
def test_require_vector_rejects_what_does_not_compare(vector):
    with pytest.raises(ValueError, match="query_vec must (be an array of floats|hold finite numbers)"):
        require_vector("query_vec", vector)
    require_vector("query_vec", VECTOR)


@pytest.mark.parametrize("others", [2, 1])
def test_require_vectors_rejects_another_length(others):
    vectors = [np.ones(2, dtype=np.float32)] * others + [np.ones(3, dtype=np.float32)]
    with pytest.raises(ValueError, match="query_vec has 3 dimensions, and the vectors of the index have 2; encode"):
        require_vectors(pd.DataFrame({"query_vec": vectors}), "query_vec", 2, "the vectors of the index")
