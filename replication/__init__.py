# SPDX-License-Identifier: Apache-2.0
"""Does squentropy's claim hold up? See docs/replication/plan.md."""
