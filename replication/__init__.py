# SPDX-License-Identifier: Apache-2.0
"""Tests the claims of the squentropy paper on real data sets.

docs/replication/plan.md says what is tested, and docs/replication/README.md
what came out.
"""

# Of XLA_FLAGS: two processes with one thread each are faster than two with two.
ONE_THREAD = (
  " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
