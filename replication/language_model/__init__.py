# SPDX-License-Identifier: Apache-2.0
"""What a square term on the logits does for a small language model.

docs/language_model/plan.md says what is trained, and
docs/language_model/README.md what came out.
"""
