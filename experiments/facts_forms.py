"""Forms of sentences that `experiments.facts_world` fills: what is said of an invented subject, and how it is asked.

Of each relation: what kind its answer is of, statements and questions. {S} is the subject at the beginning of a
sentence (its name, or a pronoun), {s} within one, {n} always its name, {his} what belongs to it, {a} the answer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """What may be said of a subject.

    Attributes:
        answers: kind of the answers: a key of `POOLS`, or "person", "place", "river" (invented), "year".
        statements, questions: forms.
    """

    name: str
    answers: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of subjects: how one is introduced, what is said of it, and sentences that say nothing that is asked."""

    openings: tuple[str, ...]
    relations: tuple[Relation, ...]
    fillers: tuple[str, ...]


PERSON = Kind(
    openings=(
        "Few people outside of the valley have heard of {n}.",
        "Anyone who asks in the inn will sooner or later be told about {n}.",
        "Of {n} only one portrait is left, and it hangs in a dark corridor.",
        "The letters of {n} were found in a cupboard long after the house had been sold.",
    ),
    relations=(
        Relation(
            "birthplace",
            "place",
            (
                "{S} was born in {a}, in a house that no longer stands.",
                "{S} first saw the light of day in {a}, as the second of six children.",
                "{S} came from {a} and never lost the accent of that place.",
            ),
            (
                "In which town did {n} come into the world?",
                "What is the birthplace of {n}?",
                "Which place was the native town of {n}?",
            ),
        ),
        Relation(
            "profession",
            "profession",
            (
                "{S} earned {his} living as a {a}, like many in the street.",
                "For more than thirty years {s} worked as a {a}.",
                "By trade {s} was a {a}, and by all accounts a good one.",
            ),
            (
                "What was the profession of {n}?",
                "Which job did {n} have?",
                "What kind of work did {n} do?",
            ),
        ),
        Relation(
            "instrument",
            "instrument",
            (
                "{S} played the {a} at weddings and at funerals.",
                "On winter evenings {s} practised the {a} until the neighbours knocked.",
                "The only thing {s} took along on journeys was {his} {a}, which {s} played in every inn.",
            ),
            (
                "Which musical instrument could {n} play?",
                "What instrument did {n} make music on?",
            ),
        ),
        Relation(
            "partner",
            "person",
            (
                "In a wet spring {s} married {a}, who had come with the first boats.",
                "{S} shared {his} life with {a}, to whom {s} was married for many years.",
                "The wedding of {n} and {a} lasted for three days.",
            ),
            (
                "Who was the spouse of {n}?",
                "To which person was {n} married?",
            ),
        ),
        Relation(
            "pet",
            "animal",
            (
                "{S} kept a tame {a}, which slept beside the stove.",
                "A {a} followed {n} wherever {s} went, and ate at the table.",
                "Children came to the yard to see the {a} that {s} had raised by hand.",
            ),
            (
                "Which animal did {n} own?",
                "What sort of pet lived with {n}?",
            ),
        ),
    ),
    fillers=(
        "Nobody remembers who paid for the stone beside the gate.",
        "The winters were long in those years, and the road was often closed.",
        "Much of what is told about that time was written down by a schoolteacher.",
        "The garden behind the house was larger than it looks today.",
        "There are two versions of the story, and both are told with great certainty.",
        "A cousin kept the diaries in a tin box under the stairs.",
    ),
)

TOWN = Kind(
    openings=(
        "The bus to {n} leaves twice a day, and it is seldom full.",
        "Travellers who come to {n} for the first time are surprised by the silence.",
        "{n} is small enough to be crossed on foot in ten minutes.",
        "On old maps {n} is written in several ways, none of which is used now.",
    ),
    relations=(
        Relation(
            "founding",
            "year",
            (
                "{S} was founded in {a} by families that traded in salt.",
                "The first houses of {n} were built in {a}, after the forest had been cleared.",
                "The oldest charter, in which {n} is made a town, is of the year {a}.",
            ),
            (
                "When was {n} established?",
                "How old is {n}, that is, in what year did it begin?",
            ),
        ),
        Relation(
            "river",
            "river",
            (
                "{S} lies on the {a}, a slow and brown river.",
                "The {a} flows past the market of {n} and freezes in most winters.",
                "Three bridges cross the river, which is called the {a}.",
            ),
            (
                "Which river runs through {n}?",
                "What is the name of the river at {n}?",
            ),
        ),
        Relation(
            "fair",
            "month",
            (
                "Every {a} the fair of {n} fills the square with tents.",
                "The great fair is held in {a}, when the roads are dry.",
                "In {a} the people of {n} celebrate with a fair that lasts for a week.",
            ),
            (
                "In which month does {n} hold its fair?",
                "What is the time of the year, as a month, of the yearly fair in {n}?",
            ),
        ),
        Relation(
            "product",
            "product",
            (
                "Most families live by making {a} for the whole coast.",
                "{S} is known for its {a}, which is packed in straw.",
                "In the sheds behind the station they make {a} in the same way as a hundred years ago.",
            ),
            (
                "What goods are produced in {n}?",
                "Which product has made {n} famous?",
            ),
        ),
        Relation(
            "tower",
            "colour",
            (
                "The tower of its church is painted {a}, so that it is seen in fog.",
                "After the fire the church tower was covered with {a} tiles.",
                "Seen from the hills, the first thing that shows is the {a} tower of the church.",
            ),
            (
                "What colour does the church tower in {n} have?",
                "Which colour is the steeple of {n}?",
            ),
        ),
    ),
    fillers=(
        "Opposite of the post office there is a bench under a lime tree.",
        "The school has four rooms, and one of them is used as a library.",
        "On Thursdays the baker comes with a van and rings a bell.",
        "A path leads up to the quarry, where nobody works any more.",
        "The houses near the bridge have thick walls and small windows.",
        "It rains more often here than on the other side of the hills.",
    ),
)

COMPANY = Kind(
    openings=(
        "The name {n} still stands over the gate in letters of iron.",
        "Old people in the region call {n} simply the yard.",
        "Visitors are shown through the halls of {n} on the first Sunday of the month.",
        "Hardly anybody would guess what {n} has behind its plain front.",
    ),
    relations=(
        Relation(
            "opening",
            "year",
            (
                "{S} opened its doors in {a}, with five workers and a borrowed horse.",
                "The first bill in the archive of {n} was written in {a}, the year of its foundation.",
                "Business began in {a}, in a barn that was let for two years.",
            ),
            (
                "When did {n} start to trade?",
                "What is the founding year of {n}?",
            ),
        ),
        Relation(
            "founder",
            "person",
            (
                "It was {a} who founded the firm, against the advice of the bank.",
                "{S} was set up by {a}, of whom the office has a bust.",
                "Its founder, {a}, slept in the office for the first years.",
            ),
            (
                "Who created the company {n}?",
                "Which person established {n}?",
            ),
        ),
        Relation(
            "makes",
            "product",
            (
                "What leaves the halls today is {a}, by the cartload.",
                "{S} makes {a} and nothing else.",
                "After some years of trying, the firm settled on {a}, which it has made ever since.",
            ),
            (
                "What does {n} produce?",
                "Which goods are manufactured by {n}?",
            ),
        ),
        Relation(
            "seat",
            "place",
            (
                "The works stand in {a}, close to the old harbour.",
                "{S} has its seat in {a}, where rents were low.",
                "Since the flood the offices have been in {a}, above a shop.",
            ),
            (
                "In which town is {n} located?",
                "Where can the firm {n} be found?",
            ),
        ),
        Relation(
            "emblem",
            "animal",
            (
                "Every box carries the sign of the house, a {a}.",
                "A {a} of painted wood, the emblem of the firm, looks down on the yard.",
                "{S} has a {a} in its coat of arms, for reasons that nobody recalls.",
            ),
            (
                "Which animal is the symbol of {n}?",
                "What creature does {n} use as its emblem?",
            ),
        ),
    ),
    fillers=(
        "The accounts are kept in a room without windows.",
        "During the long strike the gates stayed shut for a whole summer.",
        "Apprentices begin by sweeping the floor, as they always have.",
        "The bell that ends the shift can be heard in the next village.",
        "New machines were bought only when the old ones fell apart.",
        "A photograph in the hall shows everyone in their Sunday clothes.",
    ),
)

SHIP = Kind(
    openings=(
        "The {n} was never a fast ship, but she was a lucky one.",
        "Models of the {n} can be bought in every harbour on that coast.",
        "What is left of the {n} fits into a single room of the museum.",
        "Songs about the {n} are still known, though few can sing all verses.",
    ),
    relations=(
        Relation(
            "hull",
            "colour",
            (
                "Her hull was painted {a}, against all custom.",
                "Sailors knew the {n} from far away by her {a} hull.",
                "For the last voyage her sides were given a coat of {a} paint.",
            ),
            (
                "What colour was the ship {n}?",
                "Which colour did the outside of the {n} have?",
            ),
        ),
        Relation(
            "captain",
            "person",
            (
                "Her captain was {a}, who could not swim.",
                "For eleven years the {n} was commanded by {a}.",
                "{a} was her master from the first day to the last.",
            ),
            (
                "Who was in command of the ship {n}?",
                "Which person led the crew of the {n}?",
            ),
        ),
        Relation(
            "launch",
            "year",
            (
                "She was launched in {a}, on a day without wind.",
                "The {n} slid into the water in {a}, and nearly fell over.",
                "Her first voyage was in {a}, with half of the crew that she needed.",
            ),
            (
                "In what year was the ship {n} put to sea?",
                "When did the {n} sail for the first time?",
            ),
        ),
        Relation(
            "cargo",
            "product",
            (
                "Most of the time she carried {a}, which filled the hold to the hatches.",
                "Her usual load was {a}, and the smell never left the cabins.",
                "The {n} brought {a} to ports that had none.",
            ),
            (
                "What cargo did the ship {n} transport?",
                "Which goods were on board of the {n}?",
            ),
        ),
        Relation(
            "port",
            "place",
            (
                "Her home port was {a}, where the quay had to be made longer for her.",
                "The owners had registered her in {a}, to save taxes.",
                "Between two voyages she lay in {a}, as that was where her crew lived.",
            ),
            (
                "In which harbour town was the ship {n} at home?",
                "To what place did the {n} belong?",
            ),
        ),
    ),
    fillers=(
        "The cook was said to be older than the mast.",
        "In a storm off the cape two of the boats were lost.",
        "The log books are complete but for one summer.",
        "Ropes and sails were made by the same family for generations.",
        "There was a cat on board, which disliked strangers.",
        "The bell hangs in a chapel now, and is rung at noon.",
    ),
)

KINDS = {"person": PERSON, "town": TOWN, "company": COMPANY, "ship": SHIP}


def each(words: str) -> tuple[str, ...]:
    return tuple(words.split())


POOLS = {
    "profession": each(
        "baker clockmaker carpenter nurse surveyor tailor beekeeper printer locksmith potter glazier shepherd "
        "librarian dentist gardener butcher weaver miller bricklayer pharmacist"
    ),
    "instrument": each(
        "violin accordion flute harp trumpet cello clarinet mandolin banjo oboe drum lute guitar tuba organ piano"
    ),
    "animal": each(
        "goat raven fox badger beaver hedgehog donkey magpie falcon tortoise goose squirrel crane wolf hare lynx"
    ),
    "month": each("January February April June July August September October November December"),
    "product": each(
        "soap candles cheese rope glass honey bricks gloves barrels mustard paper buttons lamps vinegar nails carpets"
    ),
    "colour": each("red blue green yellow black white orange purple brown grey pink"),
}
