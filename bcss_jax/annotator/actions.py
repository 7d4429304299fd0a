"""What the requests of the page do to a session and its engine; plain values in and out."""

import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from shapely.geometry.base import BaseGeometry

from bcss_jax.annotator.drawing import edits
from bcss_jax.annotator.drawing.document import Document
from bcss_jax.annotator.drawing.edits import Changes
from bcss_jax.annotator.drawing.geojson_file import Effort
from bcss_jax.annotator.drawing.outline import BRUSH, PROMPT, Outline, rings_of
from bcss_jax.annotator.drawing.palette import Palette, PaletteClass
from bcss_jax.annotator.drawing.session import Session
from bcss_jax.annotator.next_region.next_regions import NextRegions
from bcss_jax.annotator.proposals.engine import Engine, Proposal
from bcss_jax.slides.prompts.object_prompt import INSIDE, OUTSIDE, ObjectPrompt

WAIT_SECONDS = 20.0  # for a view to be computed; then the page asks again


class Refused(Exception):
    """Raised for a request that cannot be carried out; the message is for the user."""


class Actions:
    """The actions of one slide. Threads may share it."""

    def __init__(self, session: Session, engine: Engine, regions: NextRegions | None = None):
        """Takes what the actions work on; `regions`: which to annotate next, if that was asked for."""
        self._session, self._engine, self._regions = session, engine, regions

    def state(self, since: int) -> dict[str, Any]:
        """Returns what the page does not know yet."""
        state = self._session.state(since)
        return {
            "revision": state.revision,
            "changed": [_shown(each, self._session.palette) for each in state.changed],
            "removed": state.removed,
            "problem": None if state.problem is None else {"kind": state.problem.kind, "text": state.problem.text},
            "clicks": state.effort.clicks,
            "seconds": round(state.effort.seconds, 1),
        }

    def look(self, values: dict) -> dict[str, Any]:
        """Computes what is looked at; see `LookRequest`."""
        x0, y0, x1, y1 = values["box"]
        ready, of = self._engine.look((x0, y0, x1, y1), values["um_per_pixel"])
        return {"ready": ready, "of": of}

    def next_region(self, values: dict) -> dict[str, Any]:
        """Returns which region to annotate next; see `NextRegionRequest`."""
        if self._regions is None:
            raise Refused("start the command with --next to be shown which region to annotate")
        found, left = self._regions.after(values["after"], self._session.annotated())
        region = None if found is None else {"rank": found.rank, "box": list(found.box), "share": found.share}
        return {"region": region, "left": left}

    def prompt(self, values: dict) -> dict[str, Any]:
        """Returns proposals; see `PromptRequest`."""
        points = np.array([each["at"] for each in values["points"]], np.float64).reshape(-1, 2)
        box = values["box"]
        if not len(points) and box is None:
            raise Refused("expected a click or a box")
        self._check_on_slide(points if box is None else np.concatenate([points, np.reshape(box, (2, 2))]))
        prompt = ObjectPrompt(
            points if len(points) else None,
            np.array([INSIDE if each["inside"] else OUTSIDE for each in values["points"]]) if len(points) else None,
            box and (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])),
        )
        previous = values["previous"] and (values["previous"][0], values["previous"][1])
        answer = self._engine.prompt(prompt, values["um_per_pixel"], previous, WAIT_SECONDS)
        if answer is None:
            return {"computing": True}
        return {
            "computing": False,
            "answer": answer.number,
            "proposals": [
                {"polygons": rings_of(each.area), "score": round(each.score, 3)} for each in answer.proposals
            ],
        }

    def add(self, values: dict) -> dict[str, Any]:
        """Accepts a proposal; see `AddRequest`."""
        proposal: Proposal | None = self._engine.proposal(values["answer"], values["choice"])
        if proposal is None:
            raise Refused("this proposal is not there any more; click again")
        return self._drawn(values, proposal.area, PROMPT)

    def brush(self, values: dict) -> dict[str, Any]:
        """Draws with the brush; see `BrushRequest`."""
        return self._drawn(values, self._stroke(values), BRUSH)

    def erase(self, values: dict) -> dict[str, Any]:
        """Erases; see `EraseRequest`."""
        area = self._stroke(values)

        def change(document: Document) -> Changes:
            of = values["of"]
            outlines = document.outlines() if of is None else [document.expect(of["id"], of["revision"])]
            return edits.erase(outlines, area, (values["clicks"], values["seconds"]))

        return self._edited(values, change)

    def set_class(self, values: dict) -> dict[str, Any]:
        """Gives outlines a class; see `TargetsRequest`."""
        to = self._class(values)

        palette = self._session.palette
        return self._edited(
            values, lambda document: edits.set_class(document, palette, self._targets(document, values), to)
        )

    def delete(self, values: dict) -> dict[str, Any]:
        """Deletes outlines; see `TargetsRequest`."""
        return self._edited(values, lambda document: {each.id: None for each in self._targets(document, values)})

    def accept(self, values: dict) -> dict[str, Any]:
        """Accepts suggestions; see `TargetsRequest`."""
        palette = self._session.palette
        return self._edited(values, lambda document: edits.accept(document, palette, self._targets(document, values)))

    def undo(self, values: dict) -> dict[str, Any]:
        """Undoes a transaction; see `HistoryRequest`."""
        self._session.undo(values["transaction"], _effort(values))
        return self.state(values["since"])

    def redo(self, values: dict) -> dict[str, Any]:
        """Does a transaction again; see `HistoryRequest`."""
        self._session.redo(values["transaction"], _effort(values))
        return self.state(values["since"])

    def take_the_files(self, values: dict) -> dict[str, Any]:
        """Takes the annotations of the file that another program has changed; see `EditRequest`."""
        return {"transaction": self._session.take_the_files()} | self.state(values["since"])

    def keep_mine(self, values: dict) -> dict[str, Any]:
        """Saves where another program has written; see `EditRequest`."""
        kept = self._session.keep_mine()
        return {"kept": None if kept is None else kept.name} | self.state(values["since"])

    def _drawn(self, values: dict, area: BaseGeometry, source: str) -> dict[str, Any]:
        to, palette, wanted = values["to"], self._session.palette, self._class(values)
        effort = values["clicks"], values["seconds"]
        identity = str(uuid.uuid4()) if to is None else to["id"]

        def change(document: Document) -> Changes:
            if to is not None:
                outline = document.expect(identity, to["revision"])
                return edits.extend(document, palette, outline, area, effort)
            return edits.add(document, palette, Outline(identity, wanted.name, area, source, *effort))

        return {"made": identity} | self._edited(values, change)

    def _edited(self, values: dict, change: Callable[[Document], Changes]) -> dict[str, Any]:
        number = self._session.edit(change, _effort(values))
        return {"transaction": number} | self.state(values["since"])

    def _targets(self, document: Document, values: dict) -> list[Outline]:
        targets = {each["id"]: each["revision"] for each in values["targets"]}
        return [document.expect(identity, revision) for identity, revision in targets.items()]

    def _class(self, values: dict) -> PaletteClass:
        found = self._session.palette.named(values.get("class_name", ""))
        if found is None:
            raise Refused("the label scheme has no such class")
        return found

    def _stroke(self, values: dict) -> BaseGeometry:
        points = [(x, y) for x, y in values["points"]]
        area = edits.brushed(points, values["radius"], self._session.slide.size)
        if area is None:
            raise Refused("this is outside of the slide")
        return area

    def _check_on_slide(self, points: np.ndarray) -> None:
        if not ((points >= 0) & (points <= self._session.slide.size)).all():
            raise Refused("this is outside of the slide")


def _effort(values: dict) -> Effort:
    return Effort(values["clicks"], values["seconds"])


def _shown(outline: Outline, palette: Palette) -> dict[str, Any]:
    return {
        "id": outline.id,
        "name": outline.name,
        "color": "#" + bytes(palette.color(outline.name)).hex(),
        "polygons": rings_of(outline.area),
        "accepted": outline.accepted,
        "source": outline.source,
        "clicks": outline.clicks,
        "seconds": round(outline.seconds, 1),
    }
