"""HU windows: which part of the CT scale a channel shows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ich_ray.errors import ConfigError, nearest

__all__ = ["DEFAULT_WINDOWS", "WINDOWS", "WindowSpec", "parse_windows"]


class WindowSpec(BaseModel):
    """A window: HU from `center_hu - width_hu / 2` (black) to `center_hu + width_hu / 2` (white)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    center_hu: float = Field(allow_inf_nan=False)
    width_hu: float = Field(gt=0, allow_inf_nan=False)


WINDOWS = {
    spec.name: spec
    for spec in (
        WindowSpec(name="brain", center_hu=40, width_hu=80),
        WindowSpec(name="subdural", center_hu=80, width_hu=200),
        WindowSpec(name="bone", center_hu=600, width_hu=2800),
        WindowSpec(name="soft", center_hu=40, width_hu=380),
    )
}
DEFAULT_WINDOWS = "brain,subdural,bone"


def parse_windows(text: str) -> tuple[WindowSpec, ...]:
    """Windows from `brain,subdural` or, for other ones, `name=center/width` such as `stroke=32/8`.

    Raises:
        ConfigError: an unknown name, a repeated one, or a width that is not positive.
    """
    windows: list[WindowSpec] = []
    for part in text.split(","):
        name, _, numbers = part.strip().partition("=")
        if numbers:
            try:
                center, width = (float(number) for number in numbers.split("/"))
                windows.append(WindowSpec(name=name, center_hu=center, width_hu=width))
            except ValueError:
                raise ConfigError(
                    f"--windows: {name}: center/width in HU with width > 0 must hold, got {numbers!r}"
                ) from None
        elif name in WINDOWS:
            windows.append(WINDOWS[name])
        else:
            raise ConfigError(
                f"--windows: one of {', '.join(WINDOWS)} or name=center/width must be given, got {name!r}"
                f"{nearest(name, WINDOWS)}"
            )
    if len({window.name for window in windows}) < len(windows):
        raise ConfigError(f"--windows: names must differ, got {text!r}")
    return tuple(windows)
