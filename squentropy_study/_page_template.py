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
}
@media (prefers-color-scheme: dark) {
  :root {
    --background: #171a21; --ink: #e4e7ee; --quiet: #9aa4b6;
    --line: #343a47; --raised: #20242d; --accent: #7fb0ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 66rem; padding: 1.5rem 1.25rem 4rem;
  background: var(--background); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
p, li { max-width: 46rem; }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
.verdict {
  background: var(--raised); border-left: .25rem solid var(--accent);
  border-radius: .3rem; padding: .4rem 1.1rem; margin: 1.4rem 0;
}
.verdict p { margin: .6rem 0; max-width: none; }
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
  th, td { padding: .28rem .2rem; }
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
