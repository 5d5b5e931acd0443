"""The pieces that every report is made of: a page, its sections, cards, tiles and pictures.

Headings, leads and contents are our own HTML; everything else is escaped here.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any

from medseg.errors import DataError
from medseg.evaluation.overlay import CaseView, draw
from medseg.evaluation.report_style import STYLE


def page(title: str, body: str, style: str = "") -> str:
    """A whole HTML file; `style` is CSS beyond that of all reports."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n{body}</main></body></html>\n"
    )


def section(heading: str, content: str, lead: str = "") -> str:
    """A section, or nothing where there is no content."""
    if not content:
        return ""
    return f"<section><h2>{heading}</h2>{f'<p>{lead}</p>' if lead else ''}{content}</section>\n"


def card(content: str) -> str:
    """Content on a card, or nothing where there is none."""
    return f'<div class="card">{content}</div>' if content else ""


def tiles(shown: Iterable[tuple[Any, str]]) -> str:
    """Values, each with what it is."""
    cards = (card(f"<b>{value}</b><span>{escape(name)}</span>") for value, name in shown)
    return f'<div class="tiles">{"".join(cards)}</div>\n'


def facts(known: Mapping[str, Any]) -> str:
    """Name to value, as a card; nothing where nothing is known."""
    items = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{_told(str(value))}</dd>" for name, value in known.items()
    )
    return card(f"<dl>{items}</dl>") if items else ""


def _told(value: str) -> str:
    """A text of several lines keeps them."""
    return f"<pre>{escape(value)}</pre>" if "\n" in value else escape(value)


def picture(case_id: str, view: Callable[[str], CaseView], notes: Iterable[str]) -> str:
    """A case drawn, with notes below; one that `view` refuses with a DataError is only named."""
    notes = list(notes)
    try:
        png = base64.b64encode(draw(view(case_id))).decode("ascii")
        drawn = f'<img alt="{escape(case_id)}" src="data:image/png;base64,{png}">'
    except DataError as error:
        drawn = ""
        notes.append(f"not drawn: {error}")
    told = "".join(f"<span>{escape(note)}</span>" for note in notes)
    caption = f"<b>{escape(case_id)}</b>{told}"
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>\n"
