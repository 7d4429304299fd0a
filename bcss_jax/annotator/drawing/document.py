"""The outlines of a slide and their history: every change is a transaction that can be undone and redone.

A transaction replaces outlines by others, all or none. It is undone only where its outlines are still those that it
made, so that of two browsers on one slide neither undoes what the other did since.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bcss_jax.annotator.drawing.outline import Outline

MOST_TRANSACTIONS = 2000  # that can be undone; older ones are forgotten


class Conflict(Exception):
    """Raised when an outline is not what the request takes it for, because another browser has changed it."""


class Change(NamedTuple):
    """An outline before and after a transaction; None: there is none."""

    before: Outline | None
    after: Outline | None


class Document:
    """Outlines by their ids. Not for several threads at once.

    Attributes:
      revision: number of transactions, undone and redone ones included.
    """

    def __init__(self, outlines: Iterable[Outline] = ()):
        """Begins with outlines at revision 0."""
        self.revision = 0
        self._outlines = {each.id: each for each in outlines}
        self._changed_at = dict.fromkeys(self._outlines, 0)
        self._transactions: OrderedDict[int, dict[str, Change]] = OrderedDict()

    def outlines(self) -> list[Outline]:
        """Returns all outlines, the oldest first."""
        return list(self._outlines.values())

    def get(self, identity: str) -> Outline | None:
        """Returns an outline by its id, or None."""
        return self._outlines.get(identity)

    def expect(self, identity: str, revision: int) -> Outline:
        """Returns an outline that must not have changed since a revision.

        Raises:
          Conflict: it has, or is gone.
        """
        found = self._outlines.get(identity)
        if found is None:
            raise Conflict("this annotation was deleted in another window")
        if self._changed_at[identity] > revision:
            raise Conflict("this annotation was changed in another window; look at it again")
        return found

    def apply(self, changes: Mapping[str, Outline | None]) -> int:
        """Replaces outlines.

        Args:
          changes: id -> the outline from now on, or None to delete it.

        Returns:
          The number of the transaction, for `undo`.
        """
        done = {identity: Change(self._outlines.get(identity), after) for identity, after in changes.items()}
        self._set({identity: change.after for identity, change in done.items()})
        self._transactions[self.revision] = done
        while len(self._transactions) > MOST_TRANSACTIONS:
            self._transactions.popitem(last=False)
        return self.revision

    def undo(self, number: int) -> None:
        """Undoes a transaction.

        Raises:
          Conflict: what it made has changed since, or it is forgotten.
        """
        changes = self._transaction(number)
        self._replace({identity: (change.after, change.before) for identity, change in changes.items()}, "undone")

    def redo(self, number: int) -> None:
        """Does a transaction again that was undone.

        Raises:
          Conflict: what it would change has changed since, or it is forgotten.
        """
        changes = self._transaction(number)
        self._replace({identity: (change.before, change.after) for identity, change in changes.items()}, "done again")

    def changed_since(self, revision: int) -> tuple[list[Outline], list[str]]:
        """Returns the outlines that have changed since a revision, and the ids of those that are gone."""
        changed = [identity for identity, at in self._changed_at.items() if at > revision]
        found = [(identity, self._outlines.get(identity)) for identity in changed]
        return [each for _, each in found if each is not None], [identity for identity, each in found if each is None]

    def _transaction(self, number: int) -> dict[str, Change]:
        if number not in self._transactions:
            raise Conflict("this change is too long ago")
        return self._transactions[number]

    def _replace(self, pairs: Mapping[str, tuple[Outline | None, Outline | None]], what: str) -> None:
        if any(self._outlines.get(identity) is not expected for identity, (expected, _) in pairs.items()):
            raise Conflict(f"this change cannot be {what}: the annotation was changed in another window since")
        self._set({identity: wanted for identity, (_, wanted) in pairs.items()})

    def _set(self, outlines: Mapping[str, Outline | None]) -> None:
        self.revision += 1
        for identity, outline in outlines.items():
            self._changed_at[identity] = self.revision
            if outline is None:
                self._outlines.pop(identity, None)
            else:
                self._outlines[identity] = outline
