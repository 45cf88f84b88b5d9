# SPDX-License-Identifier: Apache-2.0
"""What is needed to declare a row loss of your own, see `row_loss`."""

from squentropy_jax._core.rows import Transform as Transform
