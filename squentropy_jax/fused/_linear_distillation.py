# SPDX-License-Identifier: Apache-2.0
"""The public divergence of a student's linear head from its teacher's."""

from collections.abc import Iterator
import contextlib
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
import numpy as np

from squentropy_jax._core import labels as prelude
from squentropy_jax.fused import _arguments, _pair_rules, _plan
from squentropy_jax.fused._arguments import Call
from squentropy_jax.fused._pair_passes import DIVERGENCES
from squentropy_jax.fused._plan import Plan

# A value in quotes, such as gather='kernel', is not the name of an argument.
_OF_ONE_HEAD = re.compile(
  r"(?<![\w'\"])(features|kernel|bias|class_axis|soft_cap|features_spec|kernel_spec)\b"
)


@contextlib.contextmanager
def _naming(prefix: str) -> Iterator[None]:
  """Errors about the arguments of one head name those of this function."""
  try:
    yield
  except (TypeError, ValueError) as error:
    if type(error) not in (TypeError, ValueError):
      raise  # An error of JAX takes other arguments than a message.
    message = _OF_ONE_HEAD.sub(rf"{prefix}\1", str(error))
    raise type(error)(message) from error


def _spec_of_teacher(
  spec: PartitionSpec | None, axes: tuple[int, int]
) -> PartitionSpec | None:
  """The student's ``kernel_spec`` for the teacher's class axis."""
  if spec is None or axes[0] == axes[1]:
    return spec
  full = (*spec, *(None,) * (2 - len(spec)))
  return PartitionSpec(*full[::-1])


def _check_pair(
  student: Call,
  teacher: Call,
  arrays: tuple[_arguments.HeadArguments, _arguments.HeadArguments],
) -> None:
  """Raises unless both heads have the same rows, classes and layout."""
  (features, kernel), (of_teacher, other) = (
    (a.features, a.kernel) for a in arrays
  )
  if of_teacher.shape[:-1] != features.shape[:-1]:
    raise ValueError(
      f"teacher_features must have the batch shape {features.shape[:-1]} of "
      f"student_features, got {of_teacher.shape[:-1]}. Pass features of the "
      "same examples."
    )
  classes = kernel.shape[student.head.class_axis]
  if not student.layout.classes:
    prelude.refuse_one_class(classes, "student_kernel")
  of_other = other.shape[teacher.head.class_axis]
  if of_other != classes:
    raise ValueError(
      f"teacher_kernel must have the {classes} classes of student_kernel, got "
      f"{of_other} in the shape {other.shape}. Pad the smaller kernel, and "
      "make the new classes impossible with a bias of -inf."
    )
  for name, what in (("rows", "rows"), ("classes", "classes")):
    ours, theirs = getattr(student.layout, name), getattr(teacher.layout, name)
    if ours != theirs:
      raise ValueError(
        f"teacher_features_spec and teacher_kernel_spec must shard the {what} "
        f"as the student's specs do, over {ours}, got {theirs}. Reshard the "
        "teacher's arrays, or leave its specs out."
      )


def linear_distillation(
  student_features: jax.typing.ArrayLike,
  student_kernel: jax.typing.ArrayLike,
  teacher_features: jax.typing.ArrayLike,
  teacher_kernel: jax.typing.ArrayLike,
  *,
  divergence: str = "forward_kl",
  temperature: jax.typing.ArrayLike = 1.0,
  student_bias: jax.typing.ArrayLike | None = None,
  teacher_bias: jax.typing.ArrayLike | None = None,
  student_class_axis: int = -1,
  teacher_class_axis: int | None = None,
  where: jax.typing.ArrayLike | None = None,
  student_soft_cap: float | None = None,
  teacher_soft_cap: float | None = None,
  mesh: Mesh | AbstractMesh | None = None,
  student_features_spec: PartitionSpec | None = None,
  student_kernel_spec: PartitionSpec | None = None,
  teacher_features_spec: PartitionSpec | None = None,
  teacher_kernel_spec: PartitionSpec | None = None,
  gather: str = "auto",
  compute_dtype: jax.typing.DTypeLike | None = None,
  reduce_dtype: jax.typing.DTypeLike | None = None,
  plan: Plan | None = None,
) -> jax.Array:
  r"""Computes the divergence of a student from its teacher, without logits.

  Use it to train a student with a linear head on all probabilities of a
  teacher with a linear head over the same classes. The logits of neither are
  stored: a tile of each is computed at a time. With the student's probabilities
  :math:`q` and the teacher's :math:`p`, each the softmax of logits divided by
  the temperature, the divergences are

  .. math::
    \mathrm{KL}(p \,\|\, q) = \sum_c p_c \log \frac{p_c}{q_c}, \quad
    \mathrm{KL}(q \,\|\, p), \quad
    \tfrac12 \mathrm{KL}(p \,\|\, m) + \tfrac12 \mathrm{KL}(q \,\|\, m)
    \text{ with } m = \tfrac12 (p + q) .

  They are sums of positive terms, so that nothing cancels if the student is
  close to its teacher. What remains is the rounding of the logits: with errors
  of size :math:`\varepsilon` in the logits, a divergence :math:`D` has an error
  of about :math:`\varepsilon \sqrt{2 D} + \varepsilon^2`.

  The teacher is a constant: its features, kernel and bias have no gradient. The
  value takes two matrix products of each head, and with all gradients five of
  the student and three of the teacher.

  Args:
    student_features: Shape ``[..., d]``, any floating dtype.
    student_kernel: Shape ``[d, V]``, or ``[V, d]`` with
      ``student_class_axis=0``.
    teacher_features: The teacher's features of the same examples, shape
      ``[..., e]``.
    teacher_kernel: The teacher's kernel for the same classes, shape ``[e, V]``
      or ``[V, e]``.
    divergence: ``"forward_kl"`` is :math:`\mathrm{KL}(p \,\|\, q)`,
      ``"reverse_kl"`` is :math:`\mathrm{KL}(q \,\|\, p)`, and
      ``"jensen_shannon"`` is half of both divergences to the mixture. Nothing
      is multiplied by the square of the temperature.
    temperature: Divides the logits of both, above 0, a scalar or one value for
      each example, shape ``[...]``. It is differentiated.
    student_bias: Shape ``[V]``. A bias of ``-inf`` makes a class impossible. If
      a class is impossible for the student only, the forward divergence is inf.
      If it is impossible for the teacher only, the reverse divergence is inf.
      The Jensen-Shannon divergence is finite.
    teacher_bias: Shape ``[V]``.
    student_class_axis: The class axis of ``student_kernel``.
    teacher_class_axis: The class axis of ``teacher_kernel``. The default is
      ``student_class_axis``.
    where: Which examples to keep, booleans of shape ``[...]``. The others have
      divergence and gradient 0, whatever they hold.
    student_soft_cap: A static number. The student's logits become
      ``student_soft_cap * tanh(logits / student_soft_cap)`` before they are
      divided by the temperature.
    teacher_soft_cap: The soft cap of the teacher's logits.
    mesh: See `linear_loss`.
    student_features_spec: See ``features_spec`` of `linear_loss`.
    student_kernel_spec: See ``kernel_spec`` of `linear_loss`.
    teacher_features_spec: The default is ``student_features_spec``. The rows
      must be sharded as those of the student.
    teacher_kernel_spec: The default is ``student_kernel_spec``. The classes
      must be sharded as those of the student.
    gather: See `linear_loss`. It is the same for both heads.
    compute_dtype: See `linear_loss`.
    reduce_dtype: See `linear_loss`.
    plan: See :class:`fused.Plan`, with mode ``"forward"``, ``"recompute"`` or
      None.

  Returns:
    The divergence of each example in nats, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If an argument has the wrong dtype.
    ValueError: If an argument has the wrong shape or value.

  Examples:
    >>> features = jnp.array([[1.0, 0.0], [0.5, 2.0]])
    >>> student = jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    >>> teacher = jnp.array([[2.0, 0.0, -2.0], [1.0, 1.0, 0.0]])
    >>> print(fused.linear_distillation(features, student, features, teacher))
    [0.1156 0.8261]

  References:
    Hinton, Vinyals and Dean, `Distilling the Knowledge in a Neural Network
    <https://arxiv.org/abs/1503.02531>`_, 2015; Agarwal et al., `On-Policy
    Distillation of Language Models <https://arxiv.org/abs/2306.13649>`_, ICLR
    2024.

  .. seealso:: :func:`squentropy_jax.losses.ensemble_distillation`
  """
  if divergence not in tuple(DIVERGENCES):
    raise ValueError(
      f"divergence must be one of {tuple(DIVERGENCES)}, got {divergence!r}. "
      "'forward_kl' is the usual one."
    )
  plan = _plan.checked_plan(plan)
  if plan.mode not in (None, "forward", "recompute"):
    raise ValueError(
      "mode of plan must be 'forward', 'recompute' or None for "
      f"linear_distillation, got {plan.mode!r}."
    )
  shared: dict[str, Any] = {
    "mesh": mesh,
    "gather": gather,
    "compute_dtype": compute_dtype,
    "reduce_dtype": reduce_dtype,
    "plan": plan,
  }
  with _naming("student_"):
    call, student, keep = _arguments.checked(
      student_features,
      student_kernel,
      np.zeros(np.shape(student_features)[:-1], np.int32),
      bias=student_bias,
      class_axis=student_class_axis,
      where=where,
      soft_cap=student_soft_cap,
      features_spec=student_features_spec,
      kernel_spec=student_kernel_spec,
      **shared,
    )
  if teacher_class_axis is None:
    teacher_class_axis = student_class_axis
  if not call.layout.is_explicit:
    # The types of explicit axes name the teacher's own.
    axes = (student_class_axis % 2, teacher_class_axis % 2)
    if teacher_features_spec is None:
      teacher_features_spec = student_features_spec
    if teacher_kernel_spec is None:
      teacher_kernel_spec = _spec_of_teacher(student_kernel_spec, axes)
  with _naming("teacher_"):
    other, teacher, _ = _arguments.checked(
      teacher_features,
      teacher_kernel,
      np.zeros(np.shape(teacher_features)[:-1], np.int32),
      bias=teacher_bias,
      class_axis=teacher_class_axis,
      where=None,
      soft_cap=teacher_soft_cap,
      features_spec=teacher_features_spec,
      kernel_spec=teacher_kernel_spec,
      **shared,
    )
  _check_pair(call, other, (student, teacher))
  other = other._replace(
    layout=other.layout._replace(gather=call.layout.gather)
  )
  student = _arguments.with_temperature(temperature, call, student, keep)
  teacher = _arguments.with_temperature(temperature, other, teacher, keep)
  # The teacher's rows are dropped with the student's.
  teacher = teacher._replace(where=student.where)
  return _pair_rules.divergences(
    _pair_rules.PairCall(call, other, divergence), student, teacher
  )
