# SPDX-License-Identifier: Apache-2.0
"""Retrieval losses: losses of the similarities of queries and documents.

A loss is a function ``loss(similarities, positives=None, *, hyperparameters,
where=None)`` of similarities ``[..., Q, D]``, such as the cosines of Q queries
and D documents. It returns one number for each query, ``[..., Q]``. Leading
axes are separate batches. The result is float32 or wider.

``positives`` is boolean and has the similarities' shape. None means the
diagonal: document i is the positive of query i, and all other documents are its
negatives. For the loss in both directions, add the loss of the transposed
similarities.

``where`` is boolean and has the similarities' shape. A dropped pair has
gradient 0, even if its similarity is NaN. A query without a positive has loss
0. The mean over the other queries is
``loss.sum() / (positives & where).any(-1).sum()``. A negative with the
similarity ``-inf`` is dropped. Any other similarity that is infinite or NaN
makes the loss of its query infinite or NaN.

Numeric hyper-parameters are scalars or have one value for each query. They may
be traced and differentiated.

Functions of features, scores or logits, such as `triplet_margin` and `rerank`,
describe their own arguments.

For ranking metrics, such as the mean reciprocal rank, use
`rax <https://github.com/google/rax>`_. ``examples/contrastive.py`` trains two
encoders on text.
"""

from squentropy_jax.retrieval import mining as mining
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
