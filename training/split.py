"""The three parts of the photographs: to train on, to choose on, to report on. No place has photographs in
two of them.
"""

import csv
import dataclasses
import hashlib
import os

PARTS = ("train", "choose", "report")

# Labels of one place share photographs or surroundings, so they stay together. What no prefix matches is a
# place of its own.
PLACES = (
    "pt_porto",
    "fr_paris",
    "de_ettlingen",
    "se_lund",
    "my_malacca",
    "au_adelaide",
    "np_",
    "uk_",
    "it_",
    "vn_",
    "obj_",
    "pair_wxbs",
    "pair_evd",
    "pair_usac",
)
MEMBERS = {
    "in_qutub_minar": "delhi",
    "in_alai_minar": "delhi",
    "in_jamali_kamali_tomb": "delhi",
    "in_humayuns_tomb": "delhi",
    "in_india_gate": "delhi",
    "in_red_fort": "delhi",
    "in_taj_mahal": "agra",
    "in_fatehpur_sikri": "agra",
    "in_ajanta_caves": "caves",
    "in_ellora_caves": "caves",
    "de_reichstag": "berlin",
    "de_berlin_dom": "berlin",
    "de_brandenburg_gate": "berlin",
}
# Chosen once by hand, before any training, so that each part has towers, temples, façades and towns, and
# small and large classes.
CHOOSE = frozenset(
    (
        "in_mysore_palace",
        "in_hawa_mahal",
        "in_victoria_memorial",
        "de_herz_jesu_church",
        "my_malacca",
        "us_golden_gate",
        "us_seattle_smith_tower",
        "us_liberty_bell",
        "us_disney_cinderella_castle",
        "au_adelaide",
        "cn_great_wall",
        "be_leuven_town_hall",
        "in_khajuraho",
    )
)
REPORT = frozenset(
    (
        "agra",
        "in_golden_temple",
        "in_charminar",
        "in_gateway_of_india",
        "in_thanjavur_temple",
        "gr_white_tower",
        "pt_porto",
        "se_lund",
        "us_jhu_apl_entrance",
        "us_albany_egg",
        "us_willis_tower",
        "fr_sceaux_castle",
        "it_",
        "us_las_vegas_sign",
        "ae_burj_khalifa",
        "us_capitol",
        "np_",
    )
)


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A row of photos.csv.

    Attributes:
      id, path: the id, and the file's path below the folder of photos.csv.
      label: the landmark, or "" where there is none.
      kind: landmark, area, object, pair, distractor or unlabelled.
      place: what stays in one part: the place of the label; the id itself without one.
      part: train, choose or report.
    """

    id: str
    path: str
    label: str
    kind: str
    place: str
    part: str


def place_of(label: str) -> str:
    """The place that a label lies in: labels of one place are never in two parts."""
    return MEMBERS.get(label) or next((prefix for prefix in PLACES if label.startswith(prefix)), label)


def part_of(place: str, kind: str, photo_id: str) -> str:
    """The part of a place; photographs without a label are dealt by a hash of their id."""
    if kind in ("distractor", "unlabelled"):
        deal = order("part", photo_id) % 4 if kind == "distractor" else 0
        return ("train", "choose", "report", "report")[deal]
    return "choose" if place in CHOOSE else "report" if place in REPORT else "train"


def read_photographs(folder: str) -> list[Photograph]:
    """Every photograph of a folder with photos.csv (columns id, path, label, kind), in the order of their
    ids.

    Raises:
      OSError: there is no photos.csv.
    """
    with open(os.path.join(folder, "photos.csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in sorted(rows, key=lambda row: row["id"]):
        place = place_of(row["label"]) if row["label"] else row["id"]
        found.append(
            Photograph(
                row["id"],
                row["path"],
                row["label"],
                row["kind"],
                place,
                part_of(place, row["kind"], row["id"]),
            )
        )
    return found


def order(seed: str, photo_id: str) -> int:
    """A number that shuffles ids, the same on every machine."""
    return int(hashlib.sha256(f"{seed}:{photo_id}".encode()).hexdigest()[:12], 16)


def index_and_queries(photographs: list[Photograph], part: str) -> tuple[list[Photograph], list[Photograph]]:
    """The index (60 % of every label that has at least two photographs) and the queries of a part.

    The queries are the rest of the labels and as many photographs without a landmark, fewer where the part
    has fewer.
    """
    by_label: dict[str, list[Photograph]] = {}
    for photograph in photographs:
        if photograph.part == part and photograph.label:
            by_label.setdefault(photograph.label, []).append(photograph)
    index, queries = [], []
    for _, members in sorted(by_label.items()):
        members = sorted(members, key=lambda photograph: order("index", photograph.id))
        cut = max(1, round(0.6 * len(members)))
        index += members[:cut]
        queries += members[cut:]
    distractors = [
        photograph
        for photograph in photographs
        if photograph.part == part and photograph.kind == "distractor"
    ]
    return index, queries + sorted(distractors, key=lambda photograph: order("index", photograph.id))[
        : len(queries)
    ]
