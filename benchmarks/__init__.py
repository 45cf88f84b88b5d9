# SPDX-License-Identifier: Apache-2.0
"""Speed and memory, each as a ratio to a peer measured in the same run."""
