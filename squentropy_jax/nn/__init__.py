# SPDX-License-Identifier: Apache-2.0
"""Parts for Flax, a module for each of its interfaces."""
