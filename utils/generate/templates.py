"""
Templates to messages: jinja in a sandbox, where an unknown name is an error and never an empty text.

    messages = Renderer(config, "chat").messages("chosen", subtopic="animals", prompt="What does a cow say?")
    # [{"role": "user", "content": "What does a cow say?"}]
"""

from functools import lru_cache

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import SandboxedEnvironment

from utils.config.answers import TemplateSpec
from utils.config.generate import GenerateConfig

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


class Renderer:
    """Fills the templates of one dataset."""

    def __init__(self, config: GenerateConfig, dataset: str) -> None:
        self._config, self._dataset = config, dataset

    def messages(self, step: str, **given: object) -> list[dict[str, str]]:
        """The messages of a step's call."""
        return render(self._config.template(self._dataset, step), self.variables(**given))

    def variables(self, **given: object) -> dict[str, object]:
        """Every variable of `VARIABLES`; what a step does not have is empty."""
        empty = {"subtopic": "", "prompt": "", "count": 1, "exclude": [], "is_retry": False, "index": 0}
        return {"main_topic": self._config.main_topic} | empty | given
