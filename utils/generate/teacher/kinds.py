# ruff: noqa: E501 - phrasings are a table; wrapping them hides which belong together
"""
The kinds of facts and every way to ask about them: text only, no logic.

`{s}` is the subject, `{o}` the object, `{a s}` has an article, `{A s}` starts a sentence with it.

    >>> KINDS["sound"].answer
    '{A s} says {o}.'
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """How one kind of fact is asked about and stated: `{s}` is the subject, `{o}` the object."""

    topic: str
    answer: str
    questions: tuple[str, ...]
    in_stories: tuple[str, ...]


def _kind(topic: str, answer: str, questions: str, in_stories: str) -> Kind:
    return Kind(topic, answer, tuple(questions.split("|")), tuple(in_stories.split("|")))


KINDS: dict[str, Kind] = {
    "opposite": _kind(
        "opposites",
        "The opposite of {s} is {o}.",
        "What is the opposite of {s}?|Tell me the opposite of {s}.|Which word is the opposite of {s}?|"
        "Please name the opposite of {s}.|What is the opposite word for {s}?|Can you tell me the opposite of {s}?|"
        "Give me the opposite of the word {s}.|I need the opposite of {s}.",
        "Do you know the opposite of {s}?|Who knows the opposite of {s}?",
    ),
    "sound": _kind(
        "animal sounds",
        "{A s} says {o}.",
        "What does {a s} say?|What sound does {a s} make?|Which sound comes from {a s}?|Tell me what {a s} says.|"
        "How does {a s} sound?|What do you hear from {a s}?|Can you make the sound of {a s}?|"
        "Please tell me the sound of {a s}.",
        "Do you know what {a s} says?|Who knows what sound {a s} makes?",
    ),
    "colour": _kind(
        "colours of things",
        "The {s} is {o}.",
        "What colour is the {s}?|Which colour does the {s} have?|Tell me the colour of the {s}.|"
        "What is the colour of the {s}?|Can you name the colour of the {s}?|Please tell me what colour the {s} is.|"
        "How would you paint the {s}?|The {s} has which colour?",
        "Do you know the colour of the {s}?|Who knows what colour the {s} is?",
    ),
    "category": _kind(
        "kinds of things",
        "{A s} is {a o}.",
        "What is {a s}?|What kind of thing is {a s}?|Tell me what {a s} is.|Which group does {a s} belong to?|"
        "Can you say what {a s} is?|Please explain what {a s} is.|How would you describe {a s}?|"
        "To what group would you count {a s}?",
        "Do you know what {a s} is?|Who can say what {a s} is?",
    ),
    "place": _kind(
        "places where things are",
        "You can find {a s} in the {o}.",
        "Where can I find {a s}?|Where would you look for {a s}?|In which place is {a s}?|Where is {a s} found?|"
        "Tell me where to find {a s}.|Where should I go to see {a s}?|Can you tell me where {a s} is?|"
        "Please tell me where I can find {a s}.",
        "Do you know where to find {a s}?|Who knows where {a s} is?",
    ),
    "baby": _kind(
        "baby animals",
        "A baby {s} is called {a o}.",
        "What is a baby {s} called?|What do you call a baby {s}?|Tell me the word for a baby {s}.|"
        "How is a young {s} called?|Which word means a baby {s}?|Can you name the baby of {a s}?|"
        "Please name a baby {s}.|What is the name for a young {s}?",
        "Do you know the word for a baby {s}?|Who knows what a baby {s} is called?",
    ),
    "job": _kind(
        "jobs and work",
        "{A s} {o}.",
        "What does {a s} do?|What is the work of {a s}?|Tell me what {a s} does.|What is the job of {a s}?|"
        "What does {a s} do all day?|Can you tell me what {a s} does?|Please explain the job of {a s}.|"
        "What kind of work does {a s} do?",
        "Do you know what {a s} does?|Who knows what {a s} does at work?",
    ),
    "tool": _kind(
        "useful tools",
        "You need {o} to {s}.",
        "What do I need to {s}?|What do you use to {s}?|Which thing helps me to {s}?|How can I {s}?|"
        "I want to {s}. What do I need?|Tell me what I need to {s}.|What should I take to {s}?|"
        "Please tell me how to {s}.",
        "Do you know what you need to {s}?|Who knows what you must have to {s}?",
    ),
    "material": _kind(
        "what things are made of",
        "{A s} is made of {o}.",
        "What is {a s} made of?|What do you need to make {a s}?|Tell me what {a s} is made of.|"
        "From what do people make {a s}?|Which material is in {a s}?|Can you tell me what {a s} is made of?|"
        "Of what is {a s} made?|Please name the material of {a s}.",
        "Do you know what {a s} is made of?|Who knows what is in {a s}?",
    ),
    "diet": _kind(
        "what animals eat",
        "{A s} eats {o}.",
        "What does {a s} eat?|What is the food of {a s}?|What should I feed {a s}?|Tell me what {a s} eats.|"
        "Which food does {a s} like?|What do you give {a s} to eat?|Can you tell me what {a s} eats?|"
        "Please tell me the food of {a s}.",
        "Do you know what {a s} eats?|Who knows what {a s} likes to eat?",
    ),
    "legs": _kind(
        "counting legs",
        "{A s} has {o} legs.",
        "How many legs does {a s} have?|What is the number of legs of {a s}?|Tell me how many legs {a s} has.|"
        "Can you count the legs of {a s}?|Please count the legs of {a s}.|With how many legs does {a s} walk?|"
        "How many legs can you see on {a s}?|Count the legs of {a s}.",
        "Do you know how many legs {a s} has?|Who knows how many legs {a s} has?",
    ),
    "after_day": _kind(
        "days of the week",
        "The day after {s} is {o}.",
        "Which day comes after {s}?|What day is it after {s}?|Today is {s}. What day is tomorrow?|"
        "Tell me the day after {s}.|What is the day after {s}?|Which day follows {s}?|"
        "Can you name the day after {s}?|Please name the day that follows {s}.",
        "Do you know the day after {s}?|Who knows which day comes after {s}?",
    ),
    "before_day": _kind(
        "days of the week",
        "The day before {s} is {o}.",
        "Which day comes before {s}?|What day is it before {s}?|Today is {s}. What day was yesterday?|"
        "Tell me the day before {s}.|What is the day before {s}?|Can you name the day before {s}?|"
        "Please name the day that comes before {s}.|Which day is just before {s}?",
        "Do you know the day before {s}?|Who knows which day comes before {s}?",
    ),
    "after_month": _kind(
        "months of the year",
        "The month after {s} is {o}.",
        "Which month comes after {s}?|What month is it after {s}?|Tell me the month after {s}.|"
        "What is the month after {s}?|Which month follows {s}?|Can you name the month after {s}?|"
        "Please name the month that follows {s}.|It is {s} now. What is the next month?",
        "Do you know the month after {s}?|Who knows which month comes after {s}?",
    ),
    "after_number": _kind(
        "counting",
        "The number after {s} is {o}.",
        "Which number comes after {s}?|What number is it after {s}?|Tell me the number after {s}.|"
        "What is the number after {s}?|Which number follows {s}?|Can you name the number after {s}?|"
        "Please name the number that follows {s}.|I count to {s}. What is the next number?",
        "Do you know the number after {s}?|Who knows which number comes after {s}?",
    ),
    "food": _kind(
        "what people like to eat",
        "{s} likes {o}.",
        "What does {s} like to eat?|What food does {s} like?|Tell me what {s} likes to eat.|"
        "Which food makes {s} happy?|What should I cook for {s}?|What would {s} eat first?|"
        "Can you tell me the food that {s} likes?|Please tell me what to cook for {s}.",
        "Do you know what {s} likes to eat?|What does our {s} like to eat?",
    ),
    "pet": _kind(
        "people and their pets",
        "{s} has {o}.",
        "Which pet does {s} have?|What pet does {s} have?|Tell me about the pet of {s}.|"
        "Which animal lives with {s}?|What animal does {s} have?|Can you name the pet of {s}?|"
        "Please tell me which pet {s} has.|What kind of pet does {s} have?",
        "Do you know which pet {s} has?|What animal does our {s} have?",
    ),
    "home": _kind(
        "where people live",
        "{s} lives {o}.",
        "Where does {s} live?|Where is the home of {s}?|Tell me where {s} lives.|Where is the house of {s}?|"
        "Where can I visit {s}?|Can you tell me where {s} lives?|Please tell me where to find the house of {s}.|"
        "In which place does {s} live?",
        "Do you know where {s} lives?|Where does our {s} live?",
    ),
    "dream": _kind(
        "what people want to be",
        "{s} wants to be {o}.",
        "What does {s} want to be?|What is the dream of {s}?|Which job does {s} want?|"
        "What will {s} be one day?|Tell me what {s} wants to be.|Can you tell me the dream of {s}?|"
        "Please tell me which job {s} wants.|What would {s} like to be later?",
        "Do you know what {s} wants to be?|What does our {s} want to be?",
    ),
    "fear": _kind(
        "what people are afraid of",
        "{s} is afraid of {o}.",
        "What is {s} afraid of?|Of what is {s} afraid?|What scares {s}?|Tell me what {s} is afraid of.|"
        "What does {s} fear most?|Can you tell me what scares {s}?|Please tell me what {s} fears.|"
        "What makes {s} run away?",
        "Do you know what {s} is afraid of?|What is our {s} afraid of?",
    ),
    "hobby": _kind(
        "what people do for fun",
        "{s} loves {o}.",
        "What does {s} love to do?|What does {s} do for fun?|What is the hobby of {s}?|"
        "Tell me what {s} does for fun.|How does {s} spend the free time?|Can you name the hobby of {s}?|"
        "Please tell me what {s} does after school.|What does {s} do on a free day?",
        "Do you know what {s} loves to do?|What does our {s} love to do?",
    ),
    "friend": _kind(
        "people and their friends",
        "{s} is the best friend of {o}.",
        "Who is the best friend of {o}?|Tell me the best friend of {o}.|Which child is the best friend of {o}?|"
        "Who plays with {o} every day?|Can you name the best friend of {o}?|Please name the friend of {o}.|"
        "With whom does {o} play?|What is the name of the friend of {o}?",
        "Do you know the best friend of {o}?|Who is the friend of our {o}?",
    ),
}
