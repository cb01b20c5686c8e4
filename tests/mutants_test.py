"""The list of one-line changes is one of the code as it stands."""

import mutate
import pytest


@pytest.mark.parametrize(
  "mutant",
  mutate.read_mutants(),
  ids=lambda one: f"{one['file']}: {one['new']}",
)
def test_each_can_be_made(mutant):
  text = (mutate.ROOT / mutant["file"]).read_text(encoding="utf-8")
  assert text.count(mutant["old"]) == 1
  assert mutant["new"] != mutant["old"]
  for test in mutant["tests"].split():
    assert (mutate.ROOT / test.split("::")[0]).exists(), test
