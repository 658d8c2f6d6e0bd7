"""Templates of the pages, and what all of them know: the colours and how to write a number."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2

from gendistill.report.formatting import MEDIA, PALETTE, brief, duration, kilo, measure, percent, signed


def render_template(name: str, **values: Any) -> str:
    """The text of a template. Class names, paths and commands are escaped; a value that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files(__package__).joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {f.__name__: f for f in (brief, duration, kilo, measure, percent, signed)}
    environment.globals |= {"palette": PALETTE, "media": MEDIA}
    return environment.get_template(name).render(**values)
