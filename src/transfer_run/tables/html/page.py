"""One HTML file: a heading and sections, readable in light and dark; whatever comes from a run is escaped here."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

COLOURS = 8
"""Colours that charts tell series by, `--c0` to `--c7`; of more series they are used again."""
STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1f2328; --faint: #59636e; --line: #d1d9e0;
  --soft: #f4f6f8; --c0: #0b62b8; --c1: #c4500d; --c2: #1a7f37; --c3: #8639b8; --c4: #a1770a; --c5: #bf3989;
  --c6: #1b7c83; --c7: #6e7781; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --text: #e6edf3; --faint: #9aa5b1; --line: #3d444d;
  --soft: #171d25; --c0: #4ea1f7; --c1: #f0883e; --c2: #4ac26b; --c3: #bc8cf5; --c4: #d9b036; --c5: #f778ba;
  --c6: #4fc3cb; --c7: #a0a8b1; } }
body { background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  padding: 1.5rem; max-width: 72rem; }
h1 { font-size: 1.45rem; margin: 0 0 .3rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 1.9rem 0 .5rem; }
h3 { font-size: .95rem; margin: .6rem 0 .1rem; font-weight: 600; }
p { margin: .3rem 0; } .faint, figcaption { color: var(--faint); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
th, td { padding: .22rem .7rem .22rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; } .figure { text-align: right; }
figure { margin: .4rem 0; } .charts { display: flex; flex-wrap: wrap; gap: .8rem 2rem; }
svg { max-width: 100%; height: auto; display: block; } svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
svg .faint { fill: var(--faint); } svg .rule { stroke: var(--line); } svg .axis { stroke: var(--faint); }
.key { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin: 0 .3rem 0 .9rem;
  vertical-align: -1px; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .85rem; } code { overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--faint); }
"""


class Html(str):
    """Text that is HTML already; all other text is escaped where it is put in."""


def text(value: object) -> str:
    """A value as HTML."""
    return value if isinstance(value, Html) else escape(str(value))


def document(title: str, lead: str, sections: Sequence[Html]) -> str:
    """The whole file.

    Args:
        lead: a line below the heading.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{text(title)}</h1>\n<p class="faint">{text(lead)}</p>\n'
        + "\n".join(filter(None, sections))
        + "\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> Html:
    """A heading and what is below it; nothing at all where all parts are empty."""
    told = [text(part) if isinstance(part, Html) else f"<p>{text(part)}</p>" for part in parts if part]
    return Html(f"<section>\n<h2>{text(heading)}</h2>\n" + "\n".join(told) + "\n</section>") if told else Html("")


def table(head: Sequence[str], rows: Sequence[Sequence[object]], figures_from: int = 1) -> Html:
    """Rows below headings; columns from `figures_from` on stand flush right. Nothing where there are no rows."""
    if not rows:
        return Html("")
    side = ['class="figure"' if place >= figures_from else "" for place in range(len(head))]
    lines = [f"<tr>{''.join(f'<th {of}>{text(cell)}</th>' for of, cell in zip(side, head, strict=True))}</tr>"]
    lines += [
        f"<tr>{''.join(f'<td {of}>{text(cell)}</td>' for of, cell in zip(side, row, strict=True))}</tr>" for row in rows
    ]
    return Html('<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>")


def notes(lines: Sequence[str]) -> Html:
    """A list of sentences; nothing where there are none."""
    return Html("<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>") if lines else Html("")


def charts(*figures: str) -> Html:
    """Charts beside each other as far as there is room."""
    shown = [text(each) for each in figures if each]
    return Html(f'<div class="charts">{"".join(shown)}</div>') if shown else Html("")


def folded(summary: str, lines: str) -> Html:
    """Text that is shown on a click."""
    return Html(f"<details><summary>{text(summary)}</summary><pre>{text(lines)}</pre></details>")


def picture(name: str, png: bytes) -> Html:
    """A picture within the page itself, under its file's name."""
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    return Html(f'<figure><img src="{source}" alt="{text(name)}" style="max-width: 100%">'
                f"<figcaption>{text(name)}</figcaption></figure>")  # fmt: skip


def legend(names: Sequence[str]) -> Html:
    """What the colours of a chart stand for, in their order."""
    keys = (
        f'<span class="key" style="background: var(--c{n % COLOURS})"></span>{text(each)}'
        for n, each in enumerate(names)
    )
    return Html("<figcaption>" + "".join(keys) + "</figcaption>")
