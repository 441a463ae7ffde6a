"""The report of a run: a folder that a person opens in a browser, from disk, without a network.

answers.py    the run's answers as columns, judged by the truth, compared with another run, sampled
pictures.py   thumbnails of photographs, and lines between the points of a pair that agree
cards.py      what is shown of a query and of a landmark
source.py     a run, read for a report
pages.py      the pages written; `write_report` is the command
notebook.py   cards for a notebook
audit_page.py, groups_page.py   the pages of `landmarks audit` and `landmarks discover`
single_page.py   what a page that stands alone is made of
templates/    the pages, in HTML, CSS and JavaScript
"""
