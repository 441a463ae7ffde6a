"""The cards of a report, for a notebook."""

import base64
import html
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipeline.config import ConfigError, ReportConfig
from beam_pipeline.report.cards import TEMPLATES, QueryCard, template_text
from beam_pipeline.report.pictures import Pairs, thumbnails
from beam_pipeline.report.source import Shown, Source, photographs, query_cards


class Cards(list[QueryCard]):
    """Cards of queries, which a notebook shows as the report does, with their pictures inside."""

    def _repr_html_(self) -> str:
        page = TEMPLATES.get_template("notebook.html").render(cards=self, style=template_text("style.css"))
        # A frame of its own: neither page styles the other, and nothing in it can act.
        return (
            f'<iframe sandbox srcdoc="{html.escape(page)}" title="cards" '
            'style="width: 100%; height: 36rem; border: 0"></iframe>'
        )


def cards(
    run: str,
    image_ids: Sequence[str] | None = None,
    truth: str | None = None,
    names: str | None = None,
    against: str | None = None,
    most: int = 12,
) -> Cards:
    """The cards of some queries of a run, in the order asked for.

    Args:
      run: made by `landmarks recognize`.
      image_ids: the queries; None for those of the least confidence, the least sure first.
      truth, names, against: as of `landmarks report`.
      most: how many of the least sure.

    Raises:
      ConfigError: there is no such run, or no such query in it.
      ValueError: a table is wrong, or does not fit the run.
    """
    source = Source.read(ReportConfig(run, "", truth, names, against))
    answers = source.answers
    if image_ids is None:
        order = answers.by_confidence()
        positions = order[~np.isnan(answers.confidence[order])][::-1][:most]
    else:
        found = pc.index_in(pa.array(image_ids, pa.string()), answers.ids.combine_chunks())
        if found.null_count:
            missing = image_ids[pc.index(pc.is_null(found), True).as_py()]
            raise ConfigError(f"{run} has no prediction for a query {missing!r}")
        positions = found.to_numpy()
    shown = Shown.find(source, positions)
    contents: dict[int, bytes] = {}
    wanted, cut = [*shown.queries.values(), *shown.index.values()], len(shown.queries)
    wrong = list(thumbnails(wanted, source.manifest.recipe.reading, contents.__setitem__))

    def href(number: int) -> str:
        return f"data:image/webp;base64,{base64.b64encode(contents[number]).decode()}"

    queries = photographs(wanted[:cut], wrong[:cut], href, run)
    root = source.manifest.index
    index = photographs(wanted[cut:], wrong[cut:], lambda number: href(cut + number), root, source.index)
    pairs = Pairs.of(source.manifest)
    lines = {i: pairs.lines(query, shown.candidates(i)) for i, query in shown.queries.items()}
    return Cards(query_cards(source, positions, shown, queries, index, lines))
