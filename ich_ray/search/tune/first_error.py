"""The first error of our own code in a run of Tune, as it was raised.

Tune calls the sampler, the scheduler and the callbacks. Some of their errors it passes on, others it wraps as text, and
those at the end of a trial it takes for the trial's own and goes on. Kept here, each of them ends the run.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FirstError"]


class FirstError:
    """Watches the methods that Tune calls.

    Attributes:
        error: what the first of them raised, None while all went well.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def watch(self, hooks: Any, kind: type) -> None:
        """Watch the methods of `kind`, one of Tune's interfaces, that `hooks` overrides."""
        for name in vars(type(hooks)).keys() & vars(kind).keys():
            if not name.startswith("_") and callable(getattr(hooks, name)):
                setattr(hooks, name, self._watched(getattr(hooks, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def watched(*arguments: Any, **named: Any) -> Any:
            if self.error is not None:  # Tune went on after it
                raise self.error
            try:
                return call(*arguments, **named)
            except Exception as error:
                self.error = error
                raise

        return watched

    def tell(self) -> None:
        """Raise it, if there is one."""
        if self.error is not None:
            raise self.error
