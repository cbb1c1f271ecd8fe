"""Style and behaviour of report.html: plain CSS and a few lines of script, inlined into the page."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src data: blob:; media-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src data: blob:; form-action 'none'; base-uri 'none'"
)
"""The browser itself refuses every network access from this page and from the viewer inside it."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f6f8; --card: #ffffff; --text: #1c1f26; --soft: #646b7a; --line: #e3e5ea; --accent: #2f6fde;
  --warn: #8a5a00; --warn-bg: #fff6e0; --panel: #f3f4f7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111318; --card: #191c23; --text: #e8eaf0; --soft: #98a0b0; --line: #2b303a; --accent: #7aa7ff;
    --warn: #f1c876; --warn-bg: #2c2415; --panel: #1b1e25;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 20px 64px; }
header { margin-bottom: 28px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 19px; letter-spacing: -0.01em; margin: 0 0 4px; }
p { margin: 0 0 14px; }
.soft { color: var(--soft); font-size: 14px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 16px; padding: 24px;
  margin-bottom: 20px; }
.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 20px; }
.two > section { margin-bottom: 0; }
.pair { margin-bottom: 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin-top: 20px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 12px 16px; }
.tile b { display: block; font-size: 22px; font-weight: 600; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.compare { display: grid; grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr); gap: 24px; align-items: start; }
.slider { position: relative; border-radius: 12px; overflow: hidden; background: #fff; line-height: 0; --at: 50%; }
.slider img { width: 100%; display: block; }
.slider .upper { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.slider .bar { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 6px rgba(0, 0, 0, .6); pointer-events: none; }
.slider .tag { position: absolute; top: 10px; line-height: 1.3; font-size: 12px; padding: 3px 9px; border-radius: 99px;
  background: rgba(20, 22, 28, .66); color: #fff; pointer-events: none; }
.slider input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.slider:focus-within { outline: 3px solid var(--accent); }
.trio { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px; }
figure { margin: 0; }
figure img { width: 100%; display: block; border-radius: 10px; background: #fff; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 5px; }
video { width: 100%; max-width: 860px; display: block; border-radius: 12px; background: #fff; margin: 12px auto 0; }
iframe { width: 100%; height: 540px; max-height: 80vh; border: 0; border-radius: 12px; background: var(--panel);
  margin-top: 12px; display: block; }
.views { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 12px; margin-top: 12px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 18px; margin-top: 12px; }
.chart { width: 100%; height: auto; display: block; }
.chart-line { fill: none; stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; }
.chart-dot { fill: var(--accent); }
.chart-grid { stroke: var(--line); stroke-width: 1; }
.chart-text { fill: var(--soft); font-size: 11px; font-family: inherit; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin-top: 10px; }
td, th { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; border-top: 1px solid var(--line); }
tr:first-child > * { border-top: 0; }
th { font-weight: 500; color: var(--soft); white-space: nowrap; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.warnings { border-color: transparent; background: var(--warn-bg); color: var(--warn); }
.warnings ul { margin: 6px 0 0; padding-left: 20px; }
summary { cursor: pointer; font-size: 19px; font-weight: 600; letter-spacing: -0.01em; }
a { color: var(--accent); }
footer { color: var(--soft); font-size: 13px; text-align: center; margin-top: 28px; }
@media (max-width: 820px) {
  .two, .compare { grid-template-columns: minmax(0, 1fr); }
  main { padding: 24px 12px 40px; }
  section { padding: 18px; }
}
"""

SCRIPT = """
"use strict";
for (const slider of document.querySelectorAll(".slider")) {
  slider.querySelector("input").addEventListener("input", function () {
    slider.style.setProperty("--at", this.value + "%");
  });
}
"""
