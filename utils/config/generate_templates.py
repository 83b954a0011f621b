"""
The built-in templates of stage 10, one per step: what is asked when a config names no template of its own.

Those that a config uses are written into its resolved form, so that a better wording in a later release shows
as a changed config and never as the same artifact with other rows.

    BUILT_IN["prompts"].user
"""

from utils.config.answers import TemplateSpec

_ONLY_A_LIST = "Answer with a JSON list of strings only."
_EXCEPT = "{% if exclude %}\nLeave these out:\n- {{ exclude | join('\\n- ') }}{% endif %}"
_RUBRIC = (
    "{% for c in criteria %}\n"
    "- {{ c.name }} ({{ c.lowest }} to {{ c.highest }}): {{ c.description }}{% endfor %}\n"
)
_SCORES = (
    "{% if with_reasons %}Give one sentence of reasons, then the scores{% else %}Give the scores{% endif %} "
    'as one JSON object, criterion to number, such as {"{{ criteria[0].name }}": {{ criteria[0].highest }}}.'
)

BUILT_IN = {
    "subtopics": TemplateSpec(
        user='Write {{ count }} different subtopics of "{{ main_topic }}". ' + _ONLY_A_LIST + _EXCEPT
    ),
    "ideas": TemplateSpec(
        user='Write {{ count }} different ideas for a text about "{{ subtopic }}". ' + _ONLY_A_LIST + _EXCEPT
    ),
    "prompts": TemplateSpec(
        user='Write {{ count }} different questions or requests about "{{ subtopic }}". '
        + _ONLY_A_LIST
        + _EXCEPT
    ),
    "text": TemplateSpec(user='Write a text with this idea: "{{ prompt }}"'),
    "answer": TemplateSpec(user="{{ prompt }}"),
    "judge": TemplateSpec(
        system="You grade answers. You are strict and fair.",
        user="Request:\n{{ prompt }}\n\nAnswer:\n{{ response }}\n\nScore the answer by each criterion:"
        + _RUBRIC
        + _SCORES,
    ),
    "judge_pair": TemplateSpec(
        system="You compare answers. You are strict and fair.",
        user="Request:\n{{ prompt }}\n\nAnswer A:\n{{ response }}\n\nAnswer B:\n{{ other_response }}\n\n"
        "Which answer is better by these criteria?" + _RUBRIC + 'Say {"better": "A"} or {"better": "B"}.',
    ),
}


def built_in_name(step: str, mode: str) -> str:
    """The built-in template of a step (subtopics, prompts, chosen, rejected) in a mode."""
    if mode == "text":
        return {"subtopics": "subtopics", "prompts": "ideas", "chosen": "text"}[step]
    return {"subtopics": "subtopics", "prompts": "prompts", "chosen": "answer", "rejected": "answer"}[step]
