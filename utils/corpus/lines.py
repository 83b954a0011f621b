"""
What stage 20 says on the terminal when it is done: the numbers of stats.json, one line each.

    books     4,277 read    4,101 kept   13.9 M tokens (estimated)   near_duplicate 121, too_few_words 31,
    language 24
    mix       16.0 M tokens: books 12.0 M (75.0 %), teacher 4.0 M (25.0 %), as weighted 3 : 1; over budget
    3,108 documents
    split     train 21,200 documents, val 433 documents in 401 groups
"""

from collections import Counter


def counted(stats: dict) -> str:
    """How tokens were counted, in the word that stands beside every number of them."""
    return "exact" if stats["tokens"]["count"] == "tokenizer" else "estimated"


def millions(tokens: int) -> str:
    """A number of tokens as people read it."""
    return f"{tokens / 1e6:,.1f} M" if tokens >= 1_000_000 else f"{tokens:,}"


def source_line(source: dict, how: str) -> str:
    """One line about a source; reasons that differ only behind a colon are one."""
    reasons: Counter[str] = Counter()
    for reason, count in source["removed"].items():
        reasons[reason.split(":")[0]] += count
    removed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
    tokens = f"{millions(source['kept_tokens'])} tokens ({how})"
    return f"{source['read']:>7,} read  {source['kept']:>7,} kept   {tokens}   {removed}".rstrip()


def mix_line(stats: dict) -> str:
    """What the corpus is made of."""
    mix = stats["mix"]
    parts = ", ".join(
        f"{name} {millions(row['tokens'])} ({row['percent']:.1f} %)" for name, row in mix["sources"].items()
    )
    text = f"{millions(mix['tokens'])} tokens: {parts}"
    if mix["budget_tokens"] is None:
        return text
    weights = " : ".join(f"{row['weight']:g}" for row in mix["sources"].values())
    text += f", as weighted {weights}"
    if mix["redistributed"]:
        text += f", but for {', '.join(mix['redistributed'])} (short, redistributed)"
    return f"{text}; over budget {mix['over_budget']:,} documents"


def split_line(stats: dict) -> str:
    """How the documents are split."""
    train, val = stats["splits"]["train"], stats["splits"]["val"]
    groups = f"{val['documents']:,} documents in {val['groups']:,} groups"
    return f"train {train['documents']:,} documents, val {groups}"
