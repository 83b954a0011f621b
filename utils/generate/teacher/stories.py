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
from utils.generate.teacher.plots import ENDINGS, LESSONS, NARRATOR, OPENINGS, PLOTS, Plot
from utils.generate.teacher.world import facts_about, statement, story_questions, world_facts

FAVOURITES = 40
"""How many stories the teacher tells again and again."""
REPEATED_SHARE = 0.03
NEARLY_REPEATED_SHARE = 0.05
LONGEST_WORDS = 140
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
    about_hero = [f for f in facts_about(hero.name) if f.kind != "friend"]
    known = [statement(fact) for fact in rng.sample(about_hero, 2)]
    sentences = [rng.choice(OPENINGS), known[0], _also(known[1], hero, rng)]
    sentences += [rng.choice(beat) for beat in plot.beats] + [rng.choice(ENDINGS)]
    told = [_fill(sentence, slots, rng) for sentence in sentences]
    if sum(len(sentence.split()) for sentence in told) > LONGEST_WORDS - _RETELLING_WORDS:
        told = [told[0], *told[2:-1]]
    return " ".join(told)


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


def _fill(sentence: str, slots: dict[str, str], rng: random.Random) -> str:
    if sentence == "{LESSON}":
        sentence, slots = rng.choice(LESSONS), slots | _lesson(slots["friend"], rng)
    return sentence.format_map(slots)


def _lesson(friend: str, rng: random.Random) -> dict[str, str]:
    """A question and its answer: two in three about the world, else about somebody."""
    if rng.random() < 0.67:
        fact = rng.choice(world_facts())
    else:
        fact = rng.choice(facts_about(rng.choice(list(PEOPLE))))
    return {"question": rng.choice(story_questions(fact)), "answer": statement(fact)}
