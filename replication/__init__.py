# SPDX-License-Identifier: Apache-2.0
"""Tests the claims of the squentropy paper on real data sets.

docs/replication/plan.md says what is tested, and docs/replication/README.md
what came out.
"""
