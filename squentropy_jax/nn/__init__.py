# SPDX-License-Identifier: Apache-2.0
"""Wrappers for Flax, a module for each of its APIs."""
