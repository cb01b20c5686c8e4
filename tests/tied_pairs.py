"""Made-up pairs for tests of metrics."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def tied_pairs(draw):
  """Few distinct scores, so many ties, and at least one pair of each kind."""
  size = draw(st.integers(2, 40))
  top = draw(st.integers(0, 12))
  scores = draw(st.lists(st.integers(-top, top), min_size=size, max_size=size))
  same = draw(
    st.lists(st.booleans(), min_size=size, max_size=size).filter(
      lambda kinds: 0 < sum(kinds) < len(kinds)
    )
  )
  return np.array(scores) / 8, np.array(same)
