"""Generate text adventures for storyteller's eighth code, Quest, by simulating small worlds.

A quest is a handful of rooms with things, people, a foe and a locked container with a prize. A
random player types commands, and the text follows from the simulation: only things that were taken
can be dropped, every exit leads back, and the container opens only with the key. The words are in
``quests.yaml``.

Example:
    python tools/quests.py --count 3 --seed 1
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path
from typing import Any

import yaml

WORDS: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
VOWELS = "aeiou"


def a(thing: str) -> str:
    """``thing`` with an indefinite article, unless it has an article."""
    if thing.split()[0] in ("a", "an", "the"):
        return thing
    return f"{'an' if thing[0] in VOWELS else 'a'} {thing}"


def the(thing: str) -> str:
    """``thing`` with the definite article."""
    return "the " + re.sub(r"^(an?|the) ", "", thing)


def listed(things: list[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


class Quest:
    """A world and its player. ``play()`` returns the quest's text, a paragraph a line."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.kind = self.pick(list(WORDS["settings"]))
        setting = WORDS["settings"][self.kind]
        self.rooms = self.random.sample(list(setting["rooms"]), self.random.randint(4, 6))
        self.details = {room: list(setting["rooms"][room]) for room in self.rooms}
        self.exits = self.build()
        self.things: dict[str, list[str]] = {room: [] for room in self.rooms}
        for thing in self.random.sample(list(WORDS["things"]), self.random.randint(5, 8)):
            self.things[self.pick(self.rooms)].append(thing)
        self.prize = self.pick(WORDS["prizes"])
        self.container = self.pick(WORDS["containers"])
        self.key = self.pick(["iron key", "small key"])
        self.hide("iron key", "small key")
        self.things[self.pick(self.rooms)].append(self.key)
        self.container_room = self.pick(self.rooms[1:])
        self.opened = False
        self.person = self.pick(setting["people"])
        self.person_room = self.pick(self.rooms)
        self.foe: str | None = self.pick(setting["foes"])
        self.foe_room = self.pick(self.rooms[1:])
        self.carried: list[str] = []
        self.lit = set[str]()
        self.here, self.seen, self.last = self.rooms[0], set[str](), ""
        self.lines: list[str] = []

    def pick(self, options: list[Any]) -> Any:
        return self.random.choice(options)

    def hide(self, *things: str) -> None:
        for room in self.things.values():
            room[:] = [thing for thing in room if thing not in things]

    def build(self) -> dict[str, dict[str, str]]:
        """Exits by room and direction: each room is connected to an earlier one, both ways."""
        exits: dict[str, dict[str, str]] = {room: {} for room in self.rooms}
        for i, room in enumerate(self.rooms[1:], 1):
            ways = [
                (before, way)
                for before in self.rooms[max(0, i - 2) : i]
                for way in WORDS["directions"]
                if way not in exits[before]
            ]
            before, way = self.pick(ways)
            exits[before][way] = room
            exits[room][WORDS["directions"][way]] = before
        return exits

    def fill(self, text: str, **values: str) -> str:
        text = re.sub(r"\{([^{}]*\|[^{}]*)\}", lambda match: self.pick(match[1].split("|")), text)
        for name, value in values.items():
            text = text.replace("{" + name + "}", value)
        return text

    def say(self, *texts: str) -> None:
        self.lines.append(" ".join(sentence(text) for text in texts if text))

    def ways(self) -> str:
        ways = list(self.exits[self.here])
        self.random.shuffle(ways)
        if len(ways) == 1:
            return self.pick([f"The only way out leads {ways[0]}.", f"A path leads {ways[0]}."])
        return self.pick([f"You can go {listed(ways)}.", f"Ways lead {listed(ways)} from here."])

    def look(self) -> None:
        """Describe the room and its contents."""
        opening = self.pick(["You are in {}.", "You are standing in {}.", "This is {}."])
        parts = [opening.format(the(self.here)), *self.details[self.here]]
        if self.here in self.seen and self.random.random() < 0.6:
            parts = [f"You are back in {the(self.here)}."]
        self.seen.add(self.here)
        if self.things[self.here]:
            form = self.pick(["You see {} here.", "{} lies here.", "There is {} here."])
            many = len(self.things[self.here]) > 1
            form = "You see {} here." if many else form
            parts.append(sentence(form.format(listed([a(t) for t in self.things[self.here]]))))
        if self.here == self.container_room:
            state = "open and empty" if self.opened else "locked"
            parts.append(f"{sentence(a(self.container))} stands against the wall. It is {state}.")
        if self.here == self.person_room:
            parts.append(f"{sentence(self.person)} is {self.pick(['here', 'waiting here'])}.")
        if self.foe and self.here == self.foe_room:
            parts.append(f"{sentence(self.foe)} {self.pick(['bars your way', 'is watching you'])}.")
        self.say(*parts, self.ways())

    def go(self) -> None:
        ways = list(self.exits[self.here])
        wrong = [way for way in WORDS["directions"] if way not in ways]
        if self.random.random() < 0.06:
            way = self.pick(wrong)
            self.command(f"go {way}", way)
            self.say("You cannot go that way.", self.ways())
            return
        back = WORDS["directions"].get(self.last, "")
        way = self.pick([w for w in ways if w != back] or ways)
        self.command(f"go {way}", way, f"walk {way}")
        if self.foe and self.here == self.foe_room and self.random.random() < 0.7:
            self.say(f"{the(self.foe)} will not let you pass.")
            return
        self.last, self.here = way, self.exits[self.here][way]
        self.look()

    def command(self, *forms: str) -> None:
        self.lines.append("> " + self.pick(list(forms)))

    def take(self) -> None:
        thing = self.pick(self.things[self.here])
        self.command(f"take {thing}", f"get {thing}", f"pick up the {thing}")
        self.things[self.here].remove(thing)
        self.carried.append(thing)
        self.say(self.pick([f"You take the {thing}.", "Taken.", f"You pick up the {thing}."]))

    def drop(self) -> None:
        thing = self.pick(self.carried)
        self.command(f"drop {thing}", f"put down the {thing}")
        self.carried.remove(thing)
        self.things[self.here].append(thing)
        self.say(self.pick([f"You drop the {thing}.", f"You lay the {thing} on the ground."]))

    def examine(self) -> None:
        thing = self.pick(self.carried + self.things[self.here])
        self.command(f"look at {thing}", f"examine {thing}", f"examine the {thing}")
        self.say(f"You look at the {thing}.", WORDS["things"][thing]["look"])

    def inventory(self) -> None:
        self.command("inventory", "i", "what do I have?")
        things = listed([a(thing) for thing in self.carried]) if self.carried else "nothing"
        self.say(f"You are carrying {things}.")

    def use(self) -> None:
        thing = self.pick(self.carried)
        does = WORDS["things"][thing]["does"]
        if does == "light":
            self.command(f"light {thing}", f"light the {thing}")
            again = f"The {thing} is already burning."
            self.say(
                again if thing in self.lit else f"You light the {thing}. The shadows draw back."
            )
            self.lit.add(thing)
        elif does == "eat":
            self.command(f"eat {thing}", f"eat the {thing}")
            self.carried.remove(thing)
            self.say(f"You eat the {thing}.", self.pick(["You feel better.", "It was good."]))
        elif does == "read":
            self.command(f"read {thing}", f"read the {thing}")
            self.say(f'The {thing} says: "{self.pick(WORDS["writing"])}"')
        elif self.here == self.container_room and not self.opened:
            self.command(f"open {self.container}", f"open the {self.container}")
            self.say(f"The {self.container} is locked.")
        else:
            self.command("wait", "listen")
            self.say(self.pick(["Time passes.", "You hear nothing but your own breath."]))

    def unlock(self) -> None:
        self.command(f"unlock {self.container} with {self.key}", f"open {self.container}")
        self.opened = True
        self.say(
            f"You turn the {self.key} in the lock. The lid of the {self.container} goes up.",
            f"Inside lies {self.prize}!",
        )
        self.command(f"take {re.sub('^the ', '', self.prize)}", "take it")
        self.say(
            f"You take {self.prize}.", self.pick(["It is yours at last.", "Your hands shake."])
        )

    def talk(self) -> None:
        person = the(self.person)
        self.command(
            f"talk to {re.sub('^the ', '', person)}", f"ask about {self.prize}", "say hello"
        )
        hint = self.fill(
            self.pick(WORDS["hints"]),
            prize=self.prize,
            room=self.pick(self.rooms),
            gift=a(self.pick(list(WORDS["things"]))),
            container=self.container,
        )
        female = re.search(r"woman|lady|girl", self.person)
        his = (
            "her" if female else "his" if re.search(r"man|boy|king|monk", self.person) else "a slow"
        )
        text = self.pick(WORDS["talk"])
        self.say(self.fill(text, who=person, Who=sentence(person), his=his, hint=hint))

    def fight(self) -> None:
        foe = the(self.foe or "")
        weapons = [t for t in self.carried if WORDS["things"][t]["does"] == "fight"]
        if weapons:
            weapon = self.pick(weapons)
            short = foe.removeprefix("the ")
            self.command(f"attack {short} with {weapon}", f"fight {short}", f"kill {short}")
            end = self.pick(
                ["It falls and does not move again.", "It turns and runs into the dark."]
            )
            self.say(f"You strike at {foe} with the {weapon}.", end)
            self.foe = None
        else:
            self.command(f"attack {foe.removeprefix('the ')}", "fight")
            self.say(f"With your bare hands? {sentence(foe)} is not afraid of you.")

    def choices(self) -> list[Any]:
        """The player's possible actions; one that is listed more often is likelier."""
        open_now = self.here == self.container_room and not self.opened and self.key in self.carried
        if open_now:
            return [self.unlock]
        actions: list[Any] = [self.go] * 4
        actions += [self.take] * (4 * bool(self.things[self.here]))
        actions += [self.examine] * (2 * bool(self.carried + self.things[self.here]))
        actions += [self.use] * (2 * bool(self.carried))
        actions += [self.drop] * (len(self.carried) > 3)
        actions += [self.inventory] * (len(self.carried) > 1)
        actions += [self.talk] * (5 * (self.here == self.person_room))
        actions += [self.fight] * (6 * bool(self.foe and self.here == self.foe_room))
        return actions

    def play(self) -> list[str]:
        opening = self.fill(
            self.pick(WORDS["openings"]),
            name=self.pick(WORDS["names"]),
            role=a(self.pick(WORDS["roles"])),
            goal=self.fill(self.pick(WORDS["goals"]), thing=self.prize),
        )
        self.say(opening)
        self.look()
        for _ in range(self.random.randint(18, 40)):
            self.pick(self.choices())()
            if self.opened and self.random.random() < 0.3:
                break
        if self.opened:
            self.say(
                f"With {self.prize} under your coat you find your way home.", "This is the end."
            )
        return self.lines


def quests(count: int, seed: int = 0) -> list[str]:
    """``count`` quests as texts, a paragraph a line; the same for the same seed."""
    return ["\n".join(Quest(seed * 1_000_003 + i).play()) for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("\n\n".join(quests(args.count, args.seed)))


if __name__ == "__main__":
    main()
