"""One viewer's page: HTML that is replaced where it has changed, and what can be pressed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any, Literal, TypeVar

from nicegui import ui

from ops.dashboard import render, slate
from ops.dashboard.data import Board
from ops.dashboard.desk import Desk
from ops.dashboard.style import CSS
from schemas.control import Then, What
from schemas.errors import FreshetError

WRONG_TOKEN_S = 1.0     # a guesser waits
READ_ONLY = (
    "Read-only. With a token this page pins versions and rolls back: <code>openssl rand -hex 32 &gt; token</code>, "
    "<code>chmod 600 token</code>, <code>freshet dashboard --set dashboard.token_file=token</code>."
)
THEN = {
    "skip": "skip: the events were bad; what was learnt since is left out",
    "replay": "replay: the events were good; what came since is learnt again",
}
_PICKED = "(e) => { const number = e.target.dataset.version; if (number) emit(number); }"

Done = TypeVar("Done")


class View:
    """Made within a page of NiceGUI."""

    def __init__(self, desk: Desk, board: Board) -> None:
        self._desk = desk
        self._shown: list[tuple[ui.html, Callable[[Board], str]]] = []
        self._unlocked = False
        self._lock: list[ui.element] = []          # seen while locked
        self._orders: list[ui.element] = []        # seen once unlocked
        ui.add_css(CSS)
        ui.colors(primary="#0b57d0", negative="#b3261e")
        self._dark = ui.dark_mode(None)
        with ui.element("header"):
            ui.html(f"<h1>freshet <small>{escape(board.model)}</small></h1>", sanitize=False)
            ui.toggle({None: "system", False: "light", True: "dark"}, value=None).props(
                'dense no-caps aria-label="light or dark"'
            ).bind_value(self._dark, "value")
        with ui.element("div").classes("panels") as main:
            self._section("parts", "Is everything there?", render.processes)
            self._section("right", "Is it right?", render.right)
            with self._section("old", "How old?", render.old):
                self._table("a click's way", render.way)
            self._section("fast", "How fast?", render.fast)
            with self._section("drifts", "What drifts?"):
                self._html(render.gate)
                gate = ui.element("div")
                self._html(render.drifts)
                self._table("slices that moved", render.moved_slices)
                self._table("fields that moved", render.moved_fields)
            with self._section("versions", "Versions", render.no_versions):
                self._build_orders(self._table("versions", render.versions))
            if self._desk.takes_orders:
                with gate:
                    self._build_gate()
                self._seen()
            with self._section("letters", "Dead letters"):
                self._build_letters()
            with self._section("slate", "A slate by hand"):
                self._build_slate()
        ui.skip_link("to the figures", target=main)
        self._html(render.spoken, 'role="status" class="unseen"')
        self.show(board)

    def show(self, board: Board) -> None:
        """Replace what is another than before."""
        for element, make in self._shown:
            content = make(board)
            if element.content != content:
                element.content = content

    # --- parts ---

    def _section(self, name: str, title: str, make: Callable[[Board], str] | None = None) -> ui.element:
        section = ui.element("section").props(f'aria-labelledby="{name}-title"').classes(name)
        with section:
            ui.html(f'<h2 id="{name}-title">{title}</h2>', sanitize=False)
            if make is not None:
                self._html(make).classes(f"{name}-figures")
        return section

    def _html(self, make: Callable[[Board], str], props: str = "") -> ui.html:
        element = ui.html("", sanitize=False).props(props)
        self._shown.append((element, make))
        return element

    def _table(self, name: str, make: Callable[[Board], render.Table | None]) -> ui.element:
        """Its caption, and a region of that name that stays while the table in it is replaced: where it was scrolled to, and
        the keyboard's place. Both are hidden while there is no table."""
        caption = self._html(lambda board: f"<p>{escape(found.caption)}</p>" if (found := make(board)) else "")
        with ui.element("div").classes("scroll").props(f'role="region" aria-label="{name}" tabindex="0"') as region:
            table = self._html(lambda board: found.html() if (found := make(board)) else "")
        for element in (caption, region):
            element.bind_visibility_from(table, "content", backward=bool)
        return region

    def _build_orders(self, versions: ui.element) -> None:
        if not self._desk.takes_orders:
            ui.html(f'<p class="read-only">{READ_ONLY}</p>', sanitize=False)
            return
        with ui.element("div").classes("bar-of-buttons") as locked:
            token = ui.input("Token for orders", password=True).props('dense autocomplete="current-password"')
            token.on("keydown.enter", partial(self._unlock, token))
            ui.button("Unlock", on_click=partial(self._unlock, token)).props("no-caps")
        with ui.element("div").classes("bar-of-buttons") as orders:
            number = ui.number("Version", min=1, precision=0, format="%d").props("dense")
            self._number = number
            ui.button("Pin", on_click=lambda: self._order("pin", number.value)).props("no-caps")
            ui.button("Unpin", on_click=lambda: self._order("unpin", number.value)).props("no-caps")
            ui.button("Roll back …", on_click=lambda: self._ask(number.value)).props("no-caps color=negative")
        versions.on("mousedown", lambda event: number.set_value(int(event.args)), js_handler=_PICKED)
        self._lock.append(locked)
        self._orders.append(orders)
        self._told = _told()
        self._dialog, self._question = self._build_dialog(number)

    def _build_gate(self) -> None:
        with ui.element("div").classes("bar-of-buttons") as orders:
            ui.button("Hold new versions", on_click=lambda: give("hold")).props("no-caps outline")
            ui.button("Release", on_click=lambda: give("release")).props("no-caps outline")
        self._orders.append(orders)
        told = _told()

        async def give(what: Literal["hold", "release"]) -> None:
            if self._unlocked:
                await _say(told, f"{what}: waiting for the trainer …", self._desk.gate, what)

    def _build_dialog(self, number: ui.number) -> tuple[ui.dialog, ui.label]:
        with ui.dialog().props('aria-label="confirm the roll back"') as dialog, ui.card():
            question = ui.label().classes("question")
            then = ui.radio(THEN, value="skip").props('aria-label="and then"')

            async def yes() -> None:
                dialog.close()
                await self._order("rollback", number.value, then.value)

            with ui.element("div").classes("bar-of-buttons"):
                ui.button("Roll back", on_click=yes).props("no-caps color=negative")
                ui.button("Cancel", on_click=dialog.close).props("no-caps flat autofocus")
        return dialog, question

    def _build_letters(self) -> None:
        ui.button("Read the newest", on_click=lambda: read()).props("no-caps")
        told = _told()
        found = ui.html("", sanitize=False)

        async def read() -> None:
            answer = await _done(told, "reading …", self._desk.letters)
            if answer is not None:
                found.content = render.letters(*answer)

    def _build_slate(self) -> None:
        with ui.element("div").classes("bar-of-buttons") as begin:
            ui.button("Fill in an example", on_click=lambda: fill()).props("no-caps")
        place = ui.element("div")

        def fill() -> None:
            begin.set_visibility(False)
            form = slate.example(self._desk.schema)
            with place:
                first = _fieldset("Context", form.context)
                for number, item in enumerate(form.items, 1):
                    _fieldset(f"Item {number}", item)
                with ui.element("div").classes("bar-of-buttons"):
                    ui.button("Score", on_click=lambda: score()).props("no-caps")
                    ui.button("Explain", on_click=lambda: explain()).props("no-caps")
                told = _told()
                scored = ui.html("", sanitize=False).classes("scored")
                explained = ui.html("", sanitize=False).classes("explained")

            first.run_method("focus")              # the button that had it is gone

            async def score() -> None:
                answer = await _done(told, "asking …", self._desk.score, form)
                if answer is not None:
                    scored.content = render.scored(answer)

            async def explain() -> None:
                answer = await _done(told, "asking …", self._desk.explain, form)
                if answer is not None:
                    explained.content = "".join(map(render.explained, answer.items))

    # --- orders ---

    def _seen(self) -> None:
        for element in self._lock:
            element.set_visibility(not self._unlocked)
        for element in self._orders:
            element.set_visibility(self._unlocked)

    async def _unlock(self, token: ui.input) -> None:
        self._unlocked = self._desk.opens(token.value or "")
        token.value = ""
        if self._unlocked:
            self._told.text = "Orders are open until this page is closed."
            self._seen()
            self._number.run_method("focus")       # what had the focus is gone
        else:
            await asyncio.sleep(WRONG_TOKEN_S)
            self._told.text = "That is not the token of dashboard.token or dashboard.token_file."

    def _ask(self, number: float | None) -> None:
        if number is None:
            self._told.text = "Which version? Put its number in."
            return
        self._question.text = f"Every scorer will answer with version {int(number):,} a moment from now. What was learnt since:"
        self._dialog.open()

    async def _order(self, what: What, number: float | None, then: Then | None = None) -> None:
        if not self._unlocked:
            return
        if number is None:
            self._told.text = "Which version? Put its number in."
            return
        waits = f"{what} {int(number)}: waiting for the trainer …"
        await _say(self._told, waits, self._desk.order, what, int(number), then)


def _told() -> ui.label:
    """Where the answer to what was pressed stands."""
    return ui.label().props('role="status"').classes("answer-line")


def _fieldset(title: str, texts: slate.Texts) -> ui.input:
    """Fields that write what is typed into `texts`; the first of them."""
    with ui.element("fieldset"):
        ui.html(f"<legend>{title}</legend>", sanitize=False)
        made = [ui.input(name, value=texts[name]).props("dense").bind_value_to(texts, name) for name in texts]
    return made[0]


async def _say(told: ui.label, meanwhile: str, work: Callable[..., str], *given: Any) -> None:
    """Tell what work says, or why it failed."""
    answer = await _done(told, meanwhile, work, *given)
    if answer is not None:
        told.text = answer


async def _done(told: ui.label, meanwhile: str, work: Callable[..., Done], *given: Any) -> Done | None:
    """What work gives, off the event loop; None where it fails, with the reason told."""
    told.text = meanwhile
    try:
        found = await asyncio.to_thread(work, *given)
    except FreshetError as wrong:
        told.text = str(wrong)
        return None
    told.text = ""
    return found
