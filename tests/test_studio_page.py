"""The studio as a writer meets it: a real browser on a real server with the packaged model."""

import contextlib
import functools
import json
import re
import struct
from pathlib import Path

import pytest

import api_server
from browsing import launched, needs_browser
from running import save_tiny_model
from serving import serving as serving_process
from softlore.decode import PrefixCache, TorchModelRunner
from softlore.lore import Lorebook
from softlore.model import FrozenModel
from softlore.prompts import PromptLibrary
from softlore.serve.engines.local import LocalEngine
from softlore.serve.state import ServerState
from softlore.settings import ServeSettings
from softlore.story import StoryLibrary, condensing
from waiting import WAIT_SECONDS, wait_until

pytestmark = needs_browser
LORE = """\
name: harbour town
entries:
  - name: Marta
    keys: [Marta, clockmaker]
    text: Marta is the clockmaker of the town. She wears a long red coat.
    blocks:
      - call: Marta wore
        responses: [" a long red coat."]
  - name: Oswin
    text: Captain Oswin keeps the lighthouse.
"""
TOO_WIDE = """
[...document.querySelectorAll("html, .panel:not([hidden]) .body, #page, .composer, .tools, #write")]
  .filter((one) => Math.max(one.scrollWidth - one.clientWidth,
                            one.getBoundingClientRect().right - innerWidth) > 0)
  .map((one) => one.id || one.className || one.tagName)
"""
CONTRAST = """
(selectors) => {
  const numbers = (colour) => {  // the browser gives oklab and the like for mixed colours
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => below.map((part, n) => top[n] * top[3] + part * (1 - top[3]));
  const ground = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      layers.unshift(numbers(getComputedStyle(one).backgroundColor));
    }
    return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((part) => part / 255)
      .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return Object.fromEntries(selectors.map((selector) => {
    const element = document.querySelector(selector);
    const below = ground(element);
    const two = [light(over(numbers(getComputedStyle(element).color), below)), light(below)];
    return [selector, (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05)];
  }));
}
"""


@pytest.fixture(scope="module")
def model():
    return FrozenModel.from_pretrained("storyteller")


@contextlib.contextmanager
def serving(model, folder, book_file=None, **settings):
    """A server with empty folders: its address, and its state."""
    state = ServerState(
        LocalEngine(TorchModelRunner(model, PrefixCache(2**24))),
        prompts=PromptLibrary(folder / "prompts"),
        stories=StoryLibrary(folder / "stories"),
        books=folder / "books",
        settings=ServeSettings(**settings),
        book=book_file and Lorebook.load(book_file),
        book_file=book_file,
    )
    with api_server.served(state) as url:
        yield url, state


@pytest.fixture
def served(model, tmp_path):
    with serving(model, tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser, served):
    """A page on the studio; at the end, nothing may have gone wrong in it or left the server."""
    with opened(browser, served[0]) as page:
        yield page


@contextlib.contextmanager
def opened(browser, address):
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    context.set_default_timeout(WAIT_SECONDS * 1000)
    page = context.new_page()
    faults, asked = [], []
    page.on("console", lambda said: is_fault(said) and faults.append(said.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    ready(page)
    yield page
    context.close()
    assert faults == []
    assert [url for url in asked if not url.startswith((address, "blob:"))] == []


def is_fault(said):
    """Not what a refusal says, nor the plan of a story that was renamed meanwhile."""
    renamed = "404 (Not Found)" in said.text and "/plan" in said.location["url"]
    refused = "400 (Bad Request)" in said.text
    return said.type in ("error", "warning") and not renamed and not refused


def ready(page):
    page.wait_for_selector("body[data-ready]")


def panel(page, name):
    page.click(f"#tabs [data-panel='{name}']")


def import_lore(page):
    panel(page, "lore")
    page.set_input_files(
        "[data-name=lore] input[type=file]",
        {"name": "harbour.yaml", "mimeType": "text/yaml", "buffer": LORE.encode()},
    )
    page.wait_for_selector("[data-entry=Oswin]")


def train_marta(page, steps=4):
    page.click("text=How to train")
    page.fill("[data-name=lore] label:has-text('Tokens') + input", "4")
    page.fill("[data-name=lore] label:has-text('Steps at most') + input", str(steps))
    page.click("[aria-label='Train: Marta']")


def write(page, text="", tokens=12, turns=2):
    """Writes, and waits until the model has."""
    set_tokens(page, tokens)
    page.click("#line")
    if text:
        page.keyboard.type(text)
    page.keyboard.press("Control+Enter")
    finished(page, turns=turns)


def finished(page, turns):
    """Until the model has written, and the story has so many turns."""
    title = "document.querySelector('#write').title"
    wait_until(
        lambda: (
            page.locator("#text .turn[role=textbox]").count() == turns
            and page.evaluate(title).startswith("Write on")
        )
    )


def set_tokens(page, tokens):
    panel(page, "settings")
    page.fill("[data-field=tokens] input", str(tokens))
    panel(page, "")


def shown(page):
    """The turns' texts as the page shows them, less what chips show."""
    return page.eval_on_selector_all(
        "#text .turn",
        """(turns) => turns.map((turn) => {
          const copy = turn.cloneNode(true);
          copy.querySelectorAll(".chip").forEach((chip) =>
            chip.replaceWith(`[[soft:${chip.dataset.name}]]`));
          return copy.textContent.replaceAll("\\u200b", "");
        })""",
    )


def saved_texts(state):
    """The turns' texts as the only story's file holds them."""
    (name,) = state.stories.names()
    with state.stories.open(name) as story:
        return [turn.text for turn in story.turns]


def trained(page, state):
    """An entry is trained, and its curve watched."""
    train_marta(page)
    page.wait_for_selector("svg.plot[aria-label^='Loss'] polyline.picked", state="attached")
    page.wait_for_selector("[data-entry=Marta]:has-text('trained, recall')")
    assert "Marta" in state.prompts
    (training,) = page.evaluate("fetch('/studio/api/trainings').then((said) => said.json())")
    assert training["minutes"] == 5  # of one entry, where nobody asks for others
    summary = page.get_attribute("svg.plot[aria-label^='Loss']", "aria-label")
    assert re.fullmatch(r"Loss.* of Marta: from [\d.]+ at step \d+ to [\d.]+ at step 4\.", summary)


def written_with_a_chip(page, state):
    """The chip is picked from the menu that two brackets open."""
    set_tokens(page, 12)
    page.click("#line")
    page.keyboard.type("At the gate stood [[mar")
    page.wait_for_selector(".menu [role=option]:has-text('Marta')")
    page.keyboard.press("Enter")
    page.keyboard.type("Marta, who wore")
    assert page.locator("#line .chip").count() == 1
    page.keyboard.press("Control+Enter")
    finished(page, turns=2)
    assert saved_texts(state)[0] == "At the gate stood [[soft:Marta]]Marta, who wore"
    assert saved_texts(state)[1].strip()
    assert shown(page) == saved_texts(state)
    page.wait_for_selector(".context-bar:has-text('tokens')")


def stopped(page, state):
    """The text so far is saved; returns it."""
    set_tokens(page, 600)
    page.click("#write")
    length = "document.querySelector('.turn.live')?.textContent.length ?? 0"
    wait_until(lambda: page.evaluate(length) > 20)
    page.keyboard.press("Escape")
    finished(page, turns=3)
    kept = saved_texts(state)
    assert 20 < len(kept[2]) < 1500
    assert shown(page) == kept
    return kept[2]


def edited(page, state, text):
    """Typed into a turn, and saved when it is left; gives the new text."""
    page.keyboard.press("Control+ArrowUp")
    page.keyboard.type(" And so it was.")
    page.click("#line")
    wait_until(lambda: saved_texts(state)[2] == text + " And so it was.")
    return text + " And so it was."


def tried_again(page, state, text):
    """Another try, back to what stood there, and undone; gives the new text."""
    set_tokens(page, 12)
    page.click("#line")
    page.keyboard.press("Alt+R")
    wait_until(lambda: saved_texts(state)[2] != text)
    finished(page, turns=3)
    again = saved_texts(state)[2]
    page.click("[aria-label='Alternative before']")
    wait_until(lambda: saved_texts(state)[2] == text)
    page.click("#line")
    page.keyboard.press("Control+Z")
    wait_until(lambda: saved_texts(state)[2] == again)
    return again


def test_a_writer_goes_through_the_studio(page, served):
    _, state = served
    import_lore(page)
    trained(page, state)
    written_with_a_chip(page, state)
    text = stopped(page, state)
    text = edited(page, state, text)
    text = tried_again(page, state, text)
    page.keyboard.type("She waited")
    panel(page, "lore")
    page.reload()
    ready(page)
    assert shown(page) == saved_texts(state)
    assert shown(page)[2] == text
    assert page.inner_text("#line") == "She waited"
    assert page.locator("#text .chip:not(.unknown)").count() == 1
    assert page.is_visible("[data-entry=Marta]:has-text('trained, recall')")


def test_it_fits_a_phone_and_is_read_in_light_and_dark(page, served):
    import_lore(page)
    panel(page, "")
    write(page, "The rain had come in the night.")
    page.keyboard.press("Alt+R")
    page.wait_for_selector(".tries:has-text('2/2')")
    main = [
        "#text .turn.writer",
        "#text .turn.model",
        "#write",
        ".context-figures",
        "#story-title",
        "#tabs [aria-current]",
        "#tabs button:not([aria-current])",
    ]
    lore = ["[data-entry=Marta] .name", "[data-entry=Marta] .quiet", "[aria-label='Train: Marta']"]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width in (1280, 390, 360):
            page.set_viewport_size({"width": width, "height": 740})
            for name in ("", "memory", "lore", "compare", "prompts", "settings"):
                panel(page, name)
                assert page.evaluate(TOO_WIDE) == [], f"{name or 'write'} at {width}"
                checked = {"": main, "lore": lore}.get(name, [])
                for what, contrast in page.evaluate(CONTRAST, checked).items():
                    assert contrast >= 4.5, f"{what} in {scheme}: {contrast:.2f}"


def test_the_keyboard_is_enough(page, served):
    _, state = served
    assert page.evaluate("document.activeElement.id") == "line"
    page.keyboard.type("A bell rang")
    page.keyboard.press("Control+Shift+Enter")
    wait_until(lambda: page.locator("#text .turn").count() == 1)
    assert saved_texts(state) == ["A bell rang"]
    page.keyboard.press("?")  # in a field it is a letter
    assert page.inner_text("#line") == "?"
    page.keyboard.press("Backspace")
    page.keyboard.press("Alt+3")
    assert page.evaluate("document.activeElement.textContent") == "Lore"
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]:has-text('Stop the model')")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    page.keyboard.press("Escape")
    assert page.is_hidden("#panels")
    assert page.evaluate("document.activeElement.id") == "line"
    page.keyboard.press("Alt+K")
    page.wait_for_selector("#text .turn.kept")
    # No trap: from the line, Tab goes round through the tools and the tabs and comes back.
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.title"))
        if seen[-1] == "line":
            break
    assert {"line", "story-name", "write"} <= set(seen)
    assert any(one.startswith("Undo") for one in seen)
    assert any(one.startswith("Lore") for one in seen)


def test_what_the_server_refuses_is_told_and_nothing_is_lost(page, served):
    import_lore(page)
    page.click("[data-entry=Oswin]")
    page.fill("[data-field=name] input", "a/b")
    page.fill("[data-field=text] textarea", "He is late.")
    page.keyboard.press("Control+S")
    page.wait_for_selector("[data-field=name] .wrong:visible")
    assert page.get_attribute("[data-field=name] input", "aria-invalid") == "true"
    page.reload()
    ready(page)
    page.click("[data-entry=Oswin]")
    assert page.input_value("[data-field=text] textarea") == "He is late."
    page.fill("[data-field=name] input", "Oswin")
    page.click(".entry button[type=submit]")
    page.wait_for_selector(".message:has-text('“Oswin” is saved')")


@pytest.mark.parametrize("text", ["<b>bold</b><img src=x onerror=alert(1)>", "a & b\n\n  c"])
def test_text_is_shown_as_text(page, served, text):
    _, state = served
    state.stories.create("Marks").close()
    with state.stories.open("Marks") as story:
        story.add(text)
    page.reload()
    ready(page)
    assert shown(page) == [text]
    assert page.locator("#text img, #text b").count() == 0


@pytest.mark.parametrize("end", ["", " ", "\n", "\n\n", "\r\n", " [[soft:Marta]]"])
def test_what_is_typed_at_a_turns_end_stands_there(page, served, end):
    _, state = served
    with state.stories.create("one") as story:
        story.add("The rain had come in the night.", by="writer")
        story.add(f" The door was open.{end}", by="model")
    page.reload()
    ready(page)
    text = saved_texts(state)[1]
    page.click("#line")
    page.keyboard.press("Control+ArrowUp")
    page.keyboard.type(" And so it was.")
    page.click("#line")
    wait_until(lambda: saved_texts(state)[1] != text)
    assert saved_texts(state)[1] == f"{text} And so it was."


def test_a_lorebook_is_dropped_on_the_page(page):
    page.evaluate(
        """(text) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([text], "dropped.yaml"));
          const sent = (target, name) => target.dispatchEvent(
            new DragEvent(name, {dataTransfer: transfer, bubbles: true, cancelable: true}));
          sent(document.body, "dragenter");
          sent(document.querySelector(".drop div"), "drop");
        }""",
        LORE,
    )
    page.wait_for_selector("[data-name=lore]:visible [data-entry=Oswin]")
    assert page.locator(".drop").count() == 0


def many(count):
    entries = "".join(f"\n  - name: Person {i}\n    text: Person {i} sings." for i in range(count))
    return f"name: a crowd\nentries:{entries}\n"


def test_a_long_lorebook_is_made_as_it_is_scrolled_and_can_be_searched(page):
    panel(page, "lore")
    page.set_input_files(
        "[data-name=lore] input[type=file]",
        {"name": "crowd.yaml", "mimeType": "text/yaml", "buffer": many(400).encode()},
    )
    page.wait_for_selector("[data-entry='Person 0']")
    rows = page.locator("[data-entry]")
    assert 0 < rows.count() < 200
    while rows.count() < 400:  # each time the last one is in sight, more are made
        before = rows.count()
        rows.last.scroll_into_view_if_needed()
        wait_until(lambda before=before: rows.count() > before)
    assert rows.count() == 400
    assert page.locator("[data-name=lore] .more").count() == 0
    page.click("[data-entry='Person 399']")
    page.click(".entry button:has-text('All entries')")
    page.wait_for_selector("[data-entry='Person 399']:focus")  # the list is as long as before
    page.fill("#lore-search", "person 39")
    wait_until(lambda: rows.count() == 11)
    page.fill("#lore-search", "")
    wait_until(lambda: 0 < rows.count() < 200)


def test_curves_of_many_entries_are_few_and_any_can_be_in_front(page):
    import_lore(page)
    page.evaluate(
        """async () => {
          const curve = (n) => ({step: [1, 2], loss: [3, n / 100], recall: [], drift: []});
          const curves = Object.fromEntries(
            Array.from({length: 300}, (_, n) => [`Person ${n}`, curve(n)]));
          const training = {id: 1, state: "running", entries: Object.keys(curves), curves,
            book: "a crowd", step: 2, done: 0.5};
          (await import("/studio/static/store.js")).set({training});
        }"""
    )
    page.wait_for_selector("svg.plot[aria-label^='Loss'] polyline.picked")
    loss = page.locator("svg.plot[aria-label^='Loss']")
    assert loss.locator("polyline").count() <= 25
    page.select_option("[aria-label='Entry in front']", "Person 299")
    page.wait_for_selector(
        "svg.plot[aria-label^='Loss of Person 299'], svg.plot[aria-label*='of Person 299']"
    )
    assert "to 3.0 at step 2" in loss.get_attribute("aria-label")


def test_the_key_is_asked_for_once(browser, model, tmp_path):
    with serving(model, tmp_path, api_key="open-sesame") as (address, _):
        page = browser.new_page()
        page.goto(address)
        page.fill("dialog input[type=password]", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog:has-text('not right')")
        page.fill("dialog input[type=password]", "open-sesame")
        page.keyboard.press("Enter")
        ready(page)
        page.reload()
        ready(page)
        assert page.locator("dialog").count() == 0
        page.close()


def test_the_lorebook_of_the_command_is_open_active_and_trainable(browser, model, tmp_path):
    file = tmp_path / "town.yaml"
    file.write_text(LORE)
    with serving(model, tmp_path, book_file=file) as served, opened(browser, served[0]) as page:
        _, state = served
        page.wait_for_selector("[data-name=lore]:visible [data-entry=Oswin]")
        write(page, "At the gate stood Marta.")
        page.wait_for_selector(".context-parts:has-text('Marta')", state="attached")
        panel(page, "lore")
        page.click("[data-entry=Oswin]")
        page.fill("[data-field=text] textarea", "Oswin is a baker.")
        page.keyboard.press("Control+S")
        page.wait_for_selector(".message:has-text('is saved')")
        assert Lorebook.load(file)["Oswin"].text == "Oswin is a baker."
        assert state.book["Oswin"].text == "Oswin is a baker."  # for the APIs' clients, too
        train_marta(page)
        page.wait_for_selector("[data-entry=Marta]:has-text('trained, recall')")
        panel(page, "lore")
        page.click("[aria-label='Delete the lorebook']")
        page.click("dialog button:has-text('Delete')")
        page.wait_for_selector(".message.error:has-text('started with')")
        assert file.exists()


def test_the_model_is_changed_in_the_page(browser, tmp_path):
    """The page waits while the server loads it, and is loaded again with what was typed."""
    models = tmp_path / "models"
    save_tiny_model(models / "tiny")
    with (
        serving_process(tmp_path, models=models) as server,
        browser.new_context() as context,
    ):
        page = context.new_page()
        page.goto(server.url)
        ready(page)
        page.fill("#line", "The harbour was empty.")
        panel(page, "settings")
        page.click("summary:text('Another model')")
        page.wait_for_selector("li:has-text('storyteller'):has-text('in use')")
        page.get_by_role("button", name="Use tiny").click()
        with page.expect_navigation():
            page.get_by_role("dialog").get_by_role("button", name="Use tiny").click()
        ready(page)
        assert "The harbour was empty." in page.inner_text("#line")
        page.click("summary:text('Another model')")
        page.wait_for_selector("li:has-text('tiny'):has-text('in use')")


def test_a_chat_has_names_and_speakers_to_choose(page, served):
    """The writer's lines get a name; the speaker chosen speaks, and after that whose turn it is."""
    set_tokens(page, 6)
    panel(page, "settings")
    page.select_option("[data-field=form] select", "chat")
    speakers = page.locator("[data-field=cast] input")
    for name in ("Marta", "Tobias"):
        speakers.fill(name)
        speakers.press("Enter")
    page.fill("[data-field=user] input", "Ada")
    page.wait_for_selector("#speaker:not([hidden])")
    wait_until(lambda: settings_of(served[1]).user == "Ada", "the name is not saved")
    page.select_option("#speaker", "Tobias")
    write(page, "Good evening.", tokens=6)
    story = "".join(shown(page))
    assert story.startswith("Ada: Good evening.\nTobias:")
    assert page.locator("#speaker").input_value() == ""
    assert page.inner_text("#speaker option:first-child") == "Marta next"


def settings_of(state):
    (name,) = state.stories.names()
    with state.stories.open(name) as story:
        return story.settings


def test_a_writer_begins_with_an_example(page, served):
    _, state = served
    page.wait_for_selector(".empty-story:has-text('a character card'):has-text('storyteller')")
    page.click("text=Or begin with an example")
    page.wait_for_selector("[data-name=lore]:visible [data-entry=Marta]")
    page.wait_for_selector(".context-parts:has-text('Marta')", state="attached")
    page.click("#line")
    set_tokens(page, 8)
    page.click("#write")
    finished(page, turns=2)
    assert saved_texts(state)[1].strip()


def test_a_new_story_needs_no_name(page, served):
    _, state = served
    for line in ("A bell rang twice", "A bell rang again"):
        page.click("#story-name")
        page.click("text=New story")
        page.wait_for_selector("#story-title:text-is('Story')")
        page.wait_for_selector("#line:focus")
        page.keyboard.type(line)
        page.keyboard.press("Control+Shift+Enter")
        wait_until(lambda: page.inner_text("#story-title").startswith("A bell rang"))
        wait_until(lambda: page.locator("#text .turn").count() == 1)
    assert set(state.stories.names()) == {"A bell rang twice", "A bell rang again"}
    page.click("#story-name")
    page.click("text=New story")
    wait_until(lambda: page.inner_text("#story-title") == "Story")
    panel(page, "memory")
    page.click("#story-memory")
    page.keyboard.type("It is winter.")
    page.click("#story-note")

    def memory():
        with state.stories.open("Story") as story:
            return story.settings.memory

    wait_until(lambda: memory() == "It is winter.")


def test_messages_never_lie_on_the_text(page):
    import_lore(page)
    panel(page, "")
    set_tokens(page, 4)
    page.click("#line")
    page.keyboard.type("The rain had come. " * 40)
    page.keyboard.press("Control+Enter")
    finished(page, turns=2)
    page.evaluate(
        "import('/studio/static/messages.js').then((m) => m.tell('a word', {error: true}))"
    )
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 740})
        message = page.locator(".message").last.bounding_box()
        for what in ("#page", "#composer", ".top #story-name"):
            box = page.locator(what).bounding_box()
            apart = message["y"] + message["height"] <= box["y"] + 0.5
            assert apart or box["y"] + box["height"] <= message["y"] + 0.5, what


def test_a_response_in_lines_with_its_space_is_saved_and_trained(page, served):
    _, state = served
    import_lore(page)
    page.click("[data-entry=Oswin]")
    page.click("text=Add a pair")
    page.fill("[aria-label='Call of pair 1']", "Oswin sang")
    page.fill("[aria-label='Response 1 of pair 1']", "")
    page.click("[aria-label='Response 1 of pair 1']")
    page.keyboard.type("of the sea,")
    page.keyboard.press("Enter")
    page.keyboard.type("of the shore.")
    page.click("text=Save and train")
    page.wait_for_selector(".training:has-text('Oswin')")
    book = Lorebook.load(state.books / "harbour.yaml")
    assert book["Oswin"].blocks[0].responses == [" of the sea,\nof the shore."]
    wait_until(lambda: re.search(r"step \d+ of \d+ at most", page.inner_text(".training")))
    page.wait_for_selector(".training:has-text('left')")
    page.click(".training >> text=Stop")
    page.wait_for_selector(".training:has-text('Stopped')")


def test_a_training_that_is_finished_early_says_so(page, served):
    import_lore(page)
    train_marta(page, steps=2000)
    page.click(".training >> text=Finish now")
    page.wait_for_selector(".training h3:text-is('Finished early: Marta')")
    page.wait_for_selector("[data-entry=Marta]:has-text('trained, recall')")


def test_compare_opens_with_the_story_and_says_what_is_not_in_a_column(page, served):
    _, state = served
    import_lore(page)
    train_marta(page)
    page.wait_for_selector("[data-entry=Marta]:has-text('trained, recall')")
    write(page, "The bell rang. At the gate stood Marta with Oswin, who wore")
    page.wait_for_selector(".context-parts:has-text('Oswin')", state="attached")
    panel(page, "settings")
    page.select_option("[data-field=preset] select", "Careful")
    page.wait_for_selector("[data-field=preset]:has-text('likeliest words')")
    panel(page, "compare")
    opening = page.input_value("[data-name=compare] [data-field=text] textarea")
    assert opening == "".join(saved_texts(state))
    assert page.locator(".picks input:checked").count() == 2
    page.fill("[data-name=compare] label:has-text('Tokens') + input", "8")
    with page.expect_request("**/compare") as asked:
        page.click("[data-name=compare] .button.main")
    assert asked.value.post_data_json["sampling"] == {"temperature": 0.6, "top_p": 0.9}
    page.wait_for_selector("[data-method=soft]:has-text('Oswin is not in here: it is not trained')")
    page.wait_for_selector("text=Save as a picture")
    with page.expect_download() as download:
        page.click("text=Save as a picture")
    content = Path(download.value.path()).read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert width > 1200
    assert height > 200


def test_a_prompts_details_are_for_people_first(page):
    import_lore(page)
    train_marta(page)
    page.wait_for_selector("[data-entry=Marta]:has-text('trained, recall')")
    panel(page, "prompts")
    assert page.inner_text("[data-name=prompts] .open .quiet").startswith("recall ")
    page.click("[data-name=prompts] .open")
    said = page.inner_text("dialog")
    assert "It fits the model that is running." in said
    assert re.search(
        r"Its recall is \d+\.\d\d nats a token of lore, that of the model without it",
        said,
    )
    assert "fingerprint" not in said
    page.click("dialog summary")
    assert "fingerprint" in page.inner_text("dialog")


def seeded(page, state):
    """A story whose turns are the same in each run."""
    state.stories.create("Seeded").close()
    with state.stories.open("Seeded") as story:
        story.set(seed=3)
    page.reload()
    ready(page)


def move_into_text(page, characters):
    """Moves the cursor from the writing line to a place of the last turn."""
    page.keyboard.press("Control+ArrowUp")
    page.keyboard.press("Home")
    for _ in range(characters):
        page.keyboard.press("ArrowRight")


def test_another_word_is_taken_at_the_cursor_or_by_hover(page, served):
    _, state = served
    seeded(page, state)
    write(page, "The old king", tokens=20)
    first = saved_texts(state)[1]
    move_into_text(page, 5)
    page.keyboard.press("Alt+P")
    page.wait_for_selector(".chances button:focus")
    page.keyboard.press("Escape")
    page.wait_for_selector(".chances", state="detached")
    assert page.evaluate("document.activeElement.classList.contains('turn')")
    page.keyboard.press("Alt+P")
    page.wait_for_selector(".chances button:focus")
    other = page.inner_text(".chances button:focus .word")
    page.keyboard.press("Enter")
    wait_until(lambda: saved_texts(state)[1] != first)
    assert saved_texts(state)[1].endswith(other)
    page.click(".message button:has-text('Undo')")
    wait_until(lambda: saved_texts(state)[1] == first)
    page.click("[aria-label='Show what else a word might be, on hover']")
    hovered(page)
    page.click(".chances button")
    wait_until(lambda: saved_texts(state)[1] != first)


def hovered(page):
    page.mouse.move(0, 0)
    page.hover("#text .turn.model")
    page.wait_for_selector(".chances button")


def test_the_words_it_might_be_go_with_what_is_opened_over_them(page, served):
    seeded(page, served[1])
    write(page, "The old king", tokens=20)
    switch = "[aria-label='Show what else a word might be, on hover']"
    page.click(switch)
    for leave in ("Alt+4", "Alt+3", "?", switch):
        hovered(page)
        if leave == switch:
            page.locator(switch).dispatch_event("click")
        else:
            page.keyboard.press(leave)
        page.wait_for_selector(".chances", state="detached")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")


def test_one_of_several_continuations_is_chosen(page, served):
    _, state = served
    write(page, "The old king")
    page.click("[aria-label='Several continuations to choose from']")
    page.wait_for_selector(".choice:enabled:focus")
    texts = page.eval_on_selector_all(".choice .written", "(all) => all.map((o) => o.textContent)")
    assert len(texts) == 3
    page.keyboard.press("2")
    finished(page, turns=3)
    wait_until(lambda: saved_texts(state)[2].strip() == texts[1].strip())
    page.wait_for_selector(".tries:has-text('2/3')")
    assert page.inner_text("#line") == ""
    assert page.evaluate("document.activeElement.id") == "line"
    page.keyboard.press("Alt+C")
    page.wait_for_selector(".choice:enabled:focus")
    page.wait_for_selector("dialog:has-text('Esc keeps the last one in the story')")
    last = page.inner_text(".choice:visible >> nth=-1 >> .written")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    finished(page, turns=4)
    assert saved_texts(state)[3].strip() == last.strip()


def test_a_sentence_is_rewritten_in_place(page, served):
    _, state = served
    page.keyboard.type("It was late. The king was old and tired. Nobody spoke.")
    page.keyboard.press("Control+Shift+Enter")
    wait_until(lambda: page.locator("#text .turn").count() == 1)
    move_into_text(page, 20)
    page.keyboard.press("Alt+E")
    page.wait_for_selector(".choice:enabled:focus")
    sentence = page.inner_text(".choice:focus .written")
    page.keyboard.press("1")
    page.wait_for_selector(".message:has-text('Written anew')")
    assert saved_texts(state) == [f"It was late. {sentence} Nobody spoke."]


def test_a_preset_sets_the_samplers_and_says_what_it_is_for(page, served):
    _, state = served
    write(page, "The old king")
    panel(page, "settings")
    page.wait_for_selector("[data-field=preset]:has-text('without repeating itself')")
    page.select_option("[data-field=preset] select", "Careful")
    page.wait_for_selector("[data-field=preset]:has-text('likeliest words')")
    with state.stories.open(*state.stories.names()) as story:
        assert story.settings.sampling == {"temperature": 0.6, "top_p": 0.9}
    page.locator(".slider:has-text('temperature') input").press("ArrowRight")
    page.wait_for_selector(".slider:has-text('temperature') output:text-is('0.65')")


def test_the_exact_context_is_shown(page):
    import_lore(page)
    write(page, "At the gate stood Marta.")
    page.click(".context-bar")
    page.click("text=Read the exact text")
    read = page.inner_text("dialog .exact")
    assert "She wears a long red coat." in read
    assert "At the gate stood Marta." in read


def test_lore_finds_itself_by_cards(page, served):
    _, state = served
    page.click("#line")
    page.keyboard.type(
        "They met Marta. So Marta went to Odrin. Nobody in Odrin knew Marta. Then Odrin slept, "
        "and Zoe sang. They heard Zoe. And Zoe sang on."
    )
    page.keyboard.press("Control+Shift+Enter")
    wait_until(lambda: state.stories.names() and saved_texts(state))
    panel(page, "lore")
    page.click("text=Find lore in the story")
    page.wait_for_selector("[aria-label='Accept: Odrin']")
    assert page.locator("[data-name=lore] .cards .card").count() == 3
    axe(page, "cards")
    page.click("[aria-label='Accept: Odrin']")
    page.wait_for_selector("[aria-label='Accept: Odrin']", state="detached")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Accept")
    page.keyboard.press("Tab")  # from Accept to Edit, and Drop
    page.keyboard.press("Tab")
    dropped = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"[aria-label='{dropped}']", state="detached")
    page.click("[aria-label^='Edit: ']")
    page.fill("[data-field=text] textarea", "Someone from the hills.")
    page.click("[data-name=lore] button[type=submit]")
    page.wait_for_selector("text=No name recurs in this story")
    page.click("text=All entries")
    (name,) = state.stories.names()
    with state.stories.open(name) as story:
        book = Lorebook.load(story.settings.lorebook)
        assert story.settings.dropped == [dropped.removeprefix("Drop: ")]
    assert [entry.text for entry in book][1] == "Someone from the hills."
    assert book.entries[0].name == "Odrin"
    for entry in book:
        page.wait_for_selector(f"[data-entry='{entry.name}']")


def test_an_entry_has_a_past_and_a_present(page, served):
    _, state = served
    import_lore(page)
    write(page, "At the gate stood Marta.")
    panel(page, "lore")
    page.click("[data-entry=Marta]")
    page.click("text=What has changed in this story")
    page.get_by_label("From here on").fill("Marta has left the town.")
    axe(page, "change")
    page.click("text=Change from here on")
    page.wait_for_selector("text=Since turn 2: Marta has left the town.")
    (name,) = state.stories.names()

    def now():
        with state.stories.open(name) as story:
            return [(place, change.text) for place, change in story.changes()]

    assert now() == [(2, "Marta has left the town.")]
    page.click("text=All entries")
    page.wait_for_selector(".context-parts:has-text('Marta')", state="attached")
    page.click("[aria-label='Undo']")
    wait_until(lambda: not now())


def test_chapters_are_shown_edited_and_switched_off(page, served, monkeypatch):
    monkeypatch.setattr(condensing, "UPDATES", 1)
    _, state = served
    name = "long"
    with state.stories.create(name) as story:
        story.set(context_tokens=96, budget=40)
        for _ in range(3):
            story.add("Marta went to the gate. She saw a dog. " * 10)
    page.reload()
    ready(page)
    write(page, turns=4)
    page.wait_for_selector(".context-parts:has-text('cut in large steps')", state="attached")
    wait_until(lambda: (state.stories.folder / f"{name}.chapters/chapters.yaml").exists())
    page.reload()
    ready(page)
    panel(page, "memory")
    field = page.get_by_label("Chapter 1", exact=True)
    field.fill("Marta waited at the gate.")
    axe(page, "chapters")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=Pinned: read as it is.")
    page.wait_for_selector(
        ".context-parts:has-text('What came before: Chapter 1')", state="attached"
    )
    page.click("text=Remember what leaves the context")
    page.wait_for_selector(".context-parts:not(:has-text('What came before'))", state="attached")
    with state.stories.open(name) as story:
        assert not story.settings.chapters


def axe(page, where):
    """Asserts that axe finds no violation in the page as it is."""
    package = pytest.importorskip("axe_playwright_python")
    page.evaluate((Path(package.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("axe.run().then((found) => found.violations)")
    told = [(one["id"], [node["html"][:100] for node in one["nodes"]]) for one in found]
    assert told == [], where


def check_dialogs(page, state, check):
    """What opens above the story, one after another."""
    panel(page, "compare")
    page.click("[data-name=compare] .button.main")
    page.wait_for_selector("text=Save as a picture")
    check("compared")
    panel(page, "prompts")
    page.click("[data-name=prompts] .open")
    page.wait_for_selector("dialog")
    check("prompt")
    page.keyboard.press("Escape")
    panel(page, "")
    page.click(".context-bar")
    check("context")
    page.click("text=Read the exact text")
    page.wait_for_selector("dialog .exact")
    check("exact")
    page.keyboard.press("Escape")
    page.click("#line")
    page.keyboard.press("Alt+C")
    page.wait_for_selector(".choice:enabled:focus")
    check("choices")
    with page.expect_response("**/go"):
        page.keyboard.press("1")
    wait_until(lambda: shown(page) == saved_texts(state))  # until then the last one is there
    page.locator("#text .turn.model").last.focus()
    page.keyboard.press("Control+Home")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Alt+P")
    page.wait_for_selector(".chances")
    check("chances")
    page.keyboard.press("Escape")


def test_axe_finds_no_violation(page, served):
    """Also in dialogs, in the dark and at a phone's width."""
    check = functools.partial(axe, page)
    check("first")
    import_lore(page)
    check("lore")
    page.click("[data-entry=Marta]")
    check("entry")
    page.click("text=All entries")
    train_marta(page)
    page.wait_for_selector("[data-entry=Marta]:has-text('trained, recall')")
    check("trained")
    seeded(page, served[1])
    write(page, "At the gate stood Marta, who wore")
    page.emulate_media(reduced_motion="reduce")
    for scheme, width in (("light", 1280), ("dark", 390)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        for name in ("", "memory", "compare", "prompts", "settings"):
            panel(page, name)
            check((name, scheme, width))
        check_dialogs(page, served[1], lambda where, scheme=scheme: check((where, scheme)))


CARD = {
    "spec": "chara_card_v2",
    "spec_version": "2.0",
    "data": {
        "name": "Zoe",
        "description": "{{char}} watches.",
        "first_mes": "{{char}} looks at {{user}}.",
        "alternate_greetings": ["Halt, says {{char}}."],
        "scenario": "Night.",
        "mes_example": "",
    },
}


def test_a_card_begins_a_story_with_names_and_the_context_says_why(page, served):
    _, state = served
    panel(page, "lore")
    file = {"name": "zoe.json", "mimeType": "text/json", "buffer": json.dumps(CARD).encode()}
    page.set_input_files("[data-name=lore] input[type=file]", file)
    page.wait_for_selector("[data-entry=Zoe]")
    page.select_option("[data-name=lore] label:has-text('First message') + select", "2")
    assert not page.locator("text=Begin as messages").count()  # the model has no template
    axe(page, "card")
    page.click("text=Begin a story with it")
    assert page.input_value("dialog input") == "You"
    axe(page, "name")
    page.fill("dialog input", "Ada")
    page.keyboard.press("Enter")
    wait_until(lambda: state.stories.names() and shown(page) == ["Halt, says Zoe.\n"])
    page.click("[aria-label='Alternative after']")
    wait_until(lambda: shown(page) == ["Zoe looks at Ada.\n"])
    (name,) = state.stories.names()

    def named():
        with state.stories.open(name) as story:
            return story.settings.user == "Ada" and story.settings.memory == "Night."

    wait_until(named)
    panel(page, "settings")
    page.click("text=Another model")
    page.wait_for_selector("li:has-text('storyteller'):has-text('in use')")
    page.wait_for_selector(".name:text-is('smollm2-1.7b')")
    page.wait_for_selector("code:has-text('softlore models get smollm2-1.7b')")
    axe(page, "models")
    set_tokens(page, 12)
    page.click(".context-bar")
    page.wait_for_selector(".context-parts:has-text('Zoe enters as text: it has no soft prompt')")


def test_a_card_begins_as_messages_where_the_model_has_a_template(page, model, served, monkeypatch):
    template = "{% for one in messages %}{{ one.content }}\n{% endfor %}"
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    page.reload()
    ready(page)
    panel(page, "lore")
    file = {"name": "zoe.json", "mimeType": "text/json", "buffer": json.dumps(CARD).encode()}
    page.set_input_files("[data-name=lore] input[type=file]", file)
    page.click("text=Begin as messages")
    page.click("dialog button:has-text('Begin')")
    page.wait_for_selector("#story-title:text-is('zoe messages')")
    assert settings_of(served[1]).form == "instruct"
