# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501
"""What tests, benchmarks and docs need to know of each loss, stated once.

What follows from the function is not stated here: ``hasattr(loss, "row")`` is a
row loss, ``hasattr(loss, "log_probs")`` takes class ids and soft labels.
"""

from typing import NamedTuple


class Entry(NamedTuple):
  """One loss.

  Attributes:
    name: Its name in ``squentropy_jax.losses``.
    purpose: What it is for.
    bounded: Whether its values have an upper bound over all logits, at the
      defaults; a text says when.
    proper: Whether the expected loss, at the defaults, is least where the
      predicted probabilities are those of the labels.
    cost: Passes over the logits, or what else it costs.
    paper: Authors, year and address of the paper.
    of_batch: Whether the loss of an example depends on the other examples.
  """

  name: str
  purpose: str
  bounded: bool | str
  proper: bool
  cost: str
  paper: tuple[str, int, str]
  of_batch: bool = False


GENERAL, CONFIDENT, NOISY = "probabilities", "over-confidence", "noisy labels"
MARGIN, HARD, SHARES = "margins", "hard examples", "proportions"
TEACHER, ATTACK, OVERFIT = "distillation", "adversarial inputs", "overfitting"
METRIC, ANGLE = "overlap and F scores", "angular margins"

# fmt: off
CATALOGUE = (
  Entry("cross_entropy", GENERAL, False, True, "one softmax", ("Good", 1952, "https://www.jstor.org/stable/2984087")),
  Entry("comp_sum", GENERAL, False, True, "one softmax", ("Mao, Mohri and Zhong", 2023, "https://arxiv.org/abs/2304.07288")),
  Entry("generalized_cross_entropy", NOISY, True, False, "one softmax", ("Zhang and Sabuncu", 2018, "https://arxiv.org/abs/1805.07836")),
  Entry("mean_absolute_error", NOISY, True, False, "one softmax", ("Ghosh, Kumar and Sastry", 2017, "https://arxiv.org/abs/1712.09482")),
  Entry("smooth_adversarial_comp_sum", ATTACK, False, False, "one softmax, and the logits of an attack", ("Mao, Mohri and Zhong", 2023, "https://arxiv.org/abs/2304.07288")),
  Entry("focal", HARD, False, False, "one softmax", ("Lin et al.", 2017, "https://arxiv.org/abs/1708.02002")),
  Entry("dual_focal", CONFIDENT, False, False, "one softmax", ("Tao, Dong and Xu", 2023, "https://arxiv.org/abs/2305.13665")),
  Entry("poly1", HARD, False, False, "one softmax", ("Leng et al.", 2022, "https://arxiv.org/abs/2204.12511")),
  Entry("symmetric_cross_entropy", NOISY, False, False, "one softmax", ("Wang et al.", 2019, "https://arxiv.org/abs/1908.06112")),
  Entry("normalized_cross_entropy", NOISY, True, False, "one softmax", ("Ma et al.", 2020, "https://arxiv.org/abs/2006.13554")),
  Entry("unhinged", NOISY, False, False, "one sum", ("van Rooyen, Menon and Williamson", 2015, "https://arxiv.org/abs/1505.07634")),
  Entry("asymmetric_generalized_cross_entropy", NOISY, True, False, "one softmax", ("Zhou et al.", 2021, "https://arxiv.org/abs/2106.03110")),
  Entry("asymmetric_unhinged", NOISY, True, False, "one softmax", ("Zhou et al.", 2021, "https://arxiv.org/abs/2106.03110")),
  Entry("jensen_shannon", NOISY, True, False, "one softmax", ("Englesson and Azizpour", 2021, "https://arxiv.org/abs/2105.04522")),
  Entry("bi_tempered_logistic", NOISY, "for t1 < 1", True, "one softmax and two powers per step of Newton", ("Amid et al.", 2019, "https://arxiv.org/abs/1906.03361")),
  Entry("logit_norm_cross_entropy", CONFIDENT, True, False, "one sum of squares and one softmax", ("Wei et al.", 2022, "https://arxiv.org/abs/2205.09310")),
  Entry("confidence_penalty", CONFIDENT, False, False, "two passes of a softmax", ("Pereyra et al.", 2017, "https://arxiv.org/abs/1701.06548")),
  Entry("rescaled_square", GENERAL, False, True, "one sum of squares", ("Hui and Belkin", 2021, "https://arxiv.org/abs/2006.07322")),
  Entry("squentropy", CONFIDENT, False, False, "one softmax", ("Hui, Belkin and Wright", 2023, "https://arxiv.org/abs/2302.03952")),
  Entry("one_vs_rest_hinge", MARGIN, False, True, "one sum", ("Tang", 2013, "https://arxiv.org/abs/1306.0239")),
  Entry("crammer_singer", MARGIN, False, False, "one maximum", ("Crammer and Singer", 2001, "https://jmlr.org/papers/v2/crammer01a.html")),
  Entry("weston_watkins", MARGIN, False, False, "one sum", ("Weston and Watkins", 1999, "https://www.esann.org/proceedings/1999")),
  Entry("ldr_kl", MARGIN, False, True, "one softmax", ("Zhu, Ying and Yang", 2023, "https://arxiv.org/abs/2112.14869")),
  Entry("aldr_kl", MARGIN, False, True, "32 softmaxes", ("Zhu, Ying and Yang", 2023, "https://arxiv.org/abs/2112.14869")),
  Entry("normalized_softmax", ANGLE, True, True, "one softmax", ("Pereira et al.", 2021, "https://arxiv.org/abs/2102.03243")),
  Entry("cosface", ANGLE, True, False, "one softmax", ("Wang et al.", 2018, "https://arxiv.org/abs/1801.09414")),
  Entry("arcface", ANGLE, True, False, "one softmax", ("Deng et al.", 2019, "https://arxiv.org/abs/1801.07698")),
  Entry("sphereface", ANGLE, True, False, "one softmax", ("Liu et al.", 2017, "https://arxiv.org/abs/1704.08063")),
  Entry("combined_margin", ANGLE, True, True, "one softmax", ("Deng et al.", 2019, "https://arxiv.org/abs/1801.07698")),
  Entry("unpg", ANGLE, True, False, "one softmax, and one of the pairs", ("Jung et al.", 2022, "https://arxiv.org/abs/2203.11593")),
  Entry("zscore", CONFIDENT, True, False, "two sums", ("de Brebisson and Vincent", 2016, "https://arxiv.org/abs/1604.08859")),
  Entry("taylor_softmax", GENERAL, False, True, "two sums", ("de Brebisson and Vincent", 2016, "https://arxiv.org/abs/1511.05042")),
  Entry("spherical_softmax", GENERAL, False, True, "one sum of squares", ("de Brebisson and Vincent", 2016, "https://arxiv.org/abs/1511.05042")),
  Entry("brier", GENERAL, True, True, "one softmax", ("Brier", 1950, "https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2")),
  Entry("softmax_regression", GENERAL, True, True, "one softmax", ("Li et al.", 2023, "https://arxiv.org/abs/2304.13276")),
  Entry("continuous_categorical", SHARES, False, True, "16 points of a contour integral", ("Gordon-Rodriguez et al.", 2020, "https://arxiv.org/abs/2002.08563")),
  Entry("continuous_bernoulli", SHARES, False, True, "binary, one exponential", ("Loaiza-Ganem and Cunningham", 2019, "https://arxiv.org/abs/1907.06845")),
  Entry("binary_cross_entropy", GENERAL, False, True, "binary, two logarithms", ("Cox", 1958, "https://doi.org/10.1111/j.2517-6161.1958.tb00292.x")),
  Entry("binary_squentropy", CONFIDENT, False, False, "binary, two logarithms", ("Hui, Belkin and Wright", 2023, "https://arxiv.org/abs/2302.03952")),
  Entry("dice", METRIC, True, False, "binary, one sigmoid", ("Li et al.", 2020, "https://arxiv.org/abs/1911.02855")),
  Entry("tversky", METRIC, True, False, "binary, one sigmoid", ("Salehi et al.", 2017, "https://arxiv.org/abs/1706.05721")),
  Entry("self_adjusting_dice", METRIC, True, False, "binary, one sigmoid", ("Li et al.", 2020, "https://arxiv.org/abs/1911.02855")),
  Entry("anyloss", METRIC, True, False, "binary, two sigmoids", ("Han et al.", 2024, "https://arxiv.org/abs/2405.14745"), of_batch=True),
  Entry("ensloss", OVERFIT, False, False, "binary, two sorts", ("Dai", 2025, "https://arxiv.org/abs/2409.00908"), of_batch=True),
  Entry("ensemble_distillation", TEACHER, False, True, "a softmax per model", ("Shen and Savvides", 2020, "https://arxiv.org/abs/2009.08453")),
  Entry("discriminator", TEACHER, False, True, "four exponentials", ("Shen and Savvides", 2020, "https://arxiv.org/abs/2009.08453")),
)
# fmt: on
