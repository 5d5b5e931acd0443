"""The report's look: one style sheet, light and dark."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --soft: #5d6875; --line: #e1e5ea;
  --head: #f0f2f5; --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #12161c; --card: #1a2028; --ink: #e6eaef; --soft: #9aa5b1; --line: #2c343f;
    --head: #222a34; --accent: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 20px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 10px; }
p { margin: 6px 0 12px; color: var(--soft); max-width: 105ch; }
svg { width: 100%; height: auto; display: block; }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 14px 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tiles b { display: block; font-size: 26px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: 13px; }
.scroll { overflow: auto; max-height: 70vh; padding: 0; }
table { border-collapse: separate; border-spacing: 0; width: 100%;
  font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 7px 10px; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
thead th { position: sticky; top: 0; background: var(--head); font-weight: 600; z-index: 1; }
tbody tr:last-child td, tbody tr:last-child th { border-bottom: 0; }
tbody tr:hover { background: var(--head); }
th.name, td.name { text-align: left; font-weight: 600; white-space: normal;
  overflow-wrap: anywhere; min-width: 7em; }
td small { color: var(--soft); }
.scroll + .card { margin-top: 12px; }
figure { margin: 0 0 16px; overflow: hidden; }
figure img { width: 100%; display: block; background: #000; }
figcaption { padding: 9px 14px; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px;
  align-items: baseline; }
figcaption b { font-size: 15px; overflow-wrap: anywhere; }
figcaption span { color: var(--soft); font-variant-numeric: tabular-nums; }
.key { display: inline-block; width: 22px; border-top: 3px solid; vertical-align: middle;
  margin: 0 5px 0 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0;
  font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
pre { margin: 0; font-size: 12px; overflow: auto; max-height: 40vh; }
@media print { .scroll { max-height: none; overflow: visible; }
  figure, .card { break-inside: avoid; } }
"""
