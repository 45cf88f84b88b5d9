# SPDX-License-Identifier: Apache-2.0
"""What every family of losses is built from."""
