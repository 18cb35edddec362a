"""How a report looks, in light and in dark. Called by `registry.report.page`."""

STYLE = """
:root{--bg:#fff;--fg:#1b1f24;--soft:#5d6670;--rule:#dfe3e8;--card:#f6f8fa;--canary:#c2570c;--control:#1f6fb5;
--good:#1a7f37;--bad:#c9252d;--warn:#8a6100;--zero:#c9252d}
@media (prefers-color-scheme:dark){:root{--bg:#0f1419;--fg:#e6e9ec;--soft:#98a2ad;--rule:#2c343d;--card:#171d24;
--canary:#ff9d4d;--control:#6cb6ff;--good:#4cc26a;--bad:#ff7b72;--warn:#e3b341;--zero:#ff7b72}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",sans-serif}
main{max-width:980px;margin:0 auto;padding:32px 20px 48px}
h1{font-size:25px;line-height:1.25;margin:10px 0 6px}
h2{font-size:17px;margin:34px 0 10px;padding-bottom:5px;border-bottom:1px solid var(--rule)}
h3{font-size:14px;margin:0 0 4px}
p{margin:6px 0}
.why{font-size:17px;color:var(--soft)}
small,footer,figcaption{color:var(--soft);font-size:13px}
footer{margin-top:36px;border-top:1px solid var(--rule);padding-top:10px}
.pill{display:inline-block;margin:0;padding:2px 12px;border-radius:999px;color:var(--bg);background:var(--soft);
font-weight:600}
.pill.good{background:var(--good)}.pill.bad{background:var(--bad)}.pill.warn{background:var(--warn)}
.state{font-weight:600;color:var(--soft)}.state.good{color:var(--good)}.state.bad{color:var(--bad)}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;vertical-align:top;padding:6px 14px 6px 0;border-bottom:1px solid var(--rule)}
td{overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
td:not(:last-child){white-space:nowrap}
td small{display:block}
th{color:var(--soft);font-weight:600;white-space:nowrap}
.facts th{width:190px}
.scroll{overflow-x:auto}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:16px}
.wide{display:grid;gap:16px}.wide figure{overflow-x:auto}.wide svg{min-width:640px}
figure{margin:0;padding:12px 14px;background:var(--card);border:1px solid var(--rule);border-radius:8px;
break-inside:avoid}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
.cards svg text{font-size:11.5px}
svg .note{fill:var(--fg)}svg .note.bad{fill:var(--bad)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.canary{stroke:var(--canary)}.line.control{stroke:var(--control);stroke-dasharray:5 3}
.band{opacity:.18}.band.canary,.bar.canary{fill:var(--canary)}.band.control,.bar.control{fill:var(--control)}
line.grid{stroke:var(--rule)}line.axis{stroke:var(--soft)}
.mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}
.mark.bad{stroke:var(--bad);stroke-dasharray:none}
.span.zero{fill:var(--zero);opacity:.14}
.legend{color:var(--soft);font-size:13px;margin:0 0 10px}
.key{display:inline-block;width:22px;height:0;border-top:3px solid;vertical-align:middle;margin:0 5px 0 8px}
.key:first-child{margin-left:0}
.key.canary{border-color:var(--canary)}.key.control{border-color:var(--control);border-top-style:dashed}
@media print{body{font-size:12px}main{max-width:none;padding:0}.scroll{overflow:visible}}
"""
