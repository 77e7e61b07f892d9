"""One's own model, pool and people: which pairs to have labelled next, their answers, and training on them.

A project is a directory of plain files (``labelling.project``).  Everything that chooses is the selector of
:mod:`bandits`, everything that touches a model is :mod:`llm_loop`; this package owns the files between them.
"""
