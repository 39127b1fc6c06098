"""What `check` found as one HTML file without anything beside it: a memory bar for each phone against what it allows."""

from __future__ import annotations

from html import escape

from mobile_export.budget.interval import Interval, total
from mobile_export.budget.latency import decode_curve
from mobile_export.budget.rate_curve import rate_curve
from mobile_export.budget.report import Checked, around, improvement, mib, reason
from mobile_export.budget.terms import MIB, Term
from mobile_export.budget.verdict import Verdict

# Hues that stay apart for colour-blind readers (Okabe and Ito), the largest terms first; what is left is grey.
HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
GREY = "#9a9a9a"
OUTCOMES = {"fits": "yes", "uncertain": "maybe", "does not fit": "no"}


def page(checked: Checked) -> str:
    """The whole page."""
    terms = sorted(checked.verdicts[0][0].memory.peak_terms, key=lambda term: -term.bytes.likely)
    hues = {term.name: HUES[place] if place < len(HUES) else GREY for place, term in enumerate(terms)}
    cards = "\n".join(
        _card(checked, verdict, improvement(verdict, change) if verdict.outcome != "fits" else "", terms, hues)
        for verdict, change in checked.verdicts
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(checked.title)}: does it fit?</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Does it fit?</h1>
<p class="model">{escape(checked.headline())}</p>
<p class="counts">{_tally(checked)}</p>
<section class="phones">
{cards}
</section>
<h2>Memory at the peak</h2>
<p>Dirty memory is what a phone kills an app for; clean pages of files it can drop and read again.</p>
{_terms(terms, hues)}
<h2>How to read this</h2>
<p>Predicted from sizes, nothing was run. A bar is what is likely, the line behind its end the interval; the mark is
what is allowed. An answer is uncertain where the interval holds the mark. A curve is the decode rate as the cache fills, the
band its interval, a dashed line what is asked. Rates from the phone table are wide, because published values are few; a profile
of the phone makes them narrow.</p>
</body>
</html>
"""


def _tally(checked: Checked) -> str:
    outcomes = [verdict.outcome for verdict, _ in checked.verdicts]
    return " ".join(
        f'<span class="pill {style}">{outcomes.count(outcome)} of {len(outcomes)}: {outcome}</span>'
        for outcome, style in OUTCOMES.items()
        if outcome in outcomes
    )


def _card(checked: Checked, verdict: Verdict, help_line: str, terms: list[Term], hues: dict[str, str]) -> str:
    memory = verdict.answers[0]
    end = 1.06 * max(memory.needed.high, memory.allowed.high)
    lines = [f"<li>{escape(reason(answer))}</li>" for answer in verdict.answers[1:]]
    if verdict.rates:
        rates = verdict.rates
        answered = {answer.limit for answer in verdict.answers}
        speed = {
            "decode rate": f"{around(rates.decode_tokens_per_s, 0)} tokens/s",
            "first token": f"first token after {around(rates.first_token_s, 2)} s",
        }
        left = ", ".join(text for limit, text in speed.items() if limit not in answered)
        source = verdict.target.calibration.source if verdict.target.calibration else ""
        lines.append(f"<li>{escape(left)} <small>({'speed' if left else 'Speed'} from {escape(source)})</small></li>")
    if checked.battery and verdict.energy:
        joules, tokens = verdict.energy.joules_a_token, verdict.energy.tokens_a_percent
        lines.append(f"<li>{around(joules, 3)} J a token, {around(tokens, 0)} tokens a percent of the battery</li>")
    curve = ""
    if verdict.target.calibration:
        points = decode_curve(checked.facts, verdict.target.calibration, checked.context)
        asked = next((answer.allowed.likely for answer in verdict.answers if answer.limit == "decode rate"), None)
        curve = rate_curve(points, asked)
    if help_line:
        lines.append(f'<li class="help">{escape(help_line[0].upper() + help_line[1:])}</li>')
    return f"""<article class="{OUTCOMES[verdict.outcome]}">
<header><h3>{escape(verdict.target.name)}</h3><span class="pill {OUTCOMES[verdict.outcome]}">{verdict.outcome}</span></header>
<p class="need"><b>{mib(memory.needed)}</b> MiB needed, <b>{mib(memory.allowed)}</b> allowed
of {verdict.target.dram_bytes.likely / 2**30:.3g} GB</p>
{_bar(terms, hues, memory.needed, memory.allowed, end)}
<ul>{"".join(lines)}</ul>{curve}
</article>"""


def _bar(terms: list[Term], hues: dict[str, str], needed: Interval, allowed: Interval, end: float) -> str:
    """A stacked bar: each term dirty, then clean in stripes; the interval as a line; what is allowed as a mark."""
    parts = []
    for term in terms:
        for kind, amount in (("dirty", term.dirty.likely), ("clean", term.clean.likely)):
            if amount:
                title = f"{term.name}, {kind}: {amount / MIB:,.1f} MiB"
                style = f"width:{100 * amount / end:.2f}%;--hue:{hues[term.name]}"
                parts.append(f'<i class="{kind}" style="{style}" title="{escape(title)}"></i>')
    low, high, mark = (100 * value / end for value in (needed.low, needed.high, allowed.likely))
    label = f"{needed.likely / MIB:,.0f} MiB of {allowed.likely / MIB:,.0f} MiB allowed"
    return (
        f'<div class="bar" role="img" aria-label="{escape(label)}"><div class="stack">{"".join(parts)}</div>'
        f'<div class="span" style="left:{low:.2f}%;width:{high - low:.2f}%"></div>'
        f'<div class="mark" style="left:{mark:.2f}%"></div></div>'
    )


def _terms(terms: list[Term], hues: dict[str, str]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row"><i class="key" style="--hue:{hues[term.name]}"></i>{escape(term.name)}</th>'
        f"<td>{_mib(term.dirty)}</td><td>{_mib(term.clean)}</td><td class='why'>{escape(term.why)}</td></tr>"
        for term in terms
    )
    dirty, clean = total(term.dirty for term in terms), total(term.clean for term in terms)
    return f"""<table>
<thead><tr><th scope="col">term</th><th scope="col">dirty MiB</th><th scope="col">clean MiB</th>
<th class="why" scope="col">why</th></tr></thead>
<tbody>
{rows}
</tbody>
<tfoot><tr><th scope="row">together</th><td>{_mib(dirty)}</td><td>{_mib(clean)}</td><td class="why"></td></tr></tfoot>
</table>"""


def _mib(interval: Interval) -> str:
    return f"{interval.likely / MIB:,.1f}" if interval.high else ""


STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #5c5c5c; --paper: #fff; --card: #f6f6f4; --line: #d8d8d4;
  --yes: #00694c; --maybe: #8a5a00; --no: #a3260f; }
@media (prefers-color-scheme: dark) { :root { --ink: #eaeaea; --soft: #a8a8a8; --paper: #161616; --card: #222; --line: #3c3c3c;
  --yes: #4fc79b; --maybe: #e6b455; --no: #ff8f73; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem; margin: 0 auto;
  padding: 1.5rem 1rem 3rem; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2rem 0 .3rem; font-size: 1.2rem; } h3 { margin: 0; font-size: 1.05rem; }
.model { margin: .2rem 0; color: var(--soft); overflow-wrap: anywhere; } .counts { margin: .8rem 0; }
.pill { display: inline-block; padding: 0 .6em; border: 1px solid currentcolor; border-radius: 1em; font-size: .85rem;
  white-space: nowrap; }
.pill.yes { color: var(--yes); } .pill.maybe { color: var(--maybe); } .pill.no { color: var(--no); }
.phones { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
article { background: var(--card); border-left: 4px solid; border-radius: 4px; padding: .7rem .9rem; min-width: 0; }
article.yes { border-color: var(--yes); } article.maybe { border-color: var(--maybe); } article.no { border-color: var(--no); }
article header { display: flex; justify-content: space-between; gap: .8rem; align-items: baseline; }
.need { margin: .1rem 0 .5rem; } article ul { margin: .5rem 0 0; padding: 0; list-style: none; font-size: .9rem; }
article li { color: var(--soft); } article li.help { color: var(--ink); margin-top: .2rem; }
.bar { position: relative; height: 1.5rem; margin: .3rem 0; background: var(--paper); border: 1px solid var(--line); }
.stack { display: flex; height: 100%; } .stack i { flex: none; height: 100%; background: var(--hue); min-width: 0; }
.stack i.clean { background: repeating-linear-gradient(135deg, var(--hue) 0 3px, transparent 3px 6px); }
.span { position: absolute; bottom: -4px; height: 3px; background: var(--ink); }
.mark { position: absolute; top: -5px; bottom: -5px; width: 3px; margin-left: -1px; background: var(--ink); }
.rate { display: block; width: 100%; max-width: 24rem; margin-top: .5rem; font-size: 10px; } .rate text { fill: var(--soft); }
.rate path { fill: none; stroke-width: 1; } .rate .grid { stroke: var(--line); } .rate .asked { stroke: var(--ink);
  stroke-dasharray: 4 3; } .rate .likely { stroke: #0072b2; stroke-width: 2; } .rate .band { fill: #0072b2; fill-opacity: .22; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, .why { text-align: left; } th { font-weight: 600; } .why { color: var(--soft); font-size: .9rem; }
tfoot th, tfoot td { font-weight: 700; border-bottom: 0; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .5em; background: var(--hue); }
@media (max-width: 34rem) { .why { display: none; } th, td { padding: .25rem .2rem; } }
"""
