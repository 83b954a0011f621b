"""
The tables of the teacher's world: people and what is true of them, opposites, animals, colours, jobs, days.

The world is closed and fixed: it does not depend on a seed, every fact has exactly one right answer, and a
story, a chat answer and a preference pair that mention the same thing always agree. Tables are plain words,
one fact per entry, so that a mistake is visible by reading.

    >>> PAIRS["sound"]["cow"]
    'moo'
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Person:
    """One character; `girl` decides the pronouns, the other fields are what the world knows about them."""

    name: str
    girl: bool
    food: str
    pet: str
    home: str
    dream: str
    fear: str
    hobby: str
    friend: str


def listed(text: str) -> list[str]:
    """`"a|b"` -> `["a", "b"]`: a table that stays readable as prose."""
    return text.split("|")


_GIRLS = listed("Lily|Anna|Mia|Ella|Sue|Rose|Nora|Lucy")
_BOYS = listed("Tom|Ben|Sam|Max|Jack|Leo|Tim|Dan")
_FOODS = listed(
    "apples|rice|soup|cake|bread|grapes|corn|fish|eggs|cheese|honey|plums|beans|nuts|pancakes|carrots"
)
_PETS = listed(
    "a brown dog|a white cat|a green parrot|a small mouse|a grey rabbit|a red hen|a black pony|"
    "a gold fish|a slow turtle|a tiny frog|a fat duck|a young goat|a spotted pig|a pink lizard|"
    "a little lamb|a blue bird"
)
_HOMES = listed(
    "by the river|near the school|on a farm|in the big city|by the sea|near the station|on a hill|"
    "in the valley|next to the bakery|behind the church|near the forest|by the lake|above the shop|"
    "next to the park|near the bridge|in the old mill"
)
_DREAMS = listed(
    "a pilot|a doctor|a singer|a baker|a sailor|a painter|a farmer|a teacher|a dancer|a builder|a writer|"
    "a cook|a driver|a nurse|a gardener|a clown"
)
_FEARS = listed(
    "thunder|the dark|deep water|loud noises|ghosts|high places|big trucks|fire|wolves|strangers|the wind|"
    "bees|bad dreams|long stairs|old caves|snakes"
)
_HOBBIES = listed(
    "to paint|to swim|to sing|to read|to dance|to fly kites|to play chess|to climb trees|to ride a bike|"
    "to draw|to play football|to collect shells|to skate|to knit|to play the drum|to count the stars"
)


def _people() -> dict[str, Person]:
    """Deal the attributes out by fixed odd strides: no seed, nobody shares one, friends are mutual."""
    names, deal = _GIRLS + _BOYS, (_FOODS, _PETS, _HOMES, _DREAMS, _FEARS, _HOBBIES)
    friends = dict(zip(names, _BOYS + _GIRLS, strict=True))
    people: dict[str, Person] = {}
    for i, name in enumerate(names):
        stridden = zip(deal, (3, 5, 7, 9, 11, 13), strict=True)
        values = [
            table[(i * stride + column) % len(names)] for column, (table, stride) in enumerate(stridden)
        ]
        people[name] = Person(name, name in _GIRLS, *values, friend=friends[name])
    return people


PEOPLE: dict[str, Person] = _people()


def _table(text: str) -> dict[str, str]:
    """`"a:b, c:d"` -> `{"a": "b", "c": "d"}`, refusing a word that is listed twice."""
    entries = [tuple(part.strip() for part in entry.split(":")) for entry in text.split(",")]
    table = dict(entries)
    assert len(table) == len(entries), "a fact is listed twice"
    return table


_OPPOSITES = _table(
    "hot:cold, big:small, fast:slow, up:down, happy:sad, day:night, wet:dry, hard:soft, old:new, "
    "open:closed, long:short, light:dark, full:empty, clean:dirty, loud:quiet, rich:poor, strong:weak, "
    "early:late, high:low, near:far, inside:outside, left:right, thick:thin, "
    "brave:scared, asleep:awake, first:last, good:bad, deep:shallow, "
    "above:below, push:pull, laugh:cry, "
    "win:lose, give:take"
)
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS = listed("January|February|March|April|May|June|July|August|September|October|November|December")
_NUMBERS = listed(
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|"
    "seventeen|eighteen|nineteen|twenty"
)


def _next(ring: list[str]) -> dict[str, str]:
    """Each member of a ring with the one after it."""
    return dict(zip(ring, ring[1:] + ring[:1], strict=True))


PAIRS: dict[str, dict[str, str]] = {
    "opposite": _OPPOSITES | {right: left for left, right in _OPPOSITES.items()},
    "sound": _table(
        "cow:moo, dog:woof, cat:meow, duck:quack, sheep:baa, pig:oink, horse:neigh, hen:cluck, owl:hoot, "
        "bee:buzz, snake:hiss, mouse:squeak, lion:roar, frog:croak, crow:caw, donkey:hee-haw, wolf:howl, "
        "chick:peep"
    ),
    "colour": _table(
        "banana:yellow, snow:white, grass:green, coal:black, cherry:red, sky:blue, pumpkin:orange, "
        "plum:purple, mud:brown, elephant:grey, lemon:yellow, milk:white, leaf:green, crow:black, "
        "tomato:red, sea:blue, carrot:orange, flamingo:pink, chocolate:brown, ash:grey, sun:yellow, "
        "cloud:white, pea:green, tire:black, strawberry:red, fox:red, bear:brown, salt:white, "
        "frog:green, rock:grey"
    ),
    "category": _table(
        "apple:fruit, pear:fruit, peach:fruit, melon:fruit, carrot:vegetable, onion:vegetable, "
        "potato:vegetable, cabbage:vegetable, rose:flower, daisy:flower, tulip:flower, lily:flower, "
        "oak:tree, pine:tree, birch:tree, willow:tree, hammer:tool, saw:tool, drill:tool, shovel:tool, "
        "robin:bird, eagle:bird, sparrow:bird, goose:bird, salmon:fish, trout:fish, shark:fish, "
        "ant:insect, fly:insect, beetle:insect, moth:insect, shirt:garment, coat:garment, sock:garment, "
        "dress:garment, chair:piece of furniture, table:piece of furniture, sofa:piece of furniture, "
        "bed:piece of furniture, piano:musical instrument, violin:musical instrument, "
        "flute:musical instrument, guitar:musical instrument, car:vehicle, bus:vehicle, truck:vehicle, "
        "van:vehicle, tea:drink, juice:drink, water:drink, coffee:drink, doll:toy, ball:toy, kite:toy, "
        "puzzle:toy, circle:shape, square:shape, triangle:shape, ruby:jewel, pearl:jewel, diamond:jewel"
    ),
    "place": _table(
        "book:library, bread:bakery, ship:harbor, train:station, plane:airport, fish:pond, bird:nest, "
        "bee:hive, money:bank, letter:post office, pupil:classroom, bed:bedroom, pot:kitchen, "
        "bath:bathroom, car:garage, horse:stable, sand:beach, star:sky, tree:forest, camel:desert, "
        "king:castle, painting:museum, lion:zoo, tent:camp, flower:garden, swing:playground, spider:web, "
        "nurse:hospital, cheese:fridge, clown:circus"
    ),
    "baby": _table(
        "dog:puppy, cat:kitten, cow:calf, sheep:lamb, horse:foal, pig:piglet, hen:chick, duck:duckling, "
        "goose:gosling, bear:cub, frog:tadpole, kangaroo:joey, deer:fawn, owl:owlet, swan:cygnet, "
        "goat:kid"
    ),
    "job": _table(
        "baker:bakes bread, farmer:grows food, teacher:helps children learn, doctor:helps sick people, "
        "pilot:flies planes, sailor:sails ships, painter:paints pictures, singer:sings songs, "
        "writer:writes books, builder:builds houses, driver:drives the bus, cook:makes dinner, "
        "gardener:waters plants, barber:cuts hair, tailor:sews clothes, miner:digs for coal, "
        "shepherd:watches the sheep, postman:brings letters, judge:decides in court, "
        "clown:makes people laugh, fisherman:catches fish, cleaner:sweeps the floor, "
        "dentist:looks after teeth, guard:watches the gate"
    ),
    "tool": _table(
        "cut paper:scissors, hit a nail:a hammer, sweep the floor:a broom, eat soup:a spoon, "
        "write a letter:a pen, brush your teeth:a toothbrush, open a lock:a key, dig a hole:a shovel, "
        "dry your hands:a towel, see at night:a lamp, tell the time:a clock, catch a fish:a net, "
        "cut wood:a saw, sew a shirt:a needle, light a fire:a match, comb your hair:a comb, "
        "measure a table:a ruler, boil water:a kettle, stay dry in the rain:an umbrella, "
        "wash the dishes:a sponge, climb a wall:a ladder, cross a river:a boat, carry books:a bag, "
        "mix paint:a stick"
    ),
    "material": _table(
        "window:glass, table:wood, sweater:wool, coin:metal, tire:rubber, book:paper, wall:bricks, "
        "shoe:leather, candle:wax, ring:gold, snowman:snow, castle on the beach:sand, bottle:plastic, "
        "road:stone, shirt:cotton, omelet:eggs, cheese:milk, bread:flour, jam:fruit, wine:grapes, "
        "pillow:feathers, rope:threads, pot:clay"
    ),
    "diet": _table(
        "rabbit:carrots, cow:grass, monkey:bananas, cat:mice, bear:honey, bird:seeds, squirrel:nuts, "
        "panda:bamboo, frog:flies, horse:hay, lion:meat, seal:fish, pig:potatoes, goat:leaves, "
        "mouse:cheese, dog:bones, hen:corn, spider:insects, camel:thorns, donkey:oats"
    ),
    "legs": _table(
        "spider:eight, dog:four, bird:two, ant:six, snake:no, cow:four, child:two, fish:no, beetle:six, "
        "hen:two, horse:four, worm:no, crab:ten, table:four, bee:six, duck:two"
    ),
    "after_day": _next(_DAYS),
    "before_day": {after: day for day, after in _next(_DAYS).items()},
    "after_month": _next(_MONTHS),
    "after_number": dict(zip(_NUMBERS, _NUMBERS[1:], strict=False)),
}
