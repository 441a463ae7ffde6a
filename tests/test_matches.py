"""Tests of the picture of matches."""

import re
import shutil

import numpy as np
import PIL.Image
import pytest

from beam_pipeline import matches, outputs
from beam_pipeline.config import ConfigError
from tests.manifests import index_manifest, run_manifest
from transforms.storage import files, run_store
from transforms.storage.feature_store import FeatureStore
from transforms.types import (
    Candidate,
    FeatureLocation,
    ImageFeatures,
    ImageRef,
    LocalFeatures,
    Prediction,
    PredictionUnit,
)


def _image(height, width, level=120):
    return np.full((height, width, 3), level, np.uint8)


def _panel(query_points, candidate_points, shape=(240, 320), caption="caption", correct=None):
    points = [np.float32(points).reshape(-1, 2) for points in (query_points, candidate_points)]
    return matches.Panel(_image(*shape), *points, caption, correct)


def _boxes(image_shape, left):
    """Top left corner (y, x) and scale of an image that is the tallest of the first row."""
    scale = min(matches._BOX_HEIGHT / image_shape[0], matches._BOX_WIDTH / image_shape[1])
    width = round(image_shape[1] * scale)
    return np.array([matches._MARGIN + matches._FRAME, left + (matches._BOX_WIDTH - width) // 2]), scale


@pytest.mark.parametrize("shape", [(240, 320), (320, 240), (1, 1), (2, 900), (900, 2), (2000, 1500)], ids=str)
def test_every_picture_has_the_same_width_and_keeps_its_margins(shape):
    result = matches.draw_matches(_image(*shape), [_panel([[0, 0]], [[10, 10]], shape)])

    assert result.dtype == np.uint8 and result.shape[1:] == (matches._CANVAS_WIDTH, 3)
    assert shape[0] != shape[1] or result.shape[0] > matches._BOX_HEIGHT
    border = matches._MARGIN - 5
    assert (
        (result[:border] == 255).all()
        and (result[:, :border] == 255).all()
        and (result[:, -border:] == 255).all()
    )


@pytest.mark.parametrize("count", [1, 3, 40])
def test_every_match_is_drawn_from_its_query_point_to_its_candidate_point(count):
    rng = np.random.default_rng(count)
    shape = (240, 320)
    query_points, candidate_points = rng.uniform(0, [239, 319], size=(2, count, 2))

    result = matches.draw_matches(_image(*shape), [_panel(query_points, candidate_points)])
    bare = matches.draw_matches(_image(*shape), [_panel([], [])])

    changed = (result != bare).any(axis=2)
    for left, points in (
        (matches._MARGIN, query_points),
        (matches._MARGIN + matches._BOX_WIDTH + matches._GAP, candidate_points),
    ):
        corner, scale = _boxes(shape, left)
        y, x = np.rint((points + 0.5) * scale - 0.5 + corner).astype(int).T
        assert changed[y, x].all()
    gap = changed[:, matches._MARGIN + matches._BOX_WIDTH + matches._GAP // 2]
    assert gap.any()


def test_a_point_outside_its_image_is_drawn_at_the_edge():
    outside = matches.draw_matches(_image(240, 320), [_panel([[-50, 400]], [[500, -3]])])
    at_edge = matches.draw_matches(_image(240, 320), [_panel([[0, 319]], [[239, 0]])])

    np.testing.assert_array_equal(outside, at_edge)


def test_of_many_matches_a_spread_choice_is_drawn():
    assert len(matches._choose(1000)) == matches.MAX_LINES
    assert matches._choose(1000)[[0, -1]].tolist() == [0, 999]
    assert matches._choose(5).tolist() == [0, 1, 2, 3, 4]
    assert matches._choose(0).tolist() == []


def test_residuals_tell_a_wrong_match_from_those_that_agree():
    points = np.random.default_rng(0).uniform(0, 300, size=(30, 2))
    moved = points * 1.2 + [5, -8]
    np.testing.assert_allclose(matches._residuals(points, moved), 0, atol=1e-3)

    moved[7] += 60
    assert matches._residuals(points, moved).argmax() == 7
    chosen, looseness = matches.choose_lines(points, moved, longest_side=300)
    assert chosen.tolist() == [*range(30)]
    assert matches.colours(looseness)[7] == tuple(matches._INCONSISTENT.tolist())
    assert matches.colours(np.zeros(1)) == [tuple(matches._CONSISTENT.tolist())]


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_too_few_or_coinciding_matches_have_no_residual(count):
    points = np.full((count, 2), 5.0)
    np.testing.assert_array_equal(matches._residuals(points, points), np.zeros(count))


def test_rows_follow_the_panels():
    panels = [_panel([[1, 1]], [[2, 2]], caption=caption) for caption in ("one line", "two\nlines", "")]
    query = _image(240, 320)

    heights = [len(matches.draw_matches(query, [panel])) for panel in panels]
    together = matches.draw_matches(query, panels)

    assert len(together) == sum(heights) - (len(panels) - 1) * matches._MARGIN
    np.testing.assert_array_equal(together[: heights[0]], matches.draw_matches(query, panels[:1]))


@pytest.mark.parametrize("correct, channel", [(True, 1), (False, 0)], ids=["green", "red"])
def test_the_frame_shows_whether_the_candidate_is_right(correct, channel):
    result = matches.draw_matches(_image(240, 320), [_panel([], [], correct=correct)])

    frame = result[
        matches._MARGIN + 1, matches._MARGIN + matches._BOX_WIDTH + matches._GAP + matches._BOX_WIDTH // 2
    ]
    assert frame.argmax() == channel and frame.max() > 2 * np.delete(frame, channel).max()


def test_a_long_caption_stays_on_the_canvas():
    result = matches.draw_matches(_image(240, 320), [_panel([], [], caption="landmark " * 100)])

    caption = result[-matches._MARGIN - matches._LINE_HEIGHT :]
    assert (caption < 128).any() and (caption[:, -matches._MARGIN :] == 255).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: matches.draw_matches(_image(9, 9), []), "panels is empty"),
        (
            lambda: matches.draw_matches(np.zeros((9, 9)), [_panel([], [])]),
            r"query_pixels must be uint8 \[H, W, 3\], got float64 \[9, 9\]",
        ),
        (lambda: _panel([], [], shape=(0, 5)), r"pixels must be .* got uint8 \[0, 5, 3\]"),
        (lambda: _panel([[1, 2]], [[1, 2], [3, 4]]), r"must both be \[M, 2\], got \(1, 2\) and \(2, 2\)"),
    ],
    ids=["no panel", "grey query", "empty candidate", "unpaired points"],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_title_stands_above_the_rows():
    query, panels = _image(240, 320), [_panel([], [])]

    bare, titled = matches.draw_matches(query, panels), matches.draw_matches(query, panels, "Query")

    np.testing.assert_array_equal(titled[matches._LINE_HEIGHT + matches._MARGIN :], bare[matches._MARGIN :])
    assert (titled[: matches._LINE_HEIGHT + matches._MARGIN] < 128).any()


_HYPERPARAMETERS = {"num_to_rerank": 3, "top_k": 3, "max_distance": 0.9, "max_reprojection_error": 5.0}
_SHIFT = np.float32([10, 20])  # (y, x): where the candidate shows what the query shows


@pytest.fixture(name="run")
def _run(tmp_path):
    """A finished run of one query q with the candidates a (the same features, moved), b (others) and c
    (none).
    """
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(0, 200, size=(80, 2)).astype(np.float32)
    descriptors = rng.standard_normal((80, 128)).astype(np.float32)
    local = {
        "q": LocalFeatures(keypoints, descriptors),
        "a": LocalFeatures(keypoints + _SHIFT, descriptors),
        "b": LocalFeatures(keypoints, -descriptors[::-1]),
        "c": LocalFeatures(keypoints[:0], descriptors[:0]),
    }
    features = {}
    for name, found in local.items():
        uri = str(tmp_path / f"{name}.png")
        PIL.Image.fromarray(rng.integers(0, 256, size=(240, 320, 3), dtype=np.uint8)).save(uri)
        features[name] = ImageFeatures(ImageRef(name, uri, 1), 320, 240, 1.0, np.float32([1, 0]), found)
    index, run = str(tmp_path / "index"), str(tmp_path / "run")
    FeatureStore(index).write_unit("u0", [features["a"]], [], 2)
    FeatureStore(index).write_unit("u1", [features["b"], features["c"]], [], 2)
    FeatureStore(files.join(run, "queries")).write_unit("v0", [features["q"]], [], 2)
    nowhere = FeatureLocation("", 0, 0)
    candidates = (
        Candidate("a", "tower", 0.8, nowhere, 80, 1.8),
        Candidate("b", "bridge", 0.5, nowhere, 0, 0.5),
        Candidate("c", "tower", 0.4, nowhere, None, 0.4),
    )
    predictions = (Prediction("empty", None, None), Prediction("q", "tower", 2.2, candidates))
    run_store.write_predictions(run, PredictionUnit("p0", predictions))
    index_store, query_store = FeatureStore(index), FeatureStore(files.join(run, "queries"))
    outputs.finish(index, index_manifest(shards=tuple(index_store.summaries(["u0", "u1"]))))
    made = run_manifest(
        index=index,
        query_store=query_store.root,
        shards=tuple(query_store.summaries(["v0"])),
        hyperparameters=_HYPERPARAMETERS,
    )
    outputs.finish(run, made)
    return run


def _drawn(monkeypatch):
    """Records what write_match_picture gives to draw_matches, which still draws."""
    calls = []
    draw = matches.draw_matches
    monkeypatch.setattr(
        matches, "draw_matches", lambda *arguments: calls.append(arguments) or draw(*arguments)
    )
    return calls


@pytest.mark.parametrize("name", ["matches.png", "deeper/matches.jpg"])
def test_a_run_is_drawn_into_a_file(run, tmp_path, monkeypatch, name):
    calls = _drawn(monkeypatch)

    matches.write_match_picture(run, "q", str(tmp_path / name))

    with PIL.Image.open(tmp_path / name) as image:
        assert image.width == matches._CANVAS_WIDTH
    [(query, panels, title)] = calls
    np.testing.assert_array_equal(query, np.asarray(PIL.Image.open(tmp_path / "q.png")))
    assert [len(panel.query_points) for panel in panels] == [80, 0, 0]
    np.testing.assert_allclose(panels[0].candidate_points, panels[0].query_points + _SHIFT, atol=0.02)
    assert title == "Query q: predicted tower (score 2.200)"
    assert [panel.caption for panel in panels] == [
        "1. tower, image a: similarity 0.800, 80 inliers, score 1.800",
        "2. bridge, image b: similarity 0.500, 0 inliers, score 0.500",
        "3. tower, image c: similarity 0.400, not verified, score 0.400",
    ]
    assert [panel.correct for panel in panels] == [None] * 3


def test_names_stand_beside_the_ids(run, tmp_path, monkeypatch):
    (tmp_path / "truth.csv").write_text("id,landmarks,Usage\nq,bridge,Public\n")
    (tmp_path / "names.csv").write_text("landmark_id,name\ntower,Tour Eiffel\nbridge,\n")
    calls = _drawn(monkeypatch)

    matches.write_match_picture(
        run,
        "q",
        str(tmp_path / "out.png"),
        2,
        truth=str(tmp_path / "truth.csv"),
        names=str(tmp_path / "names.csv"),
    )

    [(_, panels, title)] = calls
    assert title == "Query q: predicted Tour Eiffel (tower) (score 2.200), shows bridge"
    assert [panel.caption.partition(",")[0] for panel in panels] == ["1. Tour Eiffel (tower)", "2. bridge"]


@pytest.mark.parametrize(
    "row, correct, shown",
    [
        ("q,tower wall,Public", [True, False], ", shows tower or wall"),
        ("q,,Public", [False, False], ", shows no landmark"),
        ("other,tower,Public", [None, None], ""),
    ],
    ids=["landmark", "no landmark", "not in the table"],
)
def test_the_truth_tells_right_candidates_from_wrong_ones(run, tmp_path, monkeypatch, row, correct, shown):
    (tmp_path / "truth.csv").write_text(f"id,landmarks,Usage\n{row}\n")
    calls = _drawn(monkeypatch)

    matches.write_match_picture(
        run, "q", str(tmp_path / "out.png"), max_candidates=2, truth=str(tmp_path / "truth.csv")
    )

    [(_, panels, title)] = calls
    assert [panel.correct for panel in panels] == correct
    assert title.endswith(f"(score 2.200){shown}")


@pytest.mark.parametrize(
    "image_id, output, message",
    [
        ("q", "out.gif", "'out.gif' must end in .png, .jpg or .jpeg"),
        ("nobody", "out.png", "no prediction for a query 'nobody'"),
        ("empty", "out.png", "no candidates for the query 'empty'"),
    ],
)
def test_what_cannot_be_drawn_is_wrong_usage(run, image_id, output, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        matches.write_match_picture(run, image_id, output)


@pytest.mark.parametrize("name", ["out.png", "out.jpg"])
def test_only_its_own_pictures_are_written_over(run, tmp_path, name):
    strange = PIL.Image.new("RGB", (8, 6))
    strange.save(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ConfigError, match="is there and was not made by `landmarks matches`"):
        matches.write_match_picture(run, "q", str(tmp_path / name))
    assert (tmp_path / name).read_bytes() == before
    (tmp_path / name).unlink()
    for _ in range(2):
        matches.write_match_picture(run, "q", str(tmp_path / name))


def test_a_photograph_that_is_gone_is_named(run, tmp_path):
    (tmp_path / "b.png").unlink()

    with pytest.raises(OSError, match=r"b\.png cannot be drawn: no such file.* --append --update`"):
        matches.write_match_picture(run, "q", str(tmp_path / "out.png"))


def test_features_that_are_gone_are_named(run, tmp_path):
    shutil.rmtree(files.join(run, "queries"))

    with pytest.raises(ValueError, match="queries has no features of q"):
        matches.write_match_picture(run, "q", str(tmp_path / "out.png"))
