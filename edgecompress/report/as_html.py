"""report.html: one file that needs nothing else, for a browser on a desk or a phone, light or dark."""

from __future__ import annotations

from importlib import resources
from typing import Any


def render(document: dict[str, Any]) -> str:
    """The page. All text is escaped by the template; only the plots, which escape their own, are taken as markup."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    from edgecompress.report import plots, search_plots, searches, view

    def read(name: str) -> str:
        return resources.files("edgecompress.report").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    drawn = [(p.caption, p.summary, Markup(p.svg)) for p in plots.plots(document)]
    of_searches = {
        found.key: [(p.caption, p.summary, Markup(p.svg)) for p in search_plots.plots(found)]
        for found in searches.of(document)
    }
    return environment.get_template("page.html.j2").render(
        view=view.make(document),
        plots=drawn,
        search_plots=of_searches,
        css=Markup(read("page.css")),
        js=Markup(read("page.js")),
    )
