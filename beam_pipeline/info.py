"""The info command: what an output holds, in a few lines or as JSON; nothing is computed or changed."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from beam_pipeline import index_parts, layout, outputs
from beam_pipeline.changes import is_changed
from beam_pipeline.config import ConfigError
from beam_pipeline.manifest import MANIFEST, CohortManifest, IndexManifest, RunManifest
from beam_pipeline.prediction_rule import CALIBRATION, tuned_settings_of
from transforms import patterns
from transforms.database_augmentation import augmented_shards
from transforms.storage import files, run_store, worklist
from transforms.storage.feature_store import FeatureStore
from transforms.types import ImageRef, landmark_order

_LOOKED_AT = 1000  # photographs whose files are compared with what they were, those of this machine alone
_NAMED = 5  # landmarks
_KINDS = {"index": "index", "recognize": "run", "cohort": "cohort"}  # by command


def run(root: str, as_json: bool) -> int:
    """Prints what an output holds; returns the exit code.

    Raises:
      ConfigError: there is no output in the folder `root`.
      ValueError, OSError: it is damaged, or cannot be read.
    """
    found = facts(root)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(lines(found)))
    return 0


def facts(root: str) -> dict[str, Any]:
    """What an output in `root` holds; JSON-able, docs/files.md says what each is.

    Raises: see `run`.
    """
    command = outputs.read_settings(root).get("command")
    if command not in _KINDS:
        raise ConfigError(f"{root} is being deleted by --overwrite: the same command makes it anew")
    kind = _KINDS[command]
    if not files.exists(files.join(root, MANIFEST)):
        store = FeatureStore(files.join(root, "queries") if command == "recognize" else root)
        units = {"units": len(store.units()), "of": worklist.unit_count(root)}
        return {
            "kind": kind,
            "root": root,
            "finished": False,
            "extracted": units,
            "disk": _disk(root, command),
        }
    manifest: IndexManifest | RunManifest | CohortManifest
    if command == "index":
        manifest = outputs.read_manifest(root, IndexManifest)
        own = _index(root, manifest)
    elif command == "recognize":
        manifest = outputs.read_manifest(root, RunManifest)
        own = _run(root, manifest)
    else:
        manifest = outputs.read_manifest(root, CohortManifest)
        own = {"photographs": dataclasses.asdict(manifest.counts), "stale": []}
    recipe = manifest.recipe
    return {
        "kind": kind,
        "root": root,
        "finished": manifest.complete,
        **own,
        "model": {"name": recipe.name, "uri": recipe.model, "fingerprint": recipe.fingerprint},
        "settings": {**recipe.settings.to_json(), "exif_orientation": recipe.reading.exif_orientation},
        "passed_over": _by_count(Counter(manifest.passed_over)),
        "disk": _disk(root, command),
        "versions": dict(manifest.versions),
    }


def _index(root: str, manifest: IndexManifest) -> dict[str, Any]:
    augmented = augmented_shards(root).complete(manifest.derived_list)
    known = list(index_parts.known(root, manifest))
    there = {one.planned.image_id for one in known if one.there}
    calibration, stale = None, _changed(root, manifest, [one.planned for one in known if one.there])
    if files.exists(files.join(root, CALIBRATION)):
        calibration = files.read_json(files.join(root, CALIBRATION))
        try:
            tuned_settings_of(root, manifest)
        except ConfigError as e:
            stale.append(str(e))
    return {
        "photographs": dataclasses.asdict(manifest.counts),
        "failures": dict(manifest.failures),
        "landmarks": _landmarks(root, manifest),
        "image_ids": manifest.image_ids,
        "additions": len(manifest.appended),
        "cleaned_units": len(manifest.changed_units),
        "removed": len({one.planned.image_id for one in known} - there),
        "relabelled": sum(one.there and one.label != one.planned.landmark_id for one in known),
        "database_augmentation": augmented,
        "calibration": calibration and {k: v for k, v in calibration.items() if isinstance(v, int | float)},
        "stale": stale,
    }


def _landmarks(root: str, manifest: IndexManifest) -> dict[str, int]:
    """How many photographs each landmark has, those with the most first."""
    tables = FeatureStore(root).read_units([shard.unit for shard in manifest.shards], ["landmark_id"])
    return _by_count(Counter(label for table in tables for label in table.column("landmark_id").to_pylist()))


def _by_count(counts: Counter[str]) -> dict[str, int]:
    """The most first."""
    order = landmark_order(counts)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], order(item[0]))))


def _changed(root: str, manifest: IndexManifest, refs: Sequence[ImageRef]) -> list[str]:
    """A line where photographs that are indexed are others, or not there any more; of many, some are looked
    at.
    """
    failures = FeatureStore(root).failures([shard.unit for shard in manifest.shards])
    failed = {*failures["image_id"].to_pylist()}
    local = [ref for ref in refs if ref.image_id not in failed and files.is_local(ref.uri)]
    some = local[:: max(1, len(local) // _LOOKED_AT)]
    now = [(ref, patterns.current(ref.uri)) for ref in some]
    gone = [ref.image_id for ref, entry in now if entry is None]
    changed = [ref.image_id for ref, entry in now if entry and is_changed(ref, entry.size, entry.version)]
    of = f"of {len(some):,} photographs looked at"
    said = ((gone, "are not where they were"), (changed, "were changed since"))
    return [f"{len(ids):,} {of} {text}, the first is {min(ids)!r}" for ids, text in said if ids]


def _run(root: str, manifest: RunManifest) -> dict[str, Any]:
    columns = ["landmark_id", "probability"]
    predictions = pa.concat_tables(run_store.read_predictions(root, columns), promote_options="default")
    named = predictions.column("landmark_id").drop_null().to_pylist()
    metrics = files.join(root, "metrics.json")
    scores = files.read_json(metrics)["all"] if files.exists(metrics) else {}
    stale = []
    try:
        index = outputs.read_manifest(manifest.index, IndexManifest)
    except ConfigError:
        stale.append(f"its index, {manifest.index}, is not there")
    else:
        if index.digest(manifest.index) != outputs.read_settings(root)["index"]:
            stale.append(f"its index, {manifest.index}, was changed since")
    rule = {k: v for k, v in manifest.hyperparameters.items() if k != "calibration"}
    return {
        "queries": dataclasses.asdict(manifest.counts),
        "landmarks": _by_count(Counter(named)),
        "index": manifest.index,
        "hyperparameters": rule,
        "calibrated": manifest.hyperparameters.get("calibration") is not None,
        "metrics": {name: scores[name] for name in ("gap", "top1", "top5") if scores.get(name) is not None}
        or None,
        "stale": stale,
    }


def _disk(root: str, command: str) -> dict[str, int]:
    """Number and size of the files that the command wrote in its output."""
    sizes = layout.own_sizes(root, command)
    return {"files": len(sizes), "bytes": sum(sizes.values())}


def lines(found: dict[str, Any]) -> list[str]:
    """What `facts` gave, for people."""
    root, own = found["root"], {"index": _index_lines, "run": _run_lines, "cohort": _cohort_lines}
    disk = f"disk: {found['disk']['bytes'] / 1e6:,.1f} MB in {found['disk']['files']:,} files"
    if "model" not in found:
        units = found["extracted"]
        what = f"{units['units']:,} of {units['of']:,} units are extracted"
        return [f"{root}: {found['kind']}, not finished: {what}; the same command goes on from here", disk]
    state = "finished" if found["finished"] else "not finished in time: the same command goes on from here"
    settings = ", ".join(f"{k} {_shown(v)}" for k, v in found["settings"].items() if v is not None)
    said = [f"{root}: {found['kind']}, {state}", *own[found["kind"]](found)]
    said.append(f"model: {found['model']['name']} ({found['model']['fingerprint'][:12]}), {settings}")
    if found["passed_over"]:
        said.append(f"beside the photographs: {patterns.described(found['passed_over'])}")
    return [*said, disk, *(f"stale: {line}" for line in found["stale"])]


def _index_lines(found: dict[str, Any]) -> list[str]:
    counts = found["photographs"]
    why = ", ".join(f"{count:,} {kind}" for kind, count in found["failures"].items())
    parts = [f"{counts['indexed']:,} indexed, {counts['failed']:,} failed" + (f" ({why})" if why else "")]
    if counts["without_label"]:
        parts.append(f"{counts['without_label']:,} without a label")
    if counts["out_of_time"]:
        parts.append(f"{counts['out_of_time']:,} not reached in time")
    if found["additions"]:
        parts.append(f"{found['additions']:,} additions")
    if found["cleaned_units"]:
        parts.append(f"cleaned since: {found['removed']:,} removed, {found['relabelled']:,} relabelled")
    if found["image_ids"] != "name":
        parts.append("paths are their ids")
    calibrated = f"no; `landmarks calibrate --index {found['root']}` does it"
    if found["calibration"] is not None:
        told = ", ".join(f"{name} {value:.4g}" for name, value in found["calibration"].items())
        calibrated = f"yes; {told}" if told else "yes"
    return [
        f"photographs: {', '.join(parts)}",
        _landmarks_line(found["landmarks"], "photograph"),
        f"calibrated: {calibrated}",
    ]


def _run_lines(found: dict[str, Any]) -> list[str]:
    counts = found["queries"]
    parts = [f"{counts['queries']:,}, {counts['predicted']:,} predicted, {counts['verified']:,} verified"]
    parts += [f"{counts[name]:,} {text}" for name, text in _RUN_COUNTS.items() if counts[name]]
    rule = ", ".join(f"{k} {_shown(v)}" for k, v in found["hyperparameters"].items() if v is not None)
    said = [
        f"queries: {', '.join(parts)}",
        _landmarks_line(found["landmarks"], "query"),
        f"index: {found['index']}",
        f"predictions: {'with' if found['calibrated'] else 'without'} probabilities, {rule}",
    ]
    if found["metrics"]:
        told = ", ".join(f"{k} {_shown(v)}" for k, v in found["metrics"].items() if v is not None)
        said.append(f"metrics: {told}")
    return said


def _cohort_lines(found: dict[str, Any]) -> list[str]:
    counts = found["photographs"]
    return [f"photographs: {counts['photographs']:,}, {counts['failed']:,} failed"]


_RUN_COUNTS = {"failed": "failed", "out_of_time": "not extracted in time"}


def _landmarks_line(landmarks: dict[str, int], of_what: str) -> str:
    most = ", ".join(f"{count:,} {name}" for name, count in list(landmarks.items())[:_NAMED])
    more = ", …" if len(landmarks) > _NAMED else ""
    single = sum(count == 1 for count in landmarks.values())
    ones = f"; {single:,} with one {of_what} only" if single else ""
    return f"landmarks: {len(landmarks):,}" + (f" ({most}{more}){ones}" if landmarks else "")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ",".join(map(_shown, value)) if isinstance(value, list | tuple) else str(value)
