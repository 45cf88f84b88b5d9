# SPDX-License-Identifier: Apache-2.0
"""Parts for Flax, a module for each of its interfaces."""

from squentropy_jax.nn import nnx as nnx
