"""The page of a check of cameras: verdicts, figures, and pairs of frames with epipolar lines. One file, no script."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data.importers.matched_cameras import MatchedCameras, pair_error
from data.importers.verdict import AS_GIVEN, Verdict
from data.matching import PairMatches
from geometry.epipolar import points_in_front
from geometry.spreading import farthest_first
from utils.files import write_text

_TEMPLATE = Path(__file__).with_suffix(".html")
_STYLE = Path(__file__).with_suffix(".css")
# Pairs that are shown of a scene with bad cameras, and of another.
_SHOWN_BAD = 3
_SHOWN = 1
_LINES = 10
_HEIGHT = 360
_FIGURES = {
    "field_of_view_x": "field of view across, degrees",
    "field_of_view_y": "field of view from top to bottom, degrees",
    "aspect": "width / height",
    "baseline_over_depth": "distance of the farthest cameras / depth of the scene",
    "angle": "the same as an angle, degrees",
    "largest_roll": "largest turn of a camera about its axis, degrees",
}


def write_check_page(path: Path, sections: Sequence[str]) -> None:
    """Write the page in one step, with a `scene_section` for every scene."""
    style = _STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        style=style, style_hash=f"sha256-{digest}", scenes="\n".join(sections)
    )
    write_text(path, page)


def scene_section(verdict: Verdict) -> str:
    """The part of the page that is about one scene, as HTML; every text that stood in a file is escaped."""
    state = verdict.state
    kind = state if state in ("good", "bad") else "unknown"
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in verdict.warnings)
    return "\n".join(
        [
            f"<section><h2>{escape(verdict.scene)}</h2>",
            f'<p><span class="state {kind}">{state}</span>: {escape(verdict.reason)}</p>',
            f"<ul>{warnings}</ul>" if warnings else "",
            f'<div class="tables">{_errors(verdict)}{_figures(verdict)}</div>',
            *_pictures(verdict),
            "</section>",
        ]
    )


def _errors(verdict: Verdict) -> str:
    best = verdict.misreading or AS_GIVEN
    rows = [
        f"<tr{' class=fits' if name == best and verdict.state != 'cannot tell' else ''}>"
        f"<th>{escape(name)}</th><td>{_number(error)}</td></tr>"
        for name, error in sorted(verdict.errors.items(), key=lambda item: item[1])
    ]
    return _table("Error in pixels, as given and with a misreading undone", rows)


def _figures(verdict: Verdict) -> str:
    rows = [f"<tr><th>{_FIGURES[name]}</th><td>{_number(value)}</td></tr>" for name, value in verdict.figures.items()]
    return _table("Figures", rows)


def _table(caption: str, rows: list[str]) -> str:
    return f"<table><caption>{caption}</caption>{''.join(rows)}</table>" if rows else ""


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "behind"


def _pictures(verdict: Verdict) -> Iterator[str]:
    if verdict.cameras is None or verdict.matches is None:
        return
    readings = [None] if verdict.misreading is None else [None, verdict.misreading]
    for pair in verdict.matches.pairs[: _SHOWN_BAD if verdict.state == "bad" else _SHOWN]:
        for reading in readings:
            yield _figure(pair, verdict.cameras.read_as(reading), reading)


def _figure(pair: PairMatches, cameras: MatchedCameras, reading: str | None) -> str:
    first, second = pair.frames
    how = "as given" if reading is None else f"with {reading!r} undone"
    caption = f"Frames {first} and {second}, cameras {how}: error {_number(pair_error(cameras, pair))} pixels"
    source = base64.b64encode(_jpeg(draw_pair(pair, cameras))).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/jpeg;base64,{source}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _jpeg(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return data.tobytes()


def draw_pair(pair: PairMatches, cameras: MatchedCameras) -> UInt8[np.ndarray, "h w 3"]:
    """Two frames side by side: points in the first, the same points and their epipolar lines in the second.

    Of a line the part is drawn that is in front of both cameras.
    """
    chosen = _spread(pair.first)
    ours, theirs = pair.features
    left, left_scale = _reduced(ours.picture, ours.size)
    right, right_scale = _reduced(theirs.picture, theirs.size)
    for colour, point, partner in zip(_colours(), pair.first[chosen], pair.second[chosen], strict=False):
        line = points_in_front(cameras.of_pair(pair), point)
        _draw_line(right, line * right_scale, colour)
        _draw_point(right, partner * right_scale, colour)
        _draw_point(left, point * left_scale, colour)
    return np.concatenate([left, right], axis=1)


def _spread(points: Float[np.ndarray, "m 2"]) -> np.ndarray:
    """Numbers of points far from one another: each is the farthest from those before it."""
    count = min(_LINES, len(points))
    return np.array(farthest_first(lambda one: np.linalg.norm(points - points[one], axis=1), [0], count))


def _reduced(picture: np.ndarray, size: tuple[int, int]) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "2"]]:
    """A picture of `_HEIGHT` rows, and what makes its pixels of those of an image of `size`."""
    width = max(1, round(picture.shape[1] * _HEIGHT / picture.shape[0]))
    return cv2.resize(picture, (width, _HEIGHT), interpolation=cv2.INTER_AREA), np.array([width, _HEIGHT]) / size


def _colours() -> list[tuple[int, int, int]]:
    hues = np.arange(_LINES) * 180 // _LINES
    hsv = np.stack([hues, np.full(_LINES, 255), np.full(_LINES, 255)], axis=-1)[None].astype(np.uint8)
    return [tuple(colour) for colour in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0].tolist()]


def _draw_point(picture: np.ndarray, point: Float[np.ndarray, "2"], colour: tuple[int, int, int]) -> None:
    at = tuple(np.floor(point).astype(int).tolist())
    cv2.circle(picture, at, 5, (0, 0, 0), -1, cv2.LINE_AA)
    cv2.circle(picture, at, 4, colour, -1, cv2.LINE_AA)


def _draw_line(picture: np.ndarray, points: Float[np.ndarray, "m 2"], colour: tuple[int, int, int]) -> None:
    """Draw a line through points in order, as far as they lie about the picture."""
    size = np.array(picture.shape[1::-1])
    near = points[((points > -size) & (points < 2 * size)).all(1)]
    cv2.polylines(picture, [near.round().astype(np.int32)], False, colour, 2, cv2.LINE_AA)
