# SPDX-License-Identifier: Apache-2.0
"""Retrieval losses of similarities ``[..., Q, D]`` and positives."""

from squentropy_jax.retrieval import mining as mining
from squentropy_jax.retrieval._contrastive import info_nce as info_nce
