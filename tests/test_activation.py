"""Activation, rule by rule. The random books are in test_activation_properties.py."""

import json
import time

import pytest

from plain_scan import find_keys
from softlore.context import ScanSettings, Timers, activate, place_entries
from softlore.context.keys import prepare_keys
from softlore.context.scan import draw
from softlore.errors import ConfigError, ContextError
from softlore.lore import Entry
from softlore.lore.patterns import MAX_COPIES, compile_pattern, split_pattern

LONG_AGO = ["It was a quiet town."]


def entry(name, *keys, **fields):
    return Entry(**{"name": name, "keys": list(keys), "text": f"About {name}.", **fields})


def names(activation):
    return [active.entry.name for active in activation.active]


def called(entry, *messages, **fields):
    return names(activate([entry], messages, **fields)) == [entry.name]


def reason(entry, *messages, **fields):
    return activate([entry], messages, **fields).active[0].reason


def why(activation, name):
    return next(skipped.why for skipped in activation.skipped if skipped.entry.name == name)


def finds(key, text, case_sensitive=False, whole_words=True):
    return bool(find_keys((key,), [text], case_sensitive, whole_words))


# Keys


@pytest.mark.parametrize(
    ("key", "text", "found"),
    [
        ("AI", "I ain't there", False),
        ("AI", "the AI's hum", True),
        ("emma", "Emma, at last", True),
        ("emma", "Emmaline", False),
        ("Dr.", "so said dr. Weiss", True),
        ("half-elf", "a half-elf.", True),
        ("half-elf", "a half-elfin face", False),
        ("half-elf", "half-elfin, half-elf", True),
        ("York", "yorkshire and New York", True),
        ("new york", "anew yorkshire", True),  # several words: as SillyTavern, a run of characters
        (" Emma ", "Emma", True),
        ("  ", "a  b", False),
        ("straße", "die STRASSE hinab", True),
        ("caf\u00e9", "the cafe\u0301 of old", True),
        ("cafe", "the cafe\u0301 of old", False),
        ("Emma’s", "emma's hat", True),
        ("艾玛", "那天艾玛来了", True),  # no spaces between words: found wherever it stands
        ("艾玛", "艾玛abc", True),
        ("엠마", "엠마가 왔다", True),
        ("हिन्द", "हिन्दी", False),
        ("❤", "I ❤️ you", True),  # with the selector of its coloured glyph
        ("❤️", "I ❤ you", True),
        ("👩", "the 👩\u200d🚀 flew", False),  # an astronaut is another emoji
        ("🚀", "the 👩\u200d🚀 flew", False),
        ("👩\u200d🚀", "the👩🏽\u200d🚀flew", True),
        ("👩\u200d🚀", "the 👩\u200d🚀", True),
        ("1", "press 1\ufe0f\u20e3 now", False),
        ("1\ufe0f\u20e3", "press 1\u20e3now", True),
        ("now", "press 1\ufe0f\u20e3now", True),
        ("👍", "ok 👍🏽", True),  # of any skin tone
        ("👍🏽", "ok 👍🏽", True),
        ("👍🏽", "ok 👍 and 👍🏿", False),
        ("😀", "Hello😀you", True),  # joined to no word
        ("Hello", "😀Hello😀", True),
        ("😀", "की😀", True),
        ("🇫🇷", "🇬🇧🇫🇷", True),
        ("🇧🇫", "🇬🇧🇫🇷", False),  # halves of two flags
        ("🏴", "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f", False),
        ("❤", "❤️\u200d🔥 or ❤️", True),
    ],
)
def test_a_plain_key(key, text, found):
    assert finds(key, text) is found


def test_case_and_whole_words():
    assert not finds("Emma", "emma", case_sensitive=True)
    assert finds("Emma", "Emma", case_sensitive=True)
    assert finds("AI", "ain't", whole_words=False)
    assert not finds("AI", "ain't", case_sensitive=True, whole_words=False)
    assert finds("👩", "the 👩\u200d🚀", whole_words=False)
    assert finds("❤", "I ❤️ you", whole_words=False)


@pytest.mark.parametrize(
    ("key", "text", "found"),
    [
        ("/emma/", "Emma", False),
        ("/emma/i", "EMMALINE", True),
        ("/em{2}a/", "emma", True),
        ("/^Emma$/", "Emma\n", False),
        ("/^Emma$/m", "so\nEmma\nsaid", True),
        ("/a.b/", "a\nb", False),
        ("/a.b/s", "a\nb", True),
        (r"/a\/b/", "a/b", True),
        (r"/(?<w>ab)\k<w>/", "abab", True),
        (r"/\u{1F409}/u", "🐉", True),
        (r"/[\u{1F409}x]y/u", "🐉y", True),
        (r"/\u00e9t\xe9/", "été", True),
        (r"/\cJ/", "a\nb", True),
        (r"/a[^]b/", "a\nb", True),
        (r"/a[]|c/", "abc", True),
        (r"/\p{Lu}{2}/u", "ÉÉ", True),
        (r"/[\w--[a-m]]/v", "a", False),
        (r"/[\w--[a-m]]/v", "z", True),
        ("/{{char}}/", "{{char}}", True),
        ("/a{e}/", "a", False),
        ("/a{,2}/", "a{,2}", True),
        (r"/\e\-\y/", "e-y", True),
        ("/[[]/", "[", True),
        (r"/\x01Emma/", "Emma: hi", True),
        (r"/\x01Emma/", "so Emma", False),
        ("/Emma/gimsuy", "emma", True),
        ("/(?=e)(?!f)(?<=h)(?<!g)em/", "hem", True),
    ],
)
def test_a_pattern_is_read_as_javascript(key, text, found):
    assert prepare_keys((key,), False, True).invalid == []
    assert finds(key, text, case_sensitive=True) is found


@pytest.mark.parametrize("key", ["/emma/x", "/emma/ii", "/a/b/", "//", "/emma", "emma/i"])
def test_what_is_not_quite_a_pattern_is_plain(key):
    assert split_pattern(key) is None
    assert finds(key, f"so {key} it is")
    assert not finds(key, "emma")


@pytest.mark.parametrize(
    "pattern",
    [
        *["(", ")", "[a", "a**", "\\", "(?R)", "(?&a)", "(?P<a>b)", "(?#c)", "(?<1>a)"],
        *[r"\u{FFFFFF}", "(?:" * 1500 + ")" * 400, "a" * 3000, "((a{100}){100}){100}"],
        *["(?:" * 390 + "a" + ")" * 390, "a{20000}", "(?:(?R)){e<=3}"],
    ],
)
def test_an_invalid_pattern_is_reported(pattern):
    assert compile_pattern(pattern, "")[1]
    found = activate([entry("Emma", f"/{pattern}/", "hat")], ["Emma " + pattern, "a hat"])
    assert names(found) == ["Emma"]
    assert [(bad.entry.name, bad.key) for bad in found.bad_keys] == [("Emma", f"/{pattern}/")]
    assert found.bad_keys[0].why


def test_repeats_are_counted_as_compiling_copies_them():
    assert not compile_pattern(rf"(?:ab){{{MAX_COPIES // 2}}}", "")[1]
    assert compile_pattern(rf"(?:ab){{{MAX_COPIES // 2}}}c", "")[1]
    assert not compile_pattern(r"\d{4}-\d{2}-\d{2}.{0,2000}[xy]{3}" * 10, "")[1]


def test_a_pattern_that_would_never_end_is_given_up():
    story = ["a" * 5000 + "!", "It was Emma."]
    entries = [entry("slow", "/(a+)+$/"), entry("Emma", "Emma")]
    began = time.process_time()
    found = activate(entries, story)
    assert time.process_time() - began < 2
    assert names(found) == ["Emma"]
    assert [(bad.key, bad.entry.name) for bad in found.bad_keys] == [("/(a+)+$/", "slow")]


def test_many_slow_patterns_share_one_limit():
    entries = [entry(f"slow {i}", f"/(a+)+{'b' * i}$/") for i in range(200)]
    began = time.process_time()
    found = activate(entries, ["a" * 5000 + "!"])
    assert time.process_time() - began < 10
    assert len(found.bad_keys) == 200


# Triggers


def test_only_the_last_messages_are_searched():
    emma = entry("Emma", "Emma")
    assert reason(emma, "No one.", "Emma came.") == "key 'Emma' in the last message"
    assert reason(emma, "Emma came.", "No one.") == "key 'Emma' 1 message back"
    assert not called(emma, "Emma came.", "No one.", "No one.")
    assert called(emma, "Emma came.", "No one.", "No one.", settings=ScanSettings(scan_depth=3))
    assert called(emma.model_copy(update={"scan_depth": 3}), "Emma came.", "No one.", "No one.")
    assert not called(emma.model_copy(update={"scan_depth": 0}), "Emma came.")
    assert not called(emma)


def test_the_nearest_text_and_the_first_key_are_named():
    found = activate([entry("Emma", "Marie", "hat", "Emma")], ["Emma, a hat", "Emma"]).active[0]
    assert (found.key, found.reason, found.round) == ("hat", "key 'hat' 1 message back", 1)
    assert reason(entry("Emma", "Emma"), "Emma", "Emma") == "key 'Emma' in the last message"


def test_the_entry_overrides_the_settings():
    loose = ScanSettings(match_whole_words=False, case_sensitive=True)
    assert called(entry("AI", "ai"), "ain't", settings=loose)
    assert not called(entry("AI", "ai", match_whole_words=True), "ain't", settings=loose)
    assert not called(entry("AI", "AI"), "ain't", settings=loose)
    assert called(entry("AI", "AI", case_sensitive=False), "ain't", settings=loose)


def test_constant_and_disabled():
    assert reason(entry("town", constant=True)) == "constant"
    assert not called(entry("town", constant=True, enabled=False))
    assert activate([entry("town", constant=True, enabled=False)], []).skipped == []


@pytest.mark.parametrize(
    ("logic", "with_none", "with_one", "with_both"),
    [
        ("and_any", False, True, True),
        ("and_all", False, False, True),
        ("not_any", True, False, False),
        ("not_all", True, True, False),
    ],
)
def test_secondary_keys(logic, with_none, with_one, with_both):
    emma = entry("Emma", "Emma", secondary_keys=["hat", "gun"], selective_logic=logic)
    for story, used in [
        (["Emma came."], with_none),
        (["The hat.", "Emma came."], with_one),
        (["A gun.", "Emma's hat."], with_both),
    ]:
        found = activate([emma], story)
        assert bool(found.active) is used
        assert bool(found.skipped) is not used
    assert not called(emma, "A hat.", "A gun.")
    assert called(emma.model_copy(update={"selective": False}), "Emma, a hat, a gun")


def test_the_order_of_insertion():
    book = [entry(str(i), constant=True, order=order) for i, order in enumerate([5, 1, 5, 3])]
    assert names(activate(book, [])) == ["1", "3", "0", "2"]


# Probability and groups


def test_probability():
    assert called(entry("Emma", "Emma", probability=100), "Emma")
    never = activate([entry("Emma", "Emma", probability=0)], ["Emma"])
    assert why(never, "Emma") == "lost the draw of probability (0%)"
    half = [entry(f"Emma {i}", constant=True, probability=30) for i in range(1000)]
    assert 250 < len(activate(half, []).active) < 350


def test_the_same_story_gives_the_same_draws():
    book = [entry(f"Emma {i}", constant=True, probability=50) for i in range(50)]
    first = activate(book, LONG_AGO)
    assert first == activate(book[:], LONG_AGO)
    assert names(first) != names(activate(book, LONG_AGO, seed=1))
    assert names(first) != names(activate(book, LONG_AGO * 2))
    # Each entry's draw is its own: what stands beside it does not matter.
    alone = [name for one in book for name in names(activate([one], LONG_AGO))]
    assert names(first) == alone
    assert draw(0, 1, "Emma") == draw(0, 1, "Emma") != draw(0, 1, "Marta")


def test_the_draw_is_once_a_scan():
    book = [entry("Emma", "Emma", "Marta", probability=0), entry("Marta", constant=True)]
    found = activate(book, ["Emma"])
    assert names(found) == ["Marta"]
    assert [skipped.entry.name for skipped in found.skipped] == ["Emma"]


def test_a_group_has_one_active_member():
    book = [entry(name, constant=True, group="weather") for name in ("rain", "sun", "snow")]
    found = activate(book, [])
    assert len(found.active) == 1
    for skipped in found.skipped:
        assert skipped.why == f"lost in group 'weather' to {found.active[0].entry.name!r}"
    winners = {names(activate(book, [], seed=seed))[0] for seed in range(50)}
    assert winners == {"rain", "sun", "snow"}


def test_group_weights():
    book = [
        entry("rain", constant=True, group="weather", group_weight=300),
        entry("sun", constant=True, group="weather", group_weight=100),
        entry("snow", constant=True, group="weather", group_weight=0),
    ]
    won = [names(activate(book, [], seed=seed))[0] for seed in range(1000)]
    assert 700 < won.count("rain") < 800
    assert won.count("snow") == 0
    assert called(book[2])


def test_group_override():
    book = [
        entry("rain", constant=True, group="weather", order=50, group_override=True),
        entry("sun", constant=True, group="weather", order=200),
        entry("snow", constant=True, group="weather", order=60, group_override=True),
    ]
    assert {tuple(names(activate(book, [], seed=seed))) for seed in range(9)} == {("snow",)}


def test_a_group_with_an_active_member_activates_no_other():
    book = [
        entry("rain", "rain", group="weather", text="Then the sun."),
        entry("sun", "sun", group="weather", group_override=True),
    ]
    found = activate(book, ["rain"])
    assert names(found) == ["rain"]
    assert why(found, "sun") == "lost in group 'weather' to 'rain'"


def test_an_entry_may_be_in_several_groups():
    book = [
        entry("rain", constant=True, group="weather, mood", group_override=True),
        entry("sun", constant=True, group="weather"),
        entry("joy", constant=True, group="mood"),
    ]
    assert names(activate(book, [])) == ["rain"]


def test_what_loses_to_a_sticky_entry_does_not_compete_in_another_group():
    book = [
        entry("rain", constant=True, group="weather, mood", group_override=True, order=9),
        entry("sun", constant=True, group="weather"),
        entry("joy", "joy", group="mood", sticky=3),
    ]
    assert names(activate(book, ["x", "x"], timers=Timers({"joy": 1}))) == ["sun", "joy"]


# Recursion


def test_the_text_of_an_entry_triggers_others():
    book = [
        entry("Emma", "Emma", text="She lives in Rook Lane."),
        entry("Lane", "Rook Lane", text="It runs to the harbour."),
        entry("harbour", "harbour", order=1),
    ]
    found = activate(book, ["Emma came."])
    assert names(found) == ["harbour", "Emma", "Lane"]
    assert [active.round for active in found.active] == [3, 1, 2]
    lane = found.active[2]
    assert lane.reason == "triggered by entry 'Emma': key 'Rook Lane' in its text"
    assert names(activate(book, ["Emma"], ScanSettings(recursive=False))) == ["Emma"]
    assert names(activate(book, ["Emma"], ScanSettings(max_rounds=1))) == ["Emma"]
    assert names(activate(book, ["Emma"], ScanSettings(max_rounds=2))) == ["Emma", "Lane"]


def test_entries_that_trigger_one_another_end():
    book = [entry(f"e{i}", f"e{i}", text=f"e{(i + 1) % 3} and e{i}") for i in range(3)]
    assert names(activate(book, ["e1"])) == ["e0", "e1", "e2"]


def test_recursion_flags():
    emma = entry("Emma", "Emma", text="She lives in Rook Lane.")
    lane = entry("Lane", "Rook Lane")
    story = ["Emma came."]
    assert len(activate([emma, lane], story).active) == 2
    for one, other in [
        (emma.model_copy(update={"prevent_recursion": True}), lane),
        (emma, lane.model_copy(update={"exclude_recursion": True})),
    ]:
        assert names(activate([one, other], story)) == ["Emma"]
    assert called(lane.model_copy(update={"exclude_recursion": True}), "Rook Lane")


def test_secondary_keys_are_looked_for_in_the_text_of_entries_too():
    book = [
        entry("Emma", "Emma", text="She lives in Rook Lane."),
        entry("Lane", "came", secondary_keys=["Rook Lane"]),
    ]
    lane = activate(book, ["Emma came."]).active[1]
    assert (lane.reason, lane.round) == ("key 'came' in the last message", 2)


def test_entries_delayed_until_recursion_come_level_by_level():
    book = [
        entry("Emma", "Emma", text="She lives in Rook Lane."),
        entry("Lane", "Rook Lane", delay_until_recursion=1, text="It runs to the harbour."),
        entry("harbour", "harbour", delay_until_recursion=1),
        entry("deep", "Emma", delay_until_recursion=2),
        entry("deeper", "harbour", delay_until_recursion=7),
    ]
    found = activate(book, ["Emma came."])
    rounds = {active.entry.name: active.round for active in found.active}
    # A level opens when a round has brought nothing new: after the third, and after the fifth.
    assert rounds == {"Emma": 1, "Lane": 2, "harbour": 3, "deep": 5, "deeper": 7}


def test_without_recursion_delayed_entries_wait():
    book = [
        entry("deep", "Emma", delay_until_recursion=1),
        entry("deeper", "Emma", delay_until_recursion=2),
    ]
    assert activate(book, ["Emma came."]).active == []
    assert activate(book, ["Emma came."]).skipped == []


# Timers


def used_at(one, lengths, word="Emma", at=(), timers=None):
    """The story's lengths at which the entry is active; messages number `at` are `word`."""
    used = []
    for length in lengths:
        message = word if length in at else "Nothing."
        found = activate([one], ["Nothing."] * (length - 1) + [message], timers=timers)
        timers = Timers.from_dict(json.loads(json.dumps(found.timers.to_dict())))
        if found.active:
            used.append(length)
    return used


def test_sticky():
    emma = entry("Emma", "Emma", sticky=3, scan_depth=1)
    assert used_at(emma, range(1, 12), at=[2, 8]) == [2, 3, 4, 8, 9, 10]
    found = activate([emma], ["Emma"])
    assert found.timers == Timers({"Emma": 1})
    assert reason(emma, "x", "x", timers=found.timers) == "sticky for 2 messages more"
    assert reason(emma, "x", "x", "x", timers=found.timers) == "sticky for 1 message more"


def test_cooldown():
    emma = entry("Emma", "Emma", cooldown=3, scan_depth=1)
    assert used_at(emma, range(1, 9), at=range(1, 9)) == [1, 4, 7]
    found = activate([emma], ["x", "Emma"], timers=Timers({"Emma": 1}))
    assert why(found, "Emma") == "cooling down for 2 messages more"
    assert used_at(entry("Emma", constant=True, cooldown=2), range(1, 6)) == [1, 3, 5]


def test_cooldown_comes_after_sticky():
    emma = entry("Emma", "Emma", sticky=2, cooldown=3, scan_depth=1)
    assert used_at(emma, range(1, 13), at=range(1, 13)) == [1, 2, 6, 7, 11, 12]
    # It is the story that counts, not how often it is scanned.
    assert used_at(emma, [1, 5, 6], at=range(1, 13)) == [1, 6]


def test_delay():
    emma = entry("Emma", "Emma", delay=3)
    assert used_at(emma, range(1, 5), at=range(1, 5)) == [3, 4]
    found = activate([emma], ["Emma"])
    assert why(found, "Emma") == "too early: the story has 1 message; its delay is 3"


def test_a_sticky_entry_is_not_drawn_again_and_holds_its_group():
    timers = Timers({"rain": 1})
    book = [
        entry("rain", "rain", group="weather", sticky=5, probability=1, group_weight=0),
        entry("sun", "sun", group="weather", group_override=True),
    ]
    found = activate(book, ["x", "the sun"], timers=timers)
    assert names(found) == ["rain"]
    assert why(found, "sun") == "lost in group 'weather' to 'rain'"


def test_a_turn_retried_or_undone_leaves_no_trace():
    emma = entry("Emma", "Emma", sticky=2, cooldown=4, scan_depth=1)
    story = ["x", "x", "x", "Emma"]
    first = activate([emma], story)
    again = activate([emma], story, timers=first.timers)
    assert again == first
    assert names(activate([emma], ["x", "x", "x", "x"], timers=first.timers)) == []
    undone = activate([emma], ["x", "Emma"], timers=first.timers)
    assert undone.timers == Timers({"Emma": 2})


def test_timers_of_another_book_are_retained():
    timers = Timers({"Marta": 1, "Emma": 1})
    found = activate([entry("Emma", "Emma", sticky=2)], ["x"] * 9, timers=timers)
    assert found.timers == Timers({"Marta": 1})
    assert activate([], ["x"], timers=timers).timers == Timers()


@pytest.mark.parametrize("data", [None, [], {"Emma": -1}, {"Emma": True}, {"Emma": "2"}, {1: 1}])
def test_invalid_timers(data):
    with pytest.raises(ContextError, match="expected"):
        Timers.from_dict(data)


# Positions


def test_placed():
    book = [
        entry("a", constant=True, order=2),
        entry("b", constant=True, order=1),
        entry("c", constant=True, position="after_char"),
        entry("d", constant=True, position="at_depth", depth=0),
        entry("e", constant=True, position="at_depth", depth=4, role="user"),
        entry("f", constant=True, position="at_depth", depth=4),
        entry("g", constant=True, position="at_depth", depth=4, order=1),
        entry("h", constant=True, position="outlet"),
        entry("i", constant=True, position="note_top"),
    ]
    places = place_entries(activate(book, []).active)
    listed = {at: [one.entry.name for one in ones] for at, ones in places.at_depth.items()}
    assert list(listed.items()) == [
        ((4, "system"), ["g", "f"]),
        ((4, "user"), ["e"]),
        ((0, "system"), ["d"]),
    ]
    assert [one.entry.name for one in places.before_char] == ["b", "a"]
    assert [one.entry.name for one in places.after_char] == ["c"]
    assert [one.entry.name for one in places.outlet] == ["h"]
    assert [one.entry.name for one in places.note_top] == ["i"]
    assert places.note_bottom == places.examples_top == places.examples_bottom == []


# Errors and time


@pytest.mark.parametrize(
    "fields",
    [
        {"scan_depth": -1},
        {"scan_depth": 1.5},
        {"scan_depth": True},
        {"max_rounds": -1},
        {"recursive": 1},
        {"case_sensitive": None},
        {"match_whole_words": "yes"},
    ],
)
def test_settings_that_do_not_fit(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        ScanSettings(**fields)


def test_a_single_text_is_no_story():
    with pytest.raises(ContextError, match="list of texts"):
        activate([], "Emma came.")


def test_an_entry_without_text_triggers_no_other():
    silent = Entry(name="Emma", constant=True, blocks=[("Emma wore", [" the hat"])])
    assert names(activate([silent, entry("hat", "hat")], [])) == ["Emma"]


def test_a_long_chain_is_followed_to_its_end():
    chain = [entry(f"C{i}", f"key{i}x", text=f"on to key{i + 1}x") for i in range(1500)]
    found = activate(chain, ["key0x"])
    assert [(one.round, one.key) for one in found.active] == [
        (i + 1, f"key{i}x") for i in range(1500)
    ]
