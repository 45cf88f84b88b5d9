# SPDX-License-Identifier: Apache-2.0
"""The HTML template of a page, which loads nothing from elsewhere."""

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --background: #ffffff; --ink: #1f2430; --quiet: #5b6475;
  --line: #d9dde5; --raised: #f4f6fa; --accent: #2f6fd0;
  --better: #1d7a56; --worse: #b3293f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --background: #171a21; --ink: #e4e7ee; --quiet: #9aa4b6;
    --line: #343a47; --raised: #20242d; --accent: #7fb0ff;
    --better: #5ccf9f; --worse: #ff8a9a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 66rem; padding: 1.5rem 1.25rem 4rem;
  background: var(--background); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 {
  font-size: 1.2rem; margin: 2.6rem 0 .6rem; overflow-wrap: anywhere;
}
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p, li { max-width: 46rem; }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
.verdict {
  background: var(--raised); border-left: .25rem solid var(--accent);
  border-radius: .3rem; padding: .4rem 1.1rem; margin: 1.4rem 0;
}
.verdict p { margin: .6rem 0; max-width: none; }
.verdict .first { font-size: 1.12rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td {
  padding: .28rem .5rem; text-align: right; vertical-align: baseline;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums;
}
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th[scope=row] { font-weight: 400; overflow-wrap: break-word; }
th[scope=rowgroup] { padding-top: 1.1rem; color: var(--accent); }
td { white-space: nowrap; }
tr:first-child th { vertical-align: bottom; }
.under { display: block; color: var(--quiet); font-size: .84em; }
.under.better { color: var(--better); }
.under.worse { color: var(--worse); }
.best { border-bottom: 2px solid var(--accent); }
.place { color: var(--quiet); display: inline-block; min-width: 1.1em; }
.tag {
  border: 1px solid var(--line); border-radius: .3rem; color: var(--quiet);
  font-size: .76em; padding: 0 .3em; white-space: nowrap;
}
.matrix td, .matrix th { text-align: center; }
.matrix th:first-child { text-align: left; }
.heat {
  background: color-mix(in srgb, var(--accent) var(--share), transparent);
}
.legend {
  display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; list-style: none;
  margin: .4rem 0 .9rem; padding: 0; font-size: .9rem;
}
.legend i { display: inline-block; margin-right: .45rem; }
.legend .line {
  border-top-width: .18rem; width: 1.6rem; vertical-align: middle;
}
.legend .bar {
  border: 1px solid currentColor; height: .8rem; width: 1.3rem;
  vertical-align: -.08rem;
}
.legend .full { background: currentColor; }
.legend .rising { background: repeating-linear-gradient(
  135deg, currentColor 0 1px, transparent 1px 4px); }
.legend .falling { background: repeating-linear-gradient(
  45deg, currentColor 0 1px, transparent 1px 4px); }
.rows { display: flex; height: 1.4rem; border-radius: .3rem; overflow: hidden; }
.rows .part0 { background: #3f7fd9; }
.rows .part1 { background: #c9a227; }
.rows .part2 { background: #2fa37c; }
.legend .part0 { color: #3f7fd9; }
.legend .part1 { color: #c9a227; }
.legend .part2 { color: #2fa37c; }
.grid {
  display: grid; gap: 1.4rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
}
.pairs {
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr));
}
summary { margin-top: .8rem; color: var(--accent); cursor: pointer; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; }
figcaption { margin-bottom: .3rem; }
pre {
  background: var(--raised); border-radius: .3rem; padding: .8rem 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88rem;
}
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 32rem) {
  body { padding: 1rem .9rem 3rem; }
  table { font-size: .78rem; }
  th, td { padding: .28rem .22rem; }
  .errors th[scope=row] { min-width: 8rem; }
  .rank { font-size: .88rem; }
  .rank, .rank tbody { display: block; }
  .rank tr:first-child { display: none; }
  .rank tr { display: block; border-bottom: 1px solid var(--line); }
  .rank th { display: block; border: 0; padding-top: .6rem; }
  .rank td {
    display: flex; align-items: baseline; gap: .5rem; border: 0;
    padding: .1rem 0;
  }
  .rank td:last-child { padding-bottom: .6rem; }
  .rank td::before {
    content: attr(data-title); color: var(--quiet); flex: 1; text-align: left;
    white-space: normal;
  }
  .rank .under { font-size: .72rem; min-width: 9.6rem; }
  .spread { display: block; }
}
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="quiet">$subtitle</p>
</header>
<main>
$body
</main>
</body>
</html>
""")
