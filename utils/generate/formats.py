"""
The rows of a dataset in the shape that a config asks for; each shape has the same keys in every row.

    shape = Shape(config, "pairs")
    for row in shape.rows(record, chosen, rejected): ...
    # {"prompt": "What does a cow say?", "chosen": "Moo.", "rejected": "Bark.", "id": "5f0c..."}

`record` is the decision line of an accepted row, `chosen` and `rejected` are the replies that it names.
"""

from utils.config.generate import DatasetSpec, GenerateConfig
from utils.generate.reply import Reply
from utils.generate.validate import answer_text
from utils.pipeline.hashing import canonical_json, sha256_hex

SCORES = ("chosen_scores", "rejected_scores", "chosen_total", "rejected_total", "margin")
"""Columns of mo_dpo rows beside those of dpo."""


class Shape:
    """Makes the rows of one dataset."""

    def __init__(self, config: GenerateConfig, dataset: str) -> None:
        self._name, self._main_topic = dataset, config.main_topic
        self._spec: DatasetSpec = config.datasets[dataset]

    def rows(self, record: dict, chosen: Reply, rejected: Reply | None) -> list[dict]:
        """The one row of a unit, or the two of kto."""
        if self._spec.mode == "kto":
            assert rejected is not None
            sides = ((chosen, True), (rejected, False))
            return [
                self._with_columns(self._completion(record, reply, label), record, sample, [("", reply)])
                for sample, (reply, label) in enumerate(sides)
            ]
        made = getattr(self, f"_{self._spec.mode}")(record, chosen, rejected)
        sides = [("", chosen)] if rejected is None else [("chosen_", chosen), ("rejected_", rejected)]
        return [self._with_columns(made, record, 0, sides)]

    def _with_columns(self, row: dict, record: dict, sample: int, sides: list[tuple[str, Reply]]) -> dict:
        if self._spec.reasoning == "separate":
            row |= {f"{side}reasoning": reply.reasoning for side, reply in sides}
        if self._spec.include_topic_columns:
            row |= {"main_topic": self._main_topic, "subtopic": record["label"]}
        if self._spec.include_id:
            row["id"] = row_id(self._name, record["prompt"], sample)
        return row

    def _text(self, record: dict, chosen: Reply, rejected: None) -> dict:
        return {"text": self._answer(chosen)}

    def _sft(self, record: dict, chosen: Reply, rejected: None) -> dict:
        prompt, answer = record["prompt"], self._answer(chosen)
        if self._spec.sft_format == "alpaca":
            return {"instruction": prompt, "input": "", "output": answer}
        if self._spec.sft_format == "sharegpt":
            turns = (("human", prompt), ("gpt", answer))
            return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}
        return {"messages": [_message("user", prompt), _message("assistant", answer)]}

    def _dpo(self, record: dict, chosen: Reply, rejected: Reply) -> dict:
        return {
            "prompt": self._said("user", record["prompt"]),
            "chosen": self._said("assistant", self._answer(chosen)),
            "rejected": self._said("assistant", self._answer(rejected)),
        }

    def _mo_dpo(self, record: dict, chosen: Reply, rejected: Reply) -> dict:
        return self._dpo(record, chosen, rejected) | {name: record[name] for name in SCORES}

    def _completion(self, record: dict, reply: Reply, label: bool) -> dict:
        return {
            "prompt": self._said("user", record["prompt"]),
            "completion": self._said("assistant", self._answer(reply)),
            "label": label,
        }

    def _said(self, role: str, text: str) -> str | list[dict[str, str]]:
        return [_message(role, text)] if self._spec.conversational else text

    def _answer(self, reply: Reply) -> str:
        text = answer_text(reply)
        if self._spec.reasoning == "inline" and reply.reasoning:
            return f"<think>\n{reply.reasoning}\n</think>\n\n{text}"
        return text


def row_id(dataset: str, prompt: str, sample: int = 0) -> str:
    """32 hex digits that depend on nothing else."""
    return sha256_hex(canonical_json([dataset, prompt, sample]))[:32]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
