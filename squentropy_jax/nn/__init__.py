# SPDX-License-Identifier: Apache-2.0
"""Wrappers for Flax, a module for each of its APIs."""

from squentropy_jax.nn import linen as linen
from squentropy_jax.nn import nnx as nnx
