# SPDX-License-Identifier: Apache-2.0
"""Settings as a caller of the Python API writes them."""

import dataclasses
import json

import numpy as np
import pytest

from squentropy_study import Settings, StudyError


def test_one_value_is_a_tuple_of_one():
  settings = Settings("iris", losses="squentropy", epochs=40, drop="age")
  assert settings.losses == ("squentropy",)
  assert settings.epochs == (40,)
  assert settings.drop == ("age",)
  assert Settings("iris", epochs=[1, 2]).epochs == (1, 2)


def test_integers_of_numpy_are_those_of_python():
  settings = Settings("iris", seeds=np.int64(2), epochs=np.array([3, 5]))
  assert json.loads(json.dumps(dataclasses.asdict(settings)))["seeds"] == 2
  assert settings.epochs == (3, 5)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"seeds": "3"}, "seeds must be an integer, got '3'"),
    ({"rows": 1000.0}, "rows must be an integer, got 1000.0"),
    ({"epochs": 2.5}, "epochs must be an integer, got 2.5"),
  ],
)
def test_numbers_that_are_no_integers(options, message):
  with pytest.raises(StudyError, match=message):
    Settings("iris", **options)
