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
from utils.pipeline.errors import ConfigError

_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined)


@lru_cache(maxsize=256)
def _compiled(text: str) -> Template:
    return _ENVIRONMENT.from_string(text)


def render(
    template: TemplateSpec, variables: dict[str, object], name: str = "template"
) -> list[dict[str, str]]:
    """The messages of one call. ConfigError when the template, whose key in the config is `name`, fails."""
    try:
        messages = (
            [{"role": "system", "content": _compiled(template.system).render(variables)}]
            if template.system
            else []
        )
        return [*messages, {"role": "user", "content": _compiled(template.user).render(variables)}]
    except Exception as error:  # a template is a program of the user's: anything may go wrong in it
        raise ConfigError(
            f"{name} cannot be filled: {error}",
            fix=f"mend {name}; the same command continues with the replies that are there",
        ) from None


class Renderer:
    """Fills the templates of one dataset."""

    def __init__(self, config: GenerateConfig, dataset: str) -> None:
        self._config, self._dataset = config, dataset

    def messages(self, step: str, **given: object) -> list[dict[str, str]]:
        """The messages of a step's call."""
        name = self._config.template_name(self._dataset, step)
        return render(self._config.templates[name], self.variables(**given), f"templates.{name}")

    def variables(self, **given: object) -> dict[str, object]:
        """Every variable of `VARIABLES`; what a step does not have is empty."""
        empty = {"subtopic": "", "prompt": "", "count": 1, "exclude": [], "is_retry": False, "index": 0}
        return {"main_topic": self._config.main_topic} | empty | given
