"""
Stories for small children: a plot, a hero of the teacher's world, and facts that are always true there.

Every story has 60 to 140 words. About 3 % are told again word for word and 5 % again with one more sentence,
as large models do, so that deduplication downstream has something to find.

    >>> tell("Tom loses a red kite in the park", random.Random(1))[:40]
    'There once was a little boy called Tom. '
"""

import random
import re
from functools import cache

from utils.generate.teacher.facts import PEOPLE, Person
from utils.generate.teacher.plots import ENDINGS, LESSON, LESSON_OPENINGS, NARRATOR, OPENINGS, PLOTS, Plot
from utils.generate.teacher.world import facts, facts_about, statement, story_questions

FAVOURITES = 40
"""How many stories the teacher tells again and again."""
REPEATED_SHARE = 0.03
NEARLY_REPEATED_SHARE = 0.05
LONGEST_WORDS = 140
MOST_LESSONS = 3
WISH = re.compile(r"\b(?:story|text)\b[^\n]*\"([^\"\n]+)\"", re.IGNORECASE)
"""A request for a story; its group is the idea."""
_RETELLING_WORDS = max(len(sentence.split()) for sentence in NARRATOR["weather"])


def themes() -> list[str]:
    """The subtopics of stories."""
    return list(PLOTS)


def idea(theme: str, rng: random.Random) -> str:
    """One story idea of a theme, for example `Tom loses a red kite in the park`."""
    plot = PLOTS[theme]
    thing = _described(rng.choice(NARRATOR["adjective"]), rng.choice(plot.things))
    return f"{rng.choice(list(PEOPLE))} {plot.verb} {thing} {rng.choice(NARRATOR['where'])}"


def tell(wish: str, rng: random.Random) -> str:
    """The story for an idea; an idea that the teacher does not understand gives a story of its own choice."""
    luck = rng.random()
    if luck < REPEATED_SHARE:
        return _favourite(rng.randrange(FAVOURITES))
    if luck < REPEATED_SHARE + NEARLY_REPEATED_SHARE:
        return _retold(_favourite(rng.randrange(FAVOURITES)), rng)
    return _tell(wish, rng)


def share_of_idea(wish: str, story: str) -> float | None:
    """How much of what a story must have is there, 0 to 1; None for an idea that is not the teacher's."""
    understood = _understand(wish)
    if not understood:
        return None
    _, hero, slots = understood
    num_words = len(story.split())
    present = [hero.name in story, slots["thing"] in story, slots["where"] in story]
    present += [50 <= num_words <= 160, story.rstrip('"').endswith((".", "!", "?"))]
    present += [any(statement(fact) in story for fact in facts_about(hero.name))]
    return sum(present) / len(present)


@cache
def _favourite(number: int) -> str:
    rng = random.Random(f"favourite {number}")
    return _tell(idea(rng.choice(themes()), rng), rng)


def _retold(story: str, rng: random.Random) -> str:
    """The same story with one more sentence somewhere: more than 0.8 of its five-word runs stay."""
    stops = [found.end() for found in re.finditer(r"[a-z]\. (?=[A-Z])", story)]
    place = rng.choice(stops)
    return f"{story[:place]}{rng.choice(NARRATOR['weather'])} {story[place:]}"


def _described(adjective: str, thing: str) -> str:
    return f"{'an' if adjective[0] in 'aeiou' else 'a'} {adjective} {thing}"


@cache
def _idea_patterns() -> list[tuple[re.Pattern[str], Plot]]:
    return [(re.compile(rf"^(\w+) {plot.verb} (an? \w+ (\w+)) (\w+ .+)$"), plot) for plot in PLOTS.values()]


def _understand(wish: str) -> tuple[Plot, Person, dict[str, str]] | None:
    for pattern, plot in _idea_patterns():
        found = pattern.match(wish.strip().rstrip("."))
        if found and found[1] in PEOPLE:
            return plot, PEOPLE[found[1]], {"athing": found[2], "thing": found[3], "where": found[4]}
    return None


def _tell(wish: str, rng: random.Random) -> str:
    understood = _understand(wish) or _understand(idea(rng.choice(themes()), rng))
    assert understood is not None, "the teacher cannot read its own idea"
    plot, hero, slots = understood
    slots |= _cast(hero, rng)
    about_hero = [fact for fact in facts_about(hero.name) if fact.kind != "friend"]
    first, second = (statement(fact) for fact in rng.sample(about_hero, 2))
    told = [rng.choice(OPENINGS).format_map(slots), first, _also(second, hero, rng)]
    told += _beats(plot, slots, LONGEST_WORDS - _RETELLING_WORDS - _words(told), rng)
    ending = rng.choice(ENDINGS).format_map(slots)
    return " ".join([*told, ending] if _words([*told, ending]) <= LONGEST_WORDS - _RETELLING_WORDS else told)


def _beats(plot: Plot, slots: dict[str, str], room: int, rng: random.Random) -> list[str]:
    """The plot in at most `room` words: what it needs, questions and answers, then what still fits."""
    filled = slots | {"LESSON": ""}
    beats = [rng.choice(beat).format_map(filled) for beat in plot.beats]
    kept = {number for number in range(len(beats)) if number not in plot.optional}
    room -= _words([beats[number] for number in kept])
    lesson = plot.beats.index(("{LESSON}",))
    beats[lesson] = _lessons(slots, room, rng)
    room -= _words([beats[lesson]])
    for number in rng.sample(sorted(plot.optional), len(plot.optional)):
        if _words([beats[number]]) <= room:
            kept.add(number)
            room -= _words([beats[number]])
    return [beats[number] for number in sorted(kept)]


def _words(sentences: list[str]) -> int:
    return len(" ".join(sentences).split())


def _also(sentence: str, hero: Person, rng: random.Random) -> str:
    """The second thing said about the hero: half of the time with a pronoun, as people write."""
    pronoun = "She" if hero.girl else "He"
    return rng.choice((sentence, sentence.replace(hero.name, pronoun, 1)))


def _cast(hero: Person, rng: random.Random) -> dict[str, str]:
    he, him, his = ("she", "her", "her") if hero.girl else ("he", "him", "his")
    elder = f"{his} {rng.choice(NARRATOR['elder'])}"
    slots = {
        "hero": hero.name,
        "friend": hero.friend,
        "child": "girl" if hero.girl else "boy",
        "other": "boy" if hero.girl else "girl",
        "he": he,
        "him": him,
        "his": his,
        "He": he.capitalize(),
        "His": his.capitalize(),
        "elder": elder,
        "Elder": elder.capitalize(),
        "weather": rng.choice(NARRATOR["weather"]),
        "feeling": rng.choice(NARRATOR["feeling"]),
    }
    slots["when"] = rng.choice(NARRATOR["when"]).format_map(slots)
    return slots


def _lessons(slots: dict[str, str], room: int, rng: random.Random) -> str:
    """Questions and answers in one fixed form, so that a small model soon sees that they belong together."""
    people = [slots["hero"], slots["friend"], slots["Elder"]]
    told = [rng.choice(LESSON_OPENINGS)]
    for _ in range(MOST_LESSONS):
        asker, answerer = rng.sample(people, 2)
        lesson = LESSON.format(asker=asker, answerer=answerer, **_lesson(rng))
        if _words([*told, lesson]) <= room:
            told.append(lesson)
    return " ".join(told)


def _lesson(rng: random.Random) -> dict[str, str]:
    """A question and its answer, every fact of the world equally often."""
    fact = rng.choice(facts())
    return {"question": rng.choice(story_questions(fact)), "answer": statement(fact)}
