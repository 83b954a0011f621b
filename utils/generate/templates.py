"""
Templates to messages: jinja in a sandbox, where an unknown name is an error and never an empty text.

    render(TemplateSpec(user="Write about {{ prompt }}."), {"prompt": "cats", ...})
    # [{"role": "user", "content": "Write about cats."}]
"""

from functools import lru_cache

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import SandboxedEnvironment

from utils.config.generate import TemplateSpec

_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined)


@lru_cache(maxsize=256)
def _compiled(text: str) -> Template:
    return _ENVIRONMENT.from_string(text)


def render(template: TemplateSpec, variables: dict[str, object]) -> list[dict[str, str]]:
    """The messages of one call."""
    messages = (
        [{"role": "system", "content": _compiled(template.system).render(variables)}]
        if template.system
        else []
    )
    return [*messages, {"role": "user", "content": _compiled(template.user).render(variables)}]
