"""How the pages of runs are made from templates."""

import jinja2


def page_environment() -> jinja2.Environment:
    """Return jinja2's environment for the templates of this package. It escapes values, and refuses unknown names."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("launcher.runs", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
