"""Linear problems of the companion paper (arXiv 2010.07033): train W = I until x Wᵀ = x Tᵀ.

`problems` holds the targets, `settings` every number of the suites as data, `suites` their jobs, `config` one job,
`job` and `trace` train and record it, `cost` times a step, `run` makes what a run leaves with `table` and `figure`.
"""
