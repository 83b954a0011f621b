# ruff: noqa: E501 - one beat per line: wrapped, the sentences of a beat could not be compared
"""
The plots of the teacher's stories: text only, no logic.

A plot is an idea and a list of beats. Each line of `beats` is one beat, `|` separates the sentences it may
use. Slots: {hero} {He} {he} {him} {his}, {friend} (the hero's best friend), {elder} {Elder}, {thing} (bare
noun), {athing} (article, adjective, noun), {where}, {when}, {weather}, {feeling}, {LESSON} (a question about
the world, and its answer).

    >>> PLOTS["lost things"].verb
    'loses'
"""

from dataclasses import dataclass

from utils.generate.teacher.facts import listed


@dataclass(frozen=True)
class Plot:
    """One kind of story: `verb` is what the hero does with the thing, `optional` are beats to leave out."""

    verb: str
    things: tuple[str, ...]
    beats: tuple[tuple[str, ...], ...]
    optional: frozenset[int]


def _plot(verb: str, things: str, beats: str) -> Plot:
    lines = [line.strip() for line in beats.strip().splitlines()]
    optional = frozenset(number for number, line in enumerate(lines) if line.startswith("~"))
    sentences = tuple(tuple(line.removeprefix("~ ").split("|")) for line in lines)
    return Plot(verb, tuple(things.split()), sentences, optional)


NARRATOR = {
    "adjective": listed(
        "red|blue|green|yellow|big|small|old|new|shiny|round|soft|pretty|strange|golden|striped|tiny|"
        "heavy|wooden|lovely|funny|plain|dusty|bright|smooth"
    ),
    "where": listed(
        "in the park|in the garden|at the beach|near the pond|in the forest|behind the barn|at school|"
        "on the hill|in the kitchen|by the river|at the market|under the bridge|in the attic|"
        "in the meadow|next to the fountain|in the yard|at the station|on the playground|beside the road|"
        "in the village"
    ),
    "when": listed(
        "One day|One morning|One afternoon|One evening|On a Sunday|Last summer|Last winter|After school|"
        "Before lunch|In the spring|During the holidays|On {his} birthday"
    ),
    "weather": listed(
        "The sun was shining.|It was a cold day.|The wind was blowing.|It was warm and quiet.|"
        "Dark clouds hung in the sky.|There was snow on the roofs.|The birds were singing.|"
        "A light rain was falling.|The air smelled of grass.|It was very hot outside."
    ),
    "feeling": ["happy", "excited", "curious", "cheerful", "proud", "hopeful", "calm", "merry", "glad"],
    "elder": listed("mother|father|grandmother|grandfather|aunt|uncle|teacher|neighbor|sister|brother"),
}

OPENINGS = (
    "Once upon a time there was a {child} named {hero}.",
    "There once was a little {child} called {hero}.",
    "{hero} was a kind {child} who always said hello.",
    "In a small town there lived a {child} named {hero}.",
    "This is a story about a {child} named {hero}.",
    "Everybody in the street knew a {child} called {hero}.",
)

LESSON = '{asker} asked, "{question}" {answerer} said, "{answer}"'
LESSON_OPENINGS = (
    "They played the asking game.",
    "On the way they asked each other questions.",
    "Then it was time for some questions.",
    "They liked to ask each other questions.",
)

ENDINGS = listed(
    "It was a very good day.|That night {hero} slept well.|{hero} never forgot that day.|"
    "And so the day came to an end.|From then on they were even better friends.|"
    "{hero} could not wait to tell everyone.|In the end everybody was smiling.|"
    "{hero} went to bed with a warm heart.|They laughed all the way home.|What a day it had been!"
)

PLOTS: dict[str, Plot] = {
    "lost things": _plot(
        "loses",
        "kite ball hat scarf coin doll glove button bell cap whistle ribbon marble bracelet umbrella",
        """
        {when} {he} played with {athing} {where}.|{when} {hero} took {athing} for a walk {where}.
        ~ {weather}
        But when {he} looked down, the {thing} was gone.|Suddenly the {thing} was not there anymore.|Then the {thing} slipped away, and nobody saw it fall.
        {hero} searched everywhere, but {he} could not find it.|{He} looked under every bush and began to cry.|{He} felt very sad and sat down on a stone.
        {LESSON}
        Then {friend} came running and offered to help.|{friend} heard {him} and said, "Do not worry, we will look together."
        ~ They followed the path back, step by step.|They looked behind each tree and under each bench.|They asked the man with the cart and the lady with the basket.
        At last {friend} saw the {thing} in a puddle.|At last they found the {thing} on top of a fence.|At last a little dog brought the {thing} in its mouth.
        ~ "Thank you!" said {hero} and hugged {friend}.|{hero} was so {feeling} that {he} jumped up and down.|{hero} promised to take better care of it.
        """,
    ),
    "found things": _plot(
        "finds",
        "box key map shell stone feather egg bottle lantern mirror letter purse watch crown chest",
        """
        {when} {hero} was walking {where} and found {athing}.|{when} {he} saw {athing} lying {where}.
        ~ {weather}
        ~ "Who could have left this here?" {he} wondered.|{He} picked it up and turned it around.|{He} had never seen such a {thing} before.
        {LESSON}
        {hero} wanted to keep the {thing}, but {he} knew it was not {his} own.|It was so nice that {he} wanted to hide it in {his} pocket.
        {Elder} said, "Somebody may be missing it."|"We should ask who it belongs to," said {friend}.
        So they knocked on every door in the street.|So they put a note on the wall of the shop.|So they asked at the town hall.
        An old woman opened and cried, "That is my {thing}!"|A tall man came the next day and was very thankful.|It belonged to a boy from the other side of town.
        ~ As a reward {hero} got a slice of pie.|{hero} was {feeling}, because {he} had done the right thing.|"You are an honest {child}," said {elder}.
        """,
    ),
    "building things": _plot(
        "builds",
        "boat tower cart raft swing tent robot fence wagon bridge ladder hut sled windmill table",
        """
        {when} {hero} had a great idea and wanted to build {athing} {where}.|{when} {he} began to build {athing} {where}.
        ~ {He} needed boards, nails and a lot of rope.|{He} drew a plan on a big sheet of paper.|{He} carried wood and string from the shed.
        {friend} wanted to help and brought some tools.|"May I help you?" asked {friend}.
        {LESSON}
        ~ They worked hard until the sun went down.|They hammered and painted for many hours.|First they made the bottom and then the top.
        But the first {thing} fell apart with a loud crash.|Then a piece broke, and they had to start again.|But the {thing} was crooked and shook in the wind.
        "Never give up," said {elder}.|{hero} took a deep breath and tried once more.|"We can fix it," said {friend}.
        In the end the {thing} stood firm and strong.|At last the {thing} was ready, and it looked wonderful.
        ~ Everyone came to see it and clapped.|{hero} felt {feeling} and a little tired.|They gave it a name and had a party.
        """,
    ),
    "baking and cooking": _plot(
        "bakes",
        "pie tart muffin pudding pizza waffle biscuit roll bun cookie loaf cupcake",
        """
        {when} {hero} wanted to bake {athing} {where}.|{when} {he} decided to make {athing} for everyone {where}.
        {He} mixed flour, butter and sugar in a bowl.|{He} put on an apron and washed {his} hands.|{He} took the milk and a big spoon.
        {LESSON}
        ~ There was flour on the floor and even on {his} nose.|The dough was sticky and the bowl was full.|{He} stirred and stirred until {his} arm hurt.
        Then the {thing} went into the oven.|{Elder} helped {him} with the hot oven.
        ~ Soon the whole house smelled sweet.|After an hour the {thing} was brown and crisp.
        But {hero} had forgotten the salt!|But one side was a bit burned.|But the {thing} was still too hot to eat.
        "It tastes great anyway," said {friend}.|{friend} took a bite and grinned.|They waited, and then they shared it with {friend}.
        ~ Not a crumb was left on the plate.|{hero} was {feeling} and wrote down the recipe.|{Elder} asked for a second piece.
        """,
    ),
    "meeting animals": _plot(
        "meets",
        "hedgehog squirrel badger swan raccoon pigeon otter beaver deer hamster kitten puppy lamb turkey",
        """
        {when} {hero} met {athing} {where}.|{when} {athing} sat {where} and looked at {hero}.
        ~ {weather}
        The {thing} seemed to be lost and hungry.|The {thing} had a thorn in its foot.|The {thing} was shy and hid behind a log.
        ~ {hero} moved slowly and spoke with a gentle voice.|"Do not be afraid," {he} whispered.|{He} knelt down and held out {his} hand.
        {LESSON}
        {He} gave the {thing} some water and a few crumbs.|{friend} brought an old blanket and a dish of water.
        ~ Little by little the {thing} came closer.|Soon the {thing} began to trust them.|After a while it let {him} touch its back.
        When evening came, the {thing} ran back to its family.|Then its mother called, and the {thing} hurried away.|The next day the {thing} was well again.
        {hero} waved until it was out of sight.|{hero} was {feeling} to have a new friend.|"Come back soon!" called {hero}.
        """,
    ),
    "broken things": _plot(
        "breaks",
        "cup vase plate lamp chair clock pot jug bowl window teapot flute picture",
        """
        {when} {hero} ran around {where} and broke {athing}.|{when} {he} threw a ball {where} and hit {athing}.
        The pieces lay all over the ground.|There was a loud noise, and then it was silent.
        ~ {hero} was frightened and wanted to hide.|{His} face turned red and {his} knees were shaking.|{He} did not know what to do.
        {friend} said, "You should tell the truth."|"It was an accident," said {friend}. "Just say it."
        {LESSON}
        So {hero} went to {elder} and told everything.|With tears in {his} eyes {he} said, "I broke the {thing}. I am sorry."
        {Elder} was not angry.|{Elder} sighed and then smiled.
        ~ "Thank you for being honest," said {elder}.|"Things can be mended," said {elder}.
        Together they glued the {thing} piece by piece.|They saved money and bought another {thing}.|They swept the floor and drank some tea.
        ~ {hero} felt light and {feeling} again.|From that day on {hero} was more careful.
        """,
    ),
    "growing plants": _plot(
        "plants",
        "seed bulb bush sunflower pumpkin tomato bean tree vine fern herb berry",
        """
        {when} {hero} planted {athing} {where}.|{when} {elder} gave {hero} {athing} to plant {where}.
        ~ {He} made a deep hole and covered it with earth.|{He} put a stick beside it with {his} name.
        Every day {he} watered the {thing} and waited.|{He} visited the {thing} each morning before breakfast.
        {LESSON}
        But for a long time nothing happened.|Days passed, and the ground stayed bare.|A hungry snail came and ate the first leaf.
        "Be patient," said {elder}.|"Good things need time," said {friend}.|{friend} helped {him} to pull out the weeds.
        ~ {weather}
        Then a green tip came out of the earth.|One day there was a bud, and then another.|After the rain the {thing} grew and grew.
        In the autumn it was taller than {hero}.|Soon bees and butterflies came to visit.|It was the finest {thing} in the whole street.
        ~ {hero} was {feeling} and showed it to {friend}.|{hero} gave a part of it to {friend}.
        """,
    ),
    "sharing things": _plot(
        "shares",
        "sandwich pear orange melon sweet drink pie cookie peach picnic pretzel candy",
        """
        {when} {hero} had {athing} and sat down {where}.|{when} {hero} carried {athing} in a basket {where}.
        ~ {weather}
        A new {other} from school sat alone on a bench.|A small {other} stood there and looked hungry.
        ~ {hero} thought about it, because the {thing} looked so good.|At first {hero} wanted to eat it all alone.
        {LESSON}
        Then {he} said, "Would you like half of my {thing}?"|Then {he} broke the {thing} in two and gave away one half.
        The {other} was surprised and said, "That is very nice of you."|The {other} smiled for the first time that day.
        ~ {friend} joined them, and they talked about many things.|They told jokes and watched the ducks.|They played tag until the bell rang.
        ~ "Sharing makes everything taste better," said {friend}.|{Elder} saw it and was proud.
        Now {hero} had one more friend.|{hero} was {feeling} the whole day.
        """,
    ),
    "races and games": _plot(
        "races with",
        "bike sled scooter wagon cart kayak pony turtle balloon skateboard tractor canoe",
        """
        {when} there was a race {where}, and {hero} came with {athing}.|{when} {hero} entered a race {where} with {athing}.
        ~ Many children stood at the start and cheered.|{friend} was in the race, too.
        {LESSON}
        ~ "Ready, steady, go!" shouted {elder}.|The whistle blew, and everybody rushed off.
        At first {hero} was in front, and the {thing} was quick.|At first {hero} was behind, because the {thing} was slow.
        Then {friend} stumbled and fell into the mud.|Then {friend} got stuck in a ditch.
        {hero} stopped at once and went back.|{hero} did not think twice and turned around.
        ~ "You could have won!" said {friend}.|"Are you hurt?" asked {hero} and gave {friend} a hand.
        They crossed the line together as the last ones.|Side by side they reached the finish.
        ~ The crowd clapped louder for them than for the winner.|{Elder} gave both of them a medal.|{hero} was {feeling}, for a friend is worth more than a prize.
        """,
    ),
    "painting things": _plot(
        "paints",
        "wall door picture card mask sign barn gate bench poster shelf postcard",
        """
        {when} {hero} wanted to paint {athing} {where}.|{when} {elder} asked {hero} to paint {athing} {where}.
        ~ {He} opened the tins and chose a thick brush.|{He} put old paper on the floor and rolled up {his} sleeves.
        {LESSON}
        {friend} came by and painted the corners.|"Let me do the edges," said {friend}.
        But then the bucket tipped over!|But then a cat walked across the wet paint.|But then it began to drip on their shoes.
        ~ Now there were spots everywhere.|They had paint on their hair and hands.
        First {hero} was upset, but then {he} had to laugh.|"Oh no!" cried {hero}. {friend} only giggled.
        They turned each spot into a star.|They turned the marks into little flowers.
        When it dried, the {thing} was better than before.|In the end nobody had ever seen such a {thing}.
        ~ "This is real art," said {elder}.|{hero} was {feeling} and signed it with {his} name.
        """,
    ),
    "nights and dreams": _plot(
        "dreams of",
        "dragon castle giant rocket unicorn island palace wizard robot cloud whale planet",
        """
        {when} {hero} fell asleep {where} and dreamed of {athing}.|{when} {he} closed {his} eyes {where} and saw {athing} in a dream.
        ~ The {thing} shone like silver in the moonlight.|The {thing} was as huge as a mountain.|Music came from the {thing}, low and sweet.
        "Come with me," said a soft voice.|A tiny door opened, and {hero} stepped inside.|{hero} floated through the air like a leaf.
        {LESSON}
        ~ {friend} was in the dream as well and wore a funny hat.|There {he} met {friend}, who could fly.
        They sailed over roofs and fields and seas.|They danced with the stars and drank from the moon.|They slid down a rainbow and landed in hay.
        ~ "I wish this would last forever," said {hero}.|"Shall we stay here?" asked {friend}.
        But then a rooster crowed, and {hero} woke up.|But then the light came through the curtain.
        {He} ran to {friend} and told the dream.|{Elder} brought a cup of cocoa and listened to the dream.
        ~ {friend} was {feeling} and said, "I had the same dream!"|And on the pillow lay a small silver feather.
        """,
    ),
    "gifts and birthdays": _plot(
        "brings",
        "present book puzzle drum basket necklace candle cushion blanket trumpet toy train",
        """
        {when} {hero} wanted to bring {athing} to {friend} {where}.|{when} {friend} had a party {where}, and {hero} came with {athing}.
        ~ {He} wrapped it in paper and tied it with a bow.|{He} had saved coins in a jar for months.
        ~ {weather}
        {LESSON}
        But on the way {hero} slipped and the paper tore.|But {he} took the wrong turn and got lost.|But the bus was late, and {hero} had to hurry.
        ~ "Now everything is spoiled," {he} thought.|{He} almost turned around and went home.
        A kind stranger showed {him} the way.|{Elder} came along and helped {him}.
        ~ When {friend} opened the door, there were balloons and lights.|Everybody was already singing when {hero} arrived.
        {friend} looked at the {thing} and beamed.|"A {thing}! That is just what I wanted," said {friend}.
        ~ "The best gift is that you came," said {friend}.|They ate cake, played games and danced until late.|{hero} was {feeling}, and the torn paper did not matter at all.
        """,
    ),
}
