# SPDX-License-Identifier: Apache-2.0
"""Retrieval losses of similarities ``[..., Q, D]`` and positives."""

from squentropy_jax.retrieval._batch_negatives import (
  batch_negatives as batch_negatives,
)
from squentropy_jax.retrieval._contrastive import (
  decoupled_softmax as decoupled_softmax,
)
from squentropy_jax.retrieval._contrastive import info_nce as info_nce
from squentropy_jax.retrieval._contrastive import (
  positive_aware_negatives as positive_aware_negatives,
)
from squentropy_jax.retrieval._listwise import rerank as rerank
from squentropy_jax.retrieval._listwise import (
  soft_contrastive as soft_contrastive,
)
from squentropy_jax.retrieval._listwise import symmetric_kl as symmetric_kl
from squentropy_jax.retrieval._mann_whitney import mann_whitney as mann_whitney
from squentropy_jax.retrieval._pairwise import (
  pairwise_ranking as pairwise_ranking,
)
from squentropy_jax.retrieval._similarity_margin import (
  multi_positive_margin as multi_positive_margin,
)
from squentropy_jax.retrieval._similarity_margin import (
  top_k_margin as top_k_margin,
)
from squentropy_jax.retrieval._soft_top_k import soft_top_k as soft_top_k
from squentropy_jax.retrieval._soft_top_k import (
  soft_top_k_loss as soft_top_k_loss,
)
from squentropy_jax.retrieval._triplet import (
  local_descriptor_triplet as local_descriptor_triplet,
)
from squentropy_jax.retrieval._triplet import triplet_margin as triplet_margin
