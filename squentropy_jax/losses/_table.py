# SPDX-License-Identifier: Apache-2.0
"""What README, docs and tests need to know of each loss, stated once.

``python -m squentropy_jax.losses._table`` prints the Markdown table.
"""

from typing import NamedTuple


class Row(NamedTuple):
  """One loss.

  Attributes:
    name: Its name in ``squentropy_jax.losses``.
    row_form: Has a formula over ``RowStats``: fused heads and vocabulary
      parallelism come with it.
    soft_labels: Takes target distributions.
    bounded: Its values have an upper bound over all logits, at the defaults; a
      text says when.
    proper: At the defaults it is least where its forecast is the distribution
      of the labels. The forecast is the softmax of ``loss.link(logits)``, of
      the logits where a loss has no such attribute, or what its page says.
    needs_batch: Compares examples with one another.
    cost: Passes over the logits, or what else it costs.
    paper: Where it is from.
    year: Of the paper.
    class_ids: Takes logits ``[..., C]`` and class ids, and no more.
  """

  name: str
  row_form: bool
  soft_labels: bool
  bounded: bool | str
  proper: bool
  needs_batch: bool
  cost: str
  paper: str
  year: int
  class_ids: bool = True


TABLE = (
  Row(
    name="cross_entropy",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="one softmax",
    paper="[Good](https://www.jstor.org/stable/2984087)",
    year=1952,
  ),
  Row(
    name="comp_sum",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="one softmax",
    paper="[Mao, Mohri and Zhong](https://arxiv.org/abs/2304.07288)",
    year=2023,
  ),
  Row(
    name="generalized_cross_entropy",
    row_form=True,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=False,
    cost="one softmax",
    paper="[Zhang and Sabuncu](https://arxiv.org/abs/1805.07836)",
    year=2018,
  ),
  Row(
    name="mean_absolute_error",
    row_form=True,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=False,
    cost="one softmax",
    paper="[Ghosh, Kumar and Sastry](https://arxiv.org/abs/1712.09482)",
    year=2017,
  ),
  Row(
    name="smooth_adversarial_comp_sum",
    row_form=False,
    soft_labels=True,
    bounded=False,
    proper=False,
    needs_batch=False,
    cost="one softmax, and the logits of an attack",
    paper="[Mao, Mohri and Zhong](https://arxiv.org/abs/2304.07288)",
    year=2023,
    class_ids=False,
  ),
  Row(
    name="focal",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=False,
    needs_batch=False,
    cost="one softmax",
    paper="[Lin et al.](https://arxiv.org/abs/1708.02002)",
    year=2017,
  ),
  Row(
    name="dual_focal",
    row_form=False,
    soft_labels=True,
    bounded=False,
    proper=False,
    needs_batch=False,
    cost="one softmax",
    paper="[Tao, Dong and Xu](https://arxiv.org/abs/2305.13665)",
    year=2023,
  ),
  Row(
    name="poly1",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=False,
    needs_batch=False,
    cost="one softmax",
    paper="[Leng et al.](https://arxiv.org/abs/2204.12511)",
    year=2022,
  ),
  Row(
    name="symmetric_cross_entropy",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=False,
    needs_batch=False,
    cost="one softmax",
    paper="[Wang et al.](https://arxiv.org/abs/1908.06112)",
    year=2019,
  ),
  Row(
    name="normalized_cross_entropy",
    row_form=True,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=False,
    cost="one softmax",
    paper="[Ma et al.](https://arxiv.org/abs/2006.13554)",
    year=2020,
  ),
  Row(
    name="unhinged",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=False,
    needs_batch=False,
    cost="one sum",
    paper="[van Rooyen, Menon and Williamson](https://arxiv.org/abs/1505.07634)",
    year=2015,
  ),
  Row(
    name="asymmetric_generalized_cross_entropy",
    row_form=True,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=False,
    cost="one softmax",
    paper="[Zhou et al.](https://arxiv.org/abs/2106.03110)",
    year=2021,
  ),
  Row(
    name="asymmetric_unhinged",
    row_form=True,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=False,
    cost="one softmax",
    paper="[Zhou et al.](https://arxiv.org/abs/2106.03110)",
    year=2021,
  ),
  Row(
    name="jensen_shannon",
    row_form=True,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=False,
    cost="one softmax",
    paper="[Englesson and Azizpour](https://arxiv.org/abs/2105.04522)",
    year=2021,
  ),
  Row(
    name="bi_tempered_logistic",
    row_form=False,
    soft_labels=True,
    bounded="for t1 < 1",
    proper=True,
    needs_batch=False,
    cost="one softmax and two powers per step of Newton",
    paper="[Amid et al.](https://arxiv.org/abs/1906.03361)",
    year=2019,
  ),
  Row(
    name="logit_norm_cross_entropy",
    row_form=False,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=False,
    cost="one sum of squares and one softmax",
    paper="[Wei et al.](https://arxiv.org/abs/2205.09310)",
    year=2022,
  ),
  Row(
    name="confidence_penalty",
    row_form=False,
    soft_labels=True,
    bounded=False,
    proper=False,
    needs_batch=False,
    cost="two passes of a softmax",
    paper="[Pereyra et al.](https://arxiv.org/abs/1701.06548)",
    year=2017,
  ),
  Row(
    name="rescaled_square",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="one sum of squares",
    paper="[Hui and Belkin](https://arxiv.org/abs/2006.07322)",
    year=2021,
  ),
  Row(
    name="squentropy",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=False,
    needs_batch=False,
    cost="one softmax",
    paper="[Hui, Belkin and Wright](https://arxiv.org/abs/2302.03952)",
    year=2023,
  ),
  Row(
    name="one_vs_rest_hinge",
    row_form=False,
    soft_labels=True,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="one sum",
    paper="[Tang](https://arxiv.org/abs/1306.0239)",
    year=2013,
  ),
  Row(
    name="crammer_singer",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=False,
    needs_batch=False,
    cost="one maximum",
    paper="[Crammer and Singer](https://jmlr.org/papers/v2/crammer01a.html)",
    year=2001,
  ),
  Row(
    name="weston_watkins",
    row_form=False,
    soft_labels=True,
    bounded=False,
    proper=False,
    needs_batch=False,
    cost="one sum",
    paper="[Weston and Watkins](https://www.esann.org/proceedings/1999)",
    year=1999,
  ),
  Row(
    name="ldr_kl",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="one softmax",
    paper="[Zhu, Ying and Yang](https://arxiv.org/abs/2112.14869)",
    year=2023,
  ),
  Row(
    name="aldr_kl",
    row_form=False,
    soft_labels=True,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="32 softmaxes",
    paper="[Zhu, Ying and Yang](https://arxiv.org/abs/2112.14869)",
    year=2023,
  ),
  Row(
    name="zscore",
    row_form=True,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=False,
    cost="two sums",
    paper="[de Brebisson and Vincent](https://arxiv.org/abs/1604.08859)",
    year=2016,
  ),
  Row(
    name="taylor_softmax",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="two sums",
    paper="[de Brebisson and Vincent](https://arxiv.org/abs/1511.05042)",
    year=2016,
  ),
  Row(
    name="spherical_softmax",
    row_form=True,
    soft_labels=True,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="one sum of squares",
    paper="[de Brebisson and Vincent](https://arxiv.org/abs/1511.05042)",
    year=2016,
  ),
  Row(
    name="brier",
    row_form=False,
    soft_labels=True,
    bounded=True,
    proper=True,
    needs_batch=False,
    cost="one softmax",
    paper="[Brier](https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2)",
    year=1950,
  ),
  Row(
    name="softmax_regression",
    row_form=False,
    soft_labels=True,
    bounded=True,
    proper=True,
    needs_batch=False,
    cost="one softmax",
    paper="[Li et al.](https://arxiv.org/abs/2304.13276)",
    year=2023,
  ),
  Row(
    name="continuous_categorical",
    row_form=False,
    soft_labels=True,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="16 points of a contour integral",
    paper="[Gordon-Rodriguez et al.](https://arxiv.org/abs/2002.08563)",
    year=2020,
  ),
  Row(
    name="continuous_bernoulli",
    row_form=False,
    soft_labels=True,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="binary, one exponential",
    paper="[Loaiza-Ganem and Cunningham](https://arxiv.org/abs/1907.06845)",
    year=2019,
    class_ids=False,
  ),
  Row(
    name="dice",
    row_form=False,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=False,
    cost="binary, one sigmoid",
    paper="[Li et al.](https://arxiv.org/abs/1911.02855)",
    year=2020,
    class_ids=False,
  ),
  Row(
    name="tversky",
    row_form=False,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=False,
    cost="binary, one sigmoid",
    paper="[Salehi et al.](https://arxiv.org/abs/1706.05721)",
    year=2017,
    class_ids=False,
  ),
  Row(
    name="self_adjusting_dice",
    row_form=False,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=False,
    cost="binary, one sigmoid",
    paper="[Li et al.](https://arxiv.org/abs/1911.02855)",
    year=2020,
    class_ids=False,
  ),
  Row(
    name="anyloss",
    row_form=False,
    soft_labels=True,
    bounded=True,
    proper=False,
    needs_batch=True,
    cost="binary, two sigmoids",
    paper="[Han et al.](https://arxiv.org/abs/2405.14745)",
    year=2024,
    class_ids=False,
  ),
  Row(
    name="ensloss",
    row_form=False,
    soft_labels=False,
    bounded=False,
    proper=False,
    needs_batch=True,
    cost="binary, two sorts",
    paper="[Dai](https://arxiv.org/abs/2409.00908)",
    year=2025,
    class_ids=False,
  ),
  Row(
    name="ensemble_distillation",
    row_form=False,
    soft_labels=True,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="a softmax per model",
    paper="[Shen and Savvides](https://arxiv.org/abs/2009.08453)",
    year=2020,
    class_ids=False,
  ),
  Row(
    name="discriminator",
    row_form=False,
    soft_labels=False,
    bounded=False,
    proper=True,
    needs_batch=False,
    cost="four exponentials",
    paper="[Shen and Savvides](https://arxiv.org/abs/2009.08453)",
    year=2020,
    class_ids=False,
  ),
  Row(
    name="assistive_distillation",
    row_form=False,
    soft_labels=False,
    bounded=False,
    proper=False,
    needs_batch=False,
    cost="regression, no exponential",
    paper="[Fard and Mahoor](https://arxiv.org/abs/2111.07047)",
    year=2021,
    class_ids=False,
  ),
)


def markdown() -> str:
  """The table in Markdown, in the order of ``TABLE``."""
  flags = ("row form", "soft labels", "bounded", "proper", "needs batch")
  lines = [
    f"| loss | {' | '.join(flags)} | cost | paper |",
    "|---" * (len(flags) + 3) + "|",
  ]
  for row in TABLE:
    marks = (
      row.row_form,
      row.soft_labels,
      row.bounded,
      row.proper,
      row.needs_batch,
    )
    words: dict[bool | str, str] = {True: "yes", False: "no"}
    cells = " | ".join(str(words.get(mark, mark)) for mark in marks)
    lines.append(
      f"| `{row.name}` | {cells} | {row.cost} | {row.paper}, {row.year} |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  print(markdown())
