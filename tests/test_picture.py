"""Tests of the picture of matches."""

import numpy as np
import pytest

from beam_pipeline import picture


def _image(height, width, level=120):
    return np.full((height, width, 3), level, np.uint8)


def _panel(query_points, candidate_points, shape=(240, 320), caption="caption", correct=None):
    points = [np.float32(points).reshape(-1, 2) for points in (query_points, candidate_points)]
    return picture.Panel(_image(*shape), *points, caption, correct)


def _boxes(image_shape, left):
    """Top left corner (y, x) and scale of an image that is the tallest of the first row."""
    scale = min(picture._BOX_HEIGHT / image_shape[0], picture._BOX_WIDTH / image_shape[1])
    width = round(image_shape[1] * scale)
    return np.array([picture._MARGIN + picture._FRAME, left + (picture._BOX_WIDTH - width) // 2]), scale


@pytest.mark.parametrize("shape", [(240, 320), (320, 240), (1, 1), (2, 900), (900, 2), (2000, 1500)], ids=str)
def test_every_picture_has_the_same_width_and_keeps_its_margins(shape):
    result = picture.draw_matches(_image(*shape), [_panel([[0, 0]], [[10, 10]], shape)])

    assert result.dtype == np.uint8 and result.shape[1:] == (picture._CANVAS_WIDTH, 3)
    assert shape[0] != shape[1] or result.shape[0] > picture._BOX_HEIGHT
    border = picture._MARGIN - 5
    assert (result[:border] == 255).all() and (result[:, :border] == 255).all() and (result[:, -border:] == 255).all()


@pytest.mark.parametrize("count", [1, 3, 40])
def test_every_match_is_drawn_from_its_query_point_to_its_candidate_point(count):
    rng = np.random.default_rng(count)
    shape = (240, 320)
    query_points, candidate_points = rng.uniform(0, [239, 319], size=(2, count, 2))

    result = picture.draw_matches(_image(*shape), [_panel(query_points, candidate_points)])
    bare = picture.draw_matches(_image(*shape), [_panel([], [])])

    changed = (result != bare).any(axis=2)
    for left, points in ((picture._MARGIN, query_points),
                         (picture._MARGIN + picture._BOX_WIDTH + picture._GAP, candidate_points)):
        corner, scale = _boxes(shape, left)
        y, x = np.rint((points + 0.5) * scale - 0.5 + corner).astype(int).T
        assert changed[y, x].all()
    gap = changed[:, picture._MARGIN + picture._BOX_WIDTH + picture._GAP // 2]
    assert gap.any()


def test_a_point_outside_its_image_is_drawn_at_the_edge():
    outside = picture.draw_matches(_image(240, 320), [_panel([[-50, 400]], [[500, -3]])])
    at_edge = picture.draw_matches(_image(240, 320), [_panel([[0, 319]], [[239, 0]])])

    np.testing.assert_array_equal(outside, at_edge)


def test_of_many_matches_a_spread_choice_is_drawn():
    assert len(picture._choose(1000)) == picture.MAX_LINES
    assert picture._choose(1000)[[0, -1]].tolist() == [0, 999]
    assert picture._choose(5).tolist() == [0, 1, 2, 3, 4]
    assert picture._choose(0).tolist() == []


def test_residuals_tell_a_wrong_match_from_those_that_agree():
    points = np.random.default_rng(0).uniform(0, 300, size=(30, 2))
    moved = points * 1.2 + [5, -8]
    np.testing.assert_allclose(picture._residuals(points, moved), 0, atol=1e-3)

    moved[7] += 60
    residuals = picture._residuals(points, moved)
    assert residuals.argmax() == 7
    colours = picture._colours(residuals, loose=10)
    assert colours[7] == tuple(picture._INCONSISTENT.tolist())


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_too_few_or_coinciding_matches_have_no_residual(count):
    points = np.full((count, 2), 5.0)
    np.testing.assert_array_equal(picture._residuals(points, points), np.zeros(count))


def test_rows_follow_the_panels():
    panels = [_panel([[1, 1]], [[2, 2]], caption=caption) for caption in ("one line", "two\nlines", "")]
    query = _image(240, 320)

    heights = [len(picture.draw_matches(query, [panel])) for panel in panels]
    together = picture.draw_matches(query, panels)

    assert len(together) == sum(heights) - (len(panels) - 1) * picture._MARGIN
    np.testing.assert_array_equal(together[:heights[0]], picture.draw_matches(query, panels[:1]))


@pytest.mark.parametrize("correct, channel", [(True, 1), (False, 0)], ids=["green", "red"])
def test_the_frame_shows_whether_the_candidate_is_right(correct, channel):
    result = picture.draw_matches(_image(240, 320), [_panel([], [], correct=correct)])

    frame = result[picture._MARGIN + 1, picture._MARGIN + picture._BOX_WIDTH + picture._GAP + picture._BOX_WIDTH // 2]
    assert frame.argmax() == channel and frame.max() > 2 * np.delete(frame, channel).max()


def test_a_long_caption_stays_on_the_canvas():
    result = picture.draw_matches(_image(240, 320), [_panel([], [], caption="landmark " * 100)])

    caption = result[-picture._MARGIN - picture._LINE_HEIGHT:]
    assert (caption < 128).any() and (caption[:, -picture._MARGIN:] == 255).all()


@pytest.mark.parametrize("make, message", [
    (lambda: picture.draw_matches(_image(9, 9), []), "panels is empty"),
    (lambda: picture.draw_matches(np.zeros((9, 9)), [_panel([], [])]), r"query_pixels must be uint8 \[H, W, 3\], got float64 \[9, 9\]"),
    (lambda: _panel([], [], shape=(0, 5)), r"pixels must be .* got uint8 \[0, 5, 3\]"),
    (lambda: _panel([[1, 2]], [[1, 2], [3, 4]]), r"must both be \[M, 2\], got \(1, 2\) and \(2, 2\)"),
], ids=["no panel", "grey query", "empty candidate", "unpaired points"])
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
