"""Models of every contract: loaded, checked, fed by name, and their faults told apart."""

import dataclasses
import os
import pathlib
import shutil
import threading

import numpy as np
import pytest

from tests import tiny_models
from tests.file_systems import FolderFileSystem
from transforms.models import card, model_files, saved_model
from transforms.models.card import ExtractionSettings
from transforms.models.model import ExtractionError, ModelError
from transforms.models.saved_model import DelgModel
from transforms.processes.tensorflow_runtime import import_tensorflow

SETTINGS = ExtractionSettings(
    image_scales=(0.5, 0.7071, 1.0, 1.4142),
    global_scales=(0.7071, 1.4142),
    max_local_features=60,
    score_threshold=175.0,
    max_image_side=256,
)
IMAGE = tiny_models.textured(120, 150)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> pathlib.Path:
    """A folder with a model of every kind, in a folder of its name."""
    root = tmp_path_factory.mktemp("models")
    for kind in tiny_models.KINDS + tiny_models.FAULTS:
        tiny_models.build(kind, root / kind)
    return root


def load(models, kind, **changes) -> DelgModel:
    return DelgModel.load(str(models / kind), dataclasses.replace(SETTINGS, **changes))


def call_directly(folder, **feeds) -> dict[str, np.ndarray]:
    """The outputs of a SavedModel, by a call that shares nothing with the adapter."""
    tf = import_tensorflow()

    loaded = tf.saved_model.load(str(folder))
    if not hasattr(loaded, "prune"):
        return {name: value.numpy() for name, value in loaded.signatures["serving_default"](**feeds).items()}
    names = [
        name
        for name in ("boxes", "features", "scores", "global_descriptors")
        if name in {op.name for op in loaded.graph.get_operations()}
    ]
    function = loaded.prune([f"{name}:0" for name in feeds], [f"{name}:0" for name in names])
    return dict(zip(names, (value.numpy() for value in function(*feeds.values()))))


def feeds_for(kind, scales=SETTINGS.image_scales, indices=(1, 3)) -> dict:
    tf = import_tensorflow()

    feeds = {"input_image": tf.constant(IMAGE), "input_scales": tf.constant(scales, tf.float32)}
    if kind != "global_only":
        feeds["input_max_feature_num"] = tf.constant(SETTINGS.max_local_features)
        feeds["input_abs_thres"] = tf.constant(SETTINGS.score_threshold)
    if kind in ("delg_tf1", "delg_tf2", "global_only"):
        feeds["input_global_scales_ind"] = tf.constant(indices, tf.int32)
    return feeds


@pytest.mark.parametrize(
    ("kind", "how", "has_global", "has_local"),
    [
        ("delg_tf1", "prune", True, True),
        ("kaggle_tf1", "prune", True, True),
        ("delg_tf2", "signature", True, True),
        ("local_only", "prune", False, True),
        ("global_only", "signature", True, False),
    ],
)
def test_contract_is_recognised(models, kind, how, has_global, has_local):
    model = load(models, kind)
    contract = model.contract
    assert (contract.kind, contract.has_global, contract.has_local) == (how, has_global, has_local)
    assert {name for name, _, _ in contract.inputs} == set(feeds_for(kind))
    assert ("input_image", "uint8", (-1, -1, 3)) in contract.inputs
    assert model.global_width == (2048 if has_global else 0)
    assert model.local_width == (128 if has_local else 0)


@pytest.mark.parametrize("kind", ["delg_tf1", "kaggle_tf1", "delg_tf2", "local_only"])
def test_local_features_are_those_of_a_direct_call(models, kind):
    found = load(models, kind).extract(IMAGE)
    direct = call_directly(models / kind, **feeds_for(kind))
    assert len(found.scores) == 60
    np.testing.assert_array_equal(found.keypoints, (direct["boxes"][:, :2] + direct["boxes"][:, 2:]) / 2)
    np.testing.assert_allclose(
        found.descriptors,
        direct["features"] / np.linalg.norm(direct["features"], axis=1, keepdims=True),
        atol=1e-6,
    )
    np.testing.assert_array_equal(found.scores, direct["scores"][:, 0])
    assert {array.dtype for array in (found.keypoints, found.descriptors, found.scores)} == {
        np.dtype(np.float32)
    }


@pytest.mark.parametrize("kind", tiny_models.RETRIEVAL_KINDS)
def test_global_descriptor_is_the_normalised_sum_of_normalised_rows(models, kind):
    found = load(models, kind).extract(IMAGE).global_descriptor
    # A model of global descriptors alone is not given the scales that only local features need.
    alone = kind == "global_only"
    feeds = feeds_for(kind, SETTINGS.global_scales, (0, 1)) if alone else feeds_for(kind)
    rows = call_directly(models / kind, **feeds)["global_descriptors"]
    rows = rows[[1, 3]] if kind == "kaggle_tf1" else rows
    total = sum(row / np.linalg.norm(row) for row in rows)
    np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("image", [IMAGE, tiny_models.textured(6, 30)], ids=["all scales", "scales dropped"])
def test_contracts_with_the_same_weights_agree(models, image):
    first, *others = (load(models, kind).extract(image) for kind in ("delg_tf1", "kaggle_tf1", "delg_tf2"))
    for other in others:
        np.testing.assert_allclose(other.global_descriptor, first.global_descriptor, atol=1e-6)
        np.testing.assert_allclose(other.descriptors, first.descriptors, atol=1e-6)


@pytest.mark.parametrize("kind", ["delg_tf1", "delg_tf2"])
def test_flat_image_has_a_global_descriptor_and_no_local_features(models, kind):
    found = load(models, kind).extract(np.full((90, 70, 3), 77, np.uint8))
    assert np.linalg.norm(found.global_descriptor) == pytest.approx(1, abs=1e-6)
    assert (found.keypoints.shape, found.descriptors.shape, found.scores.shape) == ((0, 2), (0, 128), (0,))


def test_global_only_model_has_no_local_features(models):
    found = load(models, "global_only").extract(IMAGE)
    assert len(found.keypoints) == len(found.descriptors) == len(found.scores) == 0


def test_keypoints_are_y_x_in_pixels_of_the_image_fed(models):
    image = np.full((64, 256, 3), 128, np.uint8)
    image[40:56, 200:216] = tiny_models.textured(16, 16)
    y, x = load(models, "delg_tf1").extract(image).keypoints.mean(axis=0)
    assert abs(y - 48) < 12 and abs(x - 208) < 12


@pytest.mark.parametrize(
    ("side", "scales", "rows"),
    [
        (10, [0.5, 0.7071, 1.0, 1.4142], 2),
        (7, [0.7071, 1.0, 1.4142], 2),
        (6, [1.0, 1.4142], 1),
        (4, [1.4142], 1),
    ],
)
def test_scales_below_five_pixels_are_dropped(models, side, scales, rows):
    model = load(models, "delg_tf1")
    image = tiny_models.textured(side, 30)
    expected = dataclasses.replace(
        SETTINGS,
        image_scales=tuple(scales),
        global_scales=tuple(scale for scale in SETTINGS.global_scales if scale in scales),
    )
    assert model.outputs(image)["global_descriptors"].shape == (rows, 2048)
    found, wanted = model.extract(image), DelgModel.load(str(models / "delg_tf1"), expected).extract(image)
    np.testing.assert_array_equal(found.global_descriptor, wanted.global_descriptor)


@pytest.mark.parametrize(
    ("kind", "shape", "scales"),
    [
        ("delg_tf1", (1, 1), "[0.7071, 1.4142]"),
        ("delg_tf1", (3, 500), "[0.7071, 1.4142]"),
        ("global_only", (500, 2), "[0.7071, 1.4142]"),
        ("local_only", (2, 2), "[0.5, 0.7071, 1.0, 1.4142]"),
    ],
)
def test_tiny_image_is_refused_before_the_model_sees_it(models, kind, shape, scales):
    model = load(models, kind)
    with pytest.raises(ExtractionError) as caught:
        model.extract(np.zeros((*shape, 3), np.uint8))
    assert caught.value.kind == "too_small"
    assert str(caught.value) == (
        f"an image of {shape[0]} x {shape[1]} px is smaller than 5 px at every scale of {scales}"
    )


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3), np.float32)],
    ids=["grey", "alpha", "float"],
)
def test_what_is_no_image_is_refused(models, pixels):
    with pytest.raises(ValueError, match=r"an image must be uint8 \[H, W, 3\], not"):
        load(models, "global_only").extract(pixels)


def test_faults_of_one_image_leave_the_model_usable(models):
    model = load(models, "nan_on_white")
    with pytest.raises(
        ExtractionError, match="global_descriptors of an image of 40 x 50 px holds NaN"
    ) as caught:
        model.extract(np.full((40, 50, 3), 255, np.uint8))
    assert caught.value.kind == "non_finite"
    assert len(model.extract(IMAGE).scores) == 60

    model = load(models, "raises_when_tiny")
    with pytest.raises(
        ExtractionError, match="raised on an image of 20 x 50 px: InvalidArgumentError"
    ) as caught:
        model.extract(tiny_models.textured(20, 50))
    assert caught.value.kind == "model_error"
    assert len(model.extract(IMAGE).scores) == 60


def test_another_width_is_a_fault_of_the_model(models):
    model = load(models, "unstable_width")
    with pytest.raises(ModelError, match="global_descriptors are 1024 wide, but were 2048 before"):
        model.extract(tiny_models.textured(210, 60))


def test_cells_at_the_border_may_have_their_middle_outside(models):
    keypoints = (
        load(models, "delg_tf2", max_local_features=1000).extract(tiny_models.textured(121, 97)).keypoints
    )
    assert (keypoints > np.array([121, 97]) + 1).any()


@pytest.mark.parametrize(
    ("kind", "messages"),
    [
        (
            "foreign",
            [
                "input_image is missing",
                "input x is not known",
                "neither global_descriptors nor boxes",
                "inputs x uint8 (None, None, 3); outputs y float32 (3,)",
            ],
        ),
        ("five_corners", [", 5], features [", "expected [N, 4], [N, D] and N"]),
        ("nan", ["fails on a test image: global_descriptors of an image of 192 x 64 px holds NaN"]),
        (
            "boxes_from_0_to_1",
            ["boxes must be (y_min, x_min,", "of 192 x 64 px", "as if divided by the sides"],
        ),
        ("boxes_x_first", [" in x; is their order another?"]),
    ],
)
def test_models_that_break_the_contract_are_refused_at_load(models, kind, messages):
    with pytest.raises(ModelError) as caught:
        load(models, kind)
    assert kind in str(caught.value)
    for message in messages:
        assert message in str(caught.value)


def test_wrong_dtype_and_rank_are_listed(tmp_path):
    tf = import_tensorflow()

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, [None, None, None, 3], "input_image")
        v1.placeholder(tf.float32, [None], "input_scales")
        tf.reduce_mean(image, [1, 2], name="global_descriptors")
        builder = v1.saved_model.Builder(str(tmp_path / "batched"))
        builder.add_meta_graph_and_variables(session, ["serve"])
        builder.save()
    with pytest.raises(
        ModelError, match=r"input_image must be uint8 of rank 3\. Found \(prune\) inputs input_image float32 "
    ):
        DelgModel.load(str(tmp_path / "batched"), SETTINGS)


def test_what_is_no_saved_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="there is no such folder"):
        model_files.fetch_model(str(tmp_path / "nowhere"))
    (tmp_path / "delg.tar.gz").write_bytes(b"archive")
    with pytest.raises(ModelError, match="it is a file"):
        model_files.fetch_model(str(tmp_path / "delg.tar.gz"))
    with pytest.raises(ModelError, match=r"no saved_model.pb among \['delg.tar.gz'\]"):
        DelgModel.load(str(tmp_path), SETTINGS)
    (tmp_path / "saved_model.pb").write_bytes(b"no protocol buffer")
    with pytest.raises(ModelError, match="cannot be loaded"):
        DelgModel.load(str(tmp_path), SETTINGS)


def test_threads_share_a_model(models):
    model = load(models, "delg_tf1")
    images = [tiny_models.textured(60, 80, seed) for seed in range(8)]
    expected = [model.extract(image).global_descriptor for image in images]
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: model.extract(images[n]).global_descriptor}))
        for n in range(len(images))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, descriptor in enumerate(expected):
        np.testing.assert_array_equal(found[n], descriptor)


def has_bfloat16() -> bool:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))


@pytest.mark.parametrize("kind", ["delg_tf1", "delg_tf2"])
def test_bfloat16_stays_near_and_leaves_float32_alone(models, kind):
    tf = import_tensorflow()

    plain = load(models, kind)
    before = plain.extract(IMAGE)
    mixed = load(models, kind, precision="bfloat16").extract(IMAGE)
    product = tf.function(lambda matrix: tf.matmul(matrix, matrix, transpose_b=True))
    matrix = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    np.testing.assert_allclose(product(tf.constant(matrix)), matrix @ matrix.T, atol=1e-3)
    after = plain.extract(IMAGE)
    for field in dataclasses.fields(before):
        np.testing.assert_array_equal(getattr(before, field.name), getattr(after, field.name))
    assert mixed.global_descriptor @ before.global_descriptor > 0.999
    if has_bfloat16():
        assert (mixed.global_descriptor != before.global_descriptor).any()


def test_fingerprint_is_of_content_alone(models, tmp_path):
    original = saved_model.fingerprint(str(models / "delg_tf1"))
    copy = tmp_path / "another name"
    shutil.copytree(models / "delg_tf1", copy)
    card.write_card(str(copy), SETTINGS)
    (copy / "fingerprint.pb").write_bytes(b"written by some versions")
    assert saved_model.fingerprint(str(copy)) == original
    assert len(original) == 64

    (copy / "assets").mkdir()
    (copy / "assets/list.txt").write_text("a")
    with_asset = saved_model.fingerprint(str(copy))
    (copy / "assets/list.txt").rename(copy / "assets/other.txt")
    renamed = saved_model.fingerprint(str(copy))
    data = next((copy / "variables").glob("*.data*"))
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    assert len({original, with_asset, renamed, saved_model.fingerprint(str(copy))}) == 4


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    (tmp_path / "shelf").mkdir()
    FolderFileSystem.use(tmp_path / "shelf", monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "shelf"


def test_remote_model_is_copied_once(models, shelf):
    shutil.copytree(models / "delg_tf1", shelf / "model-store")
    card.write_card(str(shelf / "model-store"), SETTINGS, name="tiny")
    (shelf / "model-store/README.md").write_text("not needed")
    local = model_files.fetch_model("folder://model-store")
    assert saved_model.fingerprint(local) == saved_model.fingerprint(str(models / "delg_tf1"))
    assert card.read_card(local) == card.read_card("folder://model-store")
    assert not os.path.exists(os.path.join(local, "README.md"))
    assert not [name for name in os.listdir(os.path.dirname(local)) if name.startswith("fetching-")]

    FolderFileSystem.opened.clear()
    assert model_files.fetch_model("folder://model-store/") == local
    assert FolderFileSystem.opened == []

    graph = next((shelf / "model-store").rglob("saved_model.pb"))
    os.utime(graph, (1, 1))  # written anew
    assert model_files.fetch_model("folder://model-store") != local


def test_remote_folder_without_a_model_is_refused(shelf):
    (shelf / "photos").mkdir()
    (shelf / "photos/a.jpg").write_bytes(b"a")
    with pytest.raises(
        ModelError,
        match=r"folder://photos holds no model: neither a SavedModel's saved_model.pb nor an .onnx file "
        r"among \['a.jpg'\]",
    ):
        model_files.fetch_model("folder://photos")


def test_remote_store_that_cannot_be_listed_is_named(shelf):
    with pytest.raises(ModelError, match="nosuch://bucket/model cannot be listed: Unable to get filesystem"):
        model_files.fetch_model("nosuch://bucket/model")


def test_local_model_is_used_where_it_lies(models):
    assert model_files.fetch_model(str(models / "delg_tf1")) == str(models / "delg_tf1")


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        (
            "delg_tf1",
            [
                "global descriptor and local features",
                "called by    prune",
                "global_descriptors                [3, 2048]",
                "card         none, official DELG settings",
            ],
        ),
        ("global_only", ["global descriptor only: no re-ranking", "called by    signature"]),
        ("local_only", ["offers no global descriptor, so it cannot retrieve", "[?, 128]"]),
    ],
)
def test_inspection_tells_what_a_model_offers(models, kind, lines):
    report = saved_model.inspect_model(str(models / kind))
    for line in lines:
        assert line in str(report)
    assert report.fingerprint in str(report)
    assert report.size_bytes > 1e6 and report.settings == card.OFFICIAL_DELG


def test_inspection_without_a_card_prints_one(models, tmp_path):
    shutil.copytree(models / "delg_tf1", tmp_path / "model")
    text = str(saved_model.inspect_model(str(tmp_path / "model")))
    assert f"card to edit, as {tmp_path}/model/{card.CARD_NAME}:" in text
    (tmp_path / "model" / card.CARD_NAME).write_text(text[text.index("{") :])
    assert card.settings_from_card(card.read_card(str(tmp_path / "model"))) == card.OFFICIAL_DELG
    assert "card to edit" not in str(saved_model.inspect_model(str(tmp_path / "model")))


def test_inspection_runs_with_the_settings_of_the_card(models, tmp_path):
    shutil.copytree(models / "delg_tf2", tmp_path / "model")
    card.write_card(str(tmp_path / "model"), SETTINGS, name="tiny")
    report = saved_model.inspect_model(str(tmp_path / "model"))
    assert report.settings == SETTINGS
    assert dict(report.outputs)["global_descriptors"] == (2, 2048)
    assert "card         tiny" in str(report)


def test_card_round_trip(tmp_path):
    assert card.read_card(str(tmp_path)) is None
    card.write_card(str(tmp_path), SETTINGS, name="tiny", max_distance=0.8, ordered_axes=True)
    read = card.read_card(str(tmp_path))
    stated = dataclasses.asdict(SETTINGS)
    for name in ("device", "local", "global_dimensions"):  # how a model is used, and with which other one
        del stated[name]
    assert read == {**stated, "name": "tiny", "max_distance": 0.8, "ordered_axes": True}
    assert card.settings_from_card(read) == SETTINGS


def test_card_states_what_it_states(tmp_path):
    (tmp_path / card.CARD_NAME).write_text(
        '{"score_threshold": 357, "image_scales": [1, 2], "global_scales": [1]}'
    )
    read = card.read_card(str(tmp_path))
    assert read == {"score_threshold": 357.0, "image_scales": (1.0, 2.0), "global_scales": (1.0,)}
    assert card.settings_from_card(read) == dataclasses.replace(
        card.OFFICIAL_DELG, score_threshold=357.0, image_scales=(1.0, 2.0), global_scales=(1.0,)
    )
    assert card.settings_from_card(None) == card.OFFICIAL_DELG


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Expecting property name"),
        (b"\xff\xfe", "codec can't decode"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"scales": [1]}', r"unknown keys \['scales'\]; known are"),
        (b'{"name": 1}', "name must be a text, not 1"),
        (b'{"name": "a\\u001b[31mb"}', r"name must be a line without control characters, not 'a\\x1b"),
        (b'{"name": "a\\nb"}', "name must be a line without control characters"),
        (b'{"max_distance": 0}', "max_distance must be in \\(0, 2\\], not 0"),
        (b'{"image_scales": [1, 2]}', "must be given together"),
        (
            b'{"image_scales": [], "global_scales": []}',
            r"image_scales must be a list of one or more numbers, not \[\]",
        ),
        (b'{"max_image_side": "1024"}', "max_image_side must be a whole number of at least 1, not '1024'"),
        (b'{"score_threshold": NaN}', "score_threshold must be a finite number, not nan"),
    ],
)
def test_malformed_card_is_refused(tmp_path, content, message):
    (tmp_path / card.CARD_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        card.read_card(str(tmp_path))
    assert str(tmp_path / card.CARD_NAME) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_scales": (1.0, -1.0)},
            r"image_scales must be positive and different from each other, not \(1.0, -1.0\)",
        ),
        ({"image_scales": (1.0, 1.0)}, "different from each other"),
        ({"image_scales": (1.0, 1000.0)}, r"image_scales must be at most 8, not \(1.0, 1000.0\)"),
        ({"image_scales": ("1",)}, "image_scales must be a finite number, not '1'"),
        ({"global_scales": (3.0,)}, r"global_scales \[3.0\] are not among image_scales"),
        ({"max_local_features": 0}, "max_local_features must be a whole number of at least 1, not 0"),
        ({"max_local_features": True}, "not True"),
        ({"max_image_side": 10.5}, "not 10.5"),
        ({"score_threshold": float("inf")}, "score_threshold must be a finite number, not inf"),
        ({"precision": "float16"}, r"precision must be one of \('float32', 'bfloat16'\), not 'float16'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **change)
